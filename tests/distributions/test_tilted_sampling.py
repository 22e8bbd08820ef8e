# SPDX-License-Identifier: Apache-2.0
"""Pooled sampling where no exact law is known: laws by goodness of fit, limits by their errors."""

import math

import numpy as np
import pyro.distributions as dist
import pytest
import scipy.stats
import torch

from pyro_tilt import rewards
from pyro_tilt.distributions import Tilted, pooled

# Each goodness-of-fit test fails a right sampler with this probability; seeds are fixed.
GATE = 1e-6


def poisson_law(rate, tilt, top=60):
    """Probabilities of a tilted Poisson law on 0 .. top."""
    k = np.arange(top + 1)
    weights = scipy.stats.poisson(rate).pmf(k) * np.exp(tilt(k))
    return weights / weights.sum()


def chi_square(draws, probs):
    counts = np.bincount(draws.long().numpy(), minlength=len(probs))
    expected = len(draws) * probs
    rare = expected < 5
    counts = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    return scipy.stats.chisquare(counts[expected > 0], expected[expected > 0]).pvalue


@pytest.mark.parametrize("expanded", [False, True])
def test_bounded_rewards_are_sampled_exactly(expanded):
    rates, betas = [1.0, 4.0, 9.0], [2.0, -1.0, 0.0]
    base = dist.Poisson(torch.tensor(rates))
    reward = rewards.Bounded(lambda x: torch.sin(x) + (x > 5), -1.0, 2.0)
    tilted = Tilted(base, reward, torch.tensor(betas))
    assert tilted.tractability.sampling == "rejection"
    law = tilted.expand((4, 3)) if expanded else tilted
    draws = law.sample((5_000,) if expanded else (20_000,)).reshape(-1, 3)
    assert draws.dtype == torch.float32
    for i, (rate, beta) in enumerate(zip(rates, betas)):
        probs = poisson_law(rate, lambda k, b=beta: b * (np.sin(k) + (k > 5)))
        assert chi_square(draws[:, i], probs) > GATE


def test_a_bound_below_serves_a_negative_beta():
    base = dist.Poisson(3.0)
    reward = rewards.Concave(lambda x: (x - 2.0).square(), 0)
    squared = rewards.Bounded(lambda x: (x - 2.0).square(), 0.0, math.inf)
    assert Tilted(base, reward, -0.4).tractability.sampling == "lcb"
    tilted = Tilted(base, squared, -0.4)
    assert tilted.tractability.sampling == "rejection"
    probs = poisson_law(3.0, lambda k: -0.4 * (k - 2.0) ** 2)
    assert chi_square(tilted.sample((20_000,)), probs) > GATE


def test_constraints_are_sampled_exactly():
    base = dist.Normal(torch.tensor([0.5, -0.5]), 1.0).to_event(1)
    tilted = Tilted(base, rewards.Constraint(lambda x: (x > 0).all(-1), 1))
    draws = tilted.sample((10_000,))
    assert (draws > 0).all()
    for i, loc in enumerate((0.5, -0.5)):
        truth = scipy.stats.truncnorm(-loc, np.inf, loc=loc)
        assert scipy.stats.kstest(draws[:, i].numpy(), truth.cdf).pvalue > GATE


def test_learned_baselines_clip_no_more_than_they_aim_at():
    rates, beta = [1.0, 3.0], torch.tensor([1.0, -0.7])
    tilted = Tilted(dist.Poisson(torch.tensor(rates)), lambda x: x + torch.cos(x), beta)
    assert tilted.tractability.sampling == "lcb"
    draws = tilted.sample((20_000,))
    baseline = tilted._sampler().baseline
    assert not baseline.exact
    for i, rate in enumerate(rates):
        b = float(baseline.value[i])
        log_tilt = lambda k, s=float(beta[i]): s * (k + np.cos(k))  # noqa: E731
        clipped = poisson_law(rate, lambda k, b=b, a=log_tilt: np.minimum(a(k), b))
        target = poisson_law(rate, log_tilt)
        assert chi_square(draws[:, i], clipped) > GATE
        assert abs(clipped - target).sum() / 2 < 0.02
        assert abs(clipped - poisson_law(rate, lambda k: 0 * k)).sum() / 2 > 0.2


def test_the_learned_baseline_is_that_of_a_gaussian():
    # A ~ N(0, 1/4): the best sharpened bound over the exponents, from the exact log-MGF.
    lam = np.array(pooled.EXPONENTS)
    psi = ((1 + lam) ** 2 - 1) / 8
    log_c = lam * np.log(lam) - (1 + lam) * np.log1p(lam)
    expected = ((psi + log_c - math.log(0.01)) / lam).min()
    draws = torch.randn(200_000, 2, dtype=torch.float64) / 2
    found = pooled.learned_baseline(draws, 0.01)
    assert found.shape == (2,)
    assert found.numpy() == pytest.approx([expected] * 2, abs=0.05)


