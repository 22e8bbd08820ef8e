# SPDX-License-Identifier: Apache-2.0
"""How LCB chooses its baseline."""

import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

from pyro_tilt import rewards
from pyro_tilt.infer import LCB, SamplerWarning
from pyro_tilt.testing.exact_programs import conjugate_gaussian, two_categoricals


def clipped_mass(case, baseline):
    """The exact clipped mass of a run on two categoricals."""
    kept = (case.log_base + case.log_tilt.clamp(max=baseline)).logsumexp(0)
    return float(1 - (kept - case.log_normalizer).exp())


def linear(dim=4):
    def program():
        return pyro.sample("x", dist.Normal(torch.zeros(dim), torch.ones(dim)).to_event(1))

    theta = torch.tensor([0.6, -0.5, 0.4, 0.3][:dim])
    return program, rewards.Linear(theta), float(theta.square().sum())


@pytest.mark.parametrize("epsilon", [0.2, 0.05, 0.01])
def test_clipped_mass_stays_below_epsilon(epsilon):
    case = two_categoricals()
    for seed in range(10):
        result = LCB(case.aligned(), epsilon=epsilon, num_samples=50, seed=seed).run()
        assert clipped_mass(case, result.info["baseline"]) <= epsilon * 1.05


def test_half_of_the_calibration_is_held_out():
    case = two_categoricals()
    sampler = LCB(case.aligned(), epsilon=0.1)
    # The half that the bound is fitted to has flat weights, the other one a heavy share above it.
    log_weights = torch.zeros(4000).double()
    log_weights[1::4] = 2.0
    chosen = sampler._choose(log_weights, math.inf)
    held_out = log_weights[1::2]
    lost = (
        (1 - (chosen.value - held_out).exp()).clamp(min=0) * held_out.exp() / held_out.exp().sum()
    )
    assert float(lost.sum()) == pytest.approx(0.1, abs=1e-6)
    # With the halves exchanged the fitted bound is the larger one and stays.
    swapped = sampler._choose(log_weights.roll(-1), math.inf)
    assert swapped.value > chosen.value


@pytest.mark.parametrize("epsilon", [0.5, 0.9])
def test_baseline_never_falls_below_log_z(epsilon):
    # There, clipping more of the target would save no proposal.
    program, reward, variance = linear()
    options = {"reward": reward, "num_samples": 100, "num_calibration": 20_000, "seed": 0}
    result = LCB(program, epsilon=epsilon, **options).run()
    assert result.info["baseline"] >= 0.5 * variance - 0.05
    if epsilon == 0.9:
        # The bound itself lies lower, so that the floor is what is used.
        assert result.info["baseline"] == pytest.approx(0.5 * variance, abs=0.05)
        assert result.info["acceptance_rate"] > 0.4


@pytest.mark.parametrize("budget", [1.5, 3.0])
def test_budget_is_spent(budget):
    program, reward, variance = linear()
    result = LCB(
        program,
        reward=reward,
        baseline="budget",
        budget=budget,
        num_calibration=40_000,
        num_samples=4000,
        seed=0,
    ).run()
    b, s = 0.5 * variance + math.log(budget), math.sqrt(variance)
    # The error of log Z from 40,000 weights of a lognormal law.
    error = math.sqrt(math.expm1(variance) / 40_000)
    assert result.info["baseline"] == pytest.approx(b, abs=4.5 * error)
    kept = stats.norm.cdf((b - variance) / s) + budget * stats.norm.sf(b / s)
    proposals = float(result.stats["proposals"].double().mean())
    assert proposals == pytest.approx(budget / kept, rel=4.5 * (1 / math.sqrt(4000) + error))


@pytest.mark.parametrize("rate", [2.0, 30.0])
def test_exchange_rate_buys_what_it_says(rate):
    program, reward, variance = linear()
    options = {"num_calibration": 40_000, "num_samples": 50, "seed": 0}
    result = LCB(program, reward=reward, baseline="exchange", exchange_rate=rate, **options).run()
    b = torch.linspace(0.5 * variance, 4.0, 4000, dtype=torch.float64)
    s, normal = math.sqrt(variance), torch.distributions.Normal(0.0, 1.0)
    kept = normal.cdf((b - variance) / s) + (b - 0.5 * variance).exp() * normal.cdf(-b / s)
    cost = (b - 0.5 * variance).exp() / kept + rate * (1 - kept)
    reached = cost[(b - result.info["baseline"]).abs().argmin()]
    # The minimum is flat, so that the cost and not the baseline is compared.
    assert float(reached) == pytest.approx(float(cost.min()), rel=5e-3)


def test_a_strict_epsilon_ends_at_the_bound_and_not_above():
    case = two_categoricals()
    result = LCB(case.aligned(), epsilon=1e-6, num_samples=100, seed=0).run()
    assert result.info["baseline"] == 0.0
    assert result.certificate.law == "exact"


def test_too_few_calibration_draws_are_never_silent():
    program, reward, _ = linear()
    with pytest.warns(SamplerWarning, match="calibration"):
        LCB(program, reward=reward, beta=6.0, num_calibration=200, num_samples=20, seed=0).run()


def test_more_calibration_reaches_the_target_without_warning():
    program, reward, _ = linear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LCB(program, reward=reward, num_calibration=20_000, num_samples=1000, seed=0).run()


def test_untrusted_baseline_is_the_largest_weight_seen():
    sampler = LCB(conjugate_gaussian().aligned(), epsilon=0.9)
    generator = torch.Generator().manual_seed(0)
    log_weights = 6.0 * torch.randn(200, generator=generator, dtype=torch.float64)
    with pytest.warns(SamplerWarning, match="largest log weight"):
        assert sampler._choose(log_weights, math.inf).value == float(log_weights.max())
    with pytest.warns(SamplerWarning, match="largest log weight"):
        assert sampler._choose(log_weights, 9.0).value == 9.0


def test_rewards_that_calibration_missed_are_not_silent():
    def program():
        return pyro.sample("x", dist.Normal(torch.tensor(0.0), torch.tensor(1.0)))

    # One proposal in 740 carries most of the target, and 100 calibration draws hold none.
    rare = rewards.Bounded(lambda x: 10.0 * (x > 3.0).to(x), low=0.0, high=10.0)
    with pytest.warns(SamplerWarning, match="missed the rewards that matter"):
        result = LCB(program, reward=rare, num_calibration=100, num_samples=20_000, seed=1).run()
    assert result.info["baseline"] == 0.0
    assert result.info["clipped_mass"] > 0.9