def test_the_baseline_does_not_fall_below_log_z_nor_trust_few_draws():
    heavy = torch.zeros(1000, dtype=torch.float64)
    heavy[0] = 50.0
    assert pooled.learned_baseline(heavy) == 50.0
    assert pooled.learned_baseline(torch.full((100,), -3.0)).item() == pytest.approx(-3.0)


def test_a_higher_beta_raises_the_reward():
    base = dist.MultivariateNormal(torch.tensor([0.5, -0.2]), torch.eye(2))

    def reward(x):
        return torch.tanh(x[..., 0] - 0.5 * x[..., 1])

    means = [
        reward(Tilted(base, reward, beta).sample((4000,))).mean().item()
        for beta in (-2.0, -0.5, 0.0, 0.5, 2.0)
    ]
    assert means == sorted(means)
    assert means[-1] - means[0] > 0.6


def test_a_seed_repeats_the_draws_of_one_law():
    def law():
        base = dist.MultivariateNormal(torch.zeros(2), torch.eye(2))
        return Tilted(base, lambda x: x.sin().sum(-1), 2.0)

    used = law()
    used.sample((3,))
    draws = []
    for tilted in (law(), used, law().expand((1,))):
        torch.manual_seed(11)
        draws.append(tilted.sample((100,)).reshape(100, 2))
    assert torch.equal(draws[0], draws[1])
    assert torch.equal(draws[0], draws[2])


def test_shapes_of_no_draws_and_no_batch():
    base = dist.MultivariateNormal(torch.zeros(3, 2), torch.eye(2))
    tilted = Tilted(base, rewards.Bounded(lambda x: x.sin().sum(-1), -2, 2))
    assert tilted.sample((0,)).shape == (0, 3, 2)
    assert tilted.sample((2, 0, 4)).shape == (2, 0, 4, 3, 2)
    assert tilted.expand((0, 3)).sample((5,)).shape == (5, 0, 3, 2)


def test_hopeless_rejection_names_its_acceptance_rate(monkeypatch):
    monkeypatch.setattr(pooled, "MIN_PROPOSALS", 20_000)
    monkeypatch.setattr(pooled, "PROPOSALS_PER_DRAW", 1)
    base = dist.MultivariateNormal(torch.zeros(2), torch.eye(2))
    tilted = Tilted(base, rewards.Bounded(lambda x: (x[..., 0] > 3.5) * 1.0, 0, 1), 40.0)
    with pytest.raises(RuntimeError, match="acceptance rate is .*lower beta"):
        tilted.sample((100,))
    never = Tilted(base, rewards.Constraint(lambda x: x[..., 0] > 50, 1))
    with pytest.raises(ValueError, match="-inf for all of"):
        never.sample()


def test_bad_rewards_are_refused_before_sampling():
    base = dist.MultivariateNormal(torch.zeros(2), torch.eye(2))
    with pytest.raises(ValueError, match="-inf for all of 4096 draws"):
        Tilted(base, lambda x: x.sum(-1) - math.inf).sample()
    with pytest.raises(ValueError, match="NaN"):
        Tilted(base, lambda x: x.sum(-1).log()).sample()
    with pytest.raises(ValueError, match=r"got shape \(4096, 2\)"):
        Tilted(base, lambda x: x).sample()
    with pytest.raises(ValueError, match="negative beta"):
        Tilted(base, lambda x: torch.where(x[..., 0] > 0, 0.0, -math.inf), -1.0).sample()


def test_a_tilt_of_a_tilt_without_a_law_is_sampled_as_one():
    inner = Tilted(dist.Poisson(4.0), rewards.Bounded(torch.sin, -1, 1), 2.0)
    outer = Tilted(inner, rewards.Bounded(lambda x: (x > 3) * 1.0, 0, 1), -1.5)
    assert outer.tractability.sampling == "rejection"
    probs = poisson_law(4.0, lambda k: 2 * np.sin(k) - 1.5 * (k > 3))
    assert chi_square(outer.sample((20_000,)), probs) > GATE
    assert chi_square(outer.expand((2,)).sample((10_000,)).flatten(), probs) > GATE


class Implicit(dist.TorchDistribution):
    """Draws on the line and no density."""

    arg_constraints = {}
    support = dist.constraints.real

    def sample(self, sample_shape=()):
        return torch.randn(sample_shape).exp() - 1.0

    def log_prob(self, value):
        raise NotImplementedError


def test_a_base_without_a_density_is_sampled_all_the_same():
    tilted = Tilted(Implicit(), rewards.Constraint(lambda x: x > 0.5))
    assert tilted.tractability.sampling == "rejection"
    draws = tilted.sample((5000,))
    truth = scipy.stats.truncnorm(math.log(1.5), np.inf)
    assert scipy.stats.kstest(draws.log1p().numpy(), truth.cdf).pvalue > GATE


def test_a_base_of_torch_alone_will_do():
    tilted = Tilted(torch.distributions.Poisson(4.0), rewards.Bounded(torch.sin, -1, 1), 2.0)
    probs = poisson_law(4.0, lambda k: 2 * np.sin(k))
    assert chi_square(tilted.sample((20_000,)), probs) > GATE
