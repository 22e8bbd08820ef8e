# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch
from scipy.optimize import brentq

from pyro_tilt.infer.base_draws import BaseDraws
from pyro_tilt.infer.budget import beta_for_kl
from pyro_tilt.infer.certificate import Certificate
from pyro_tilt.infer.weighted_samples import WeightedSamples

CONSISTENT = Certificate(target="joint tilt", law="consistent", budget="num_samples")
EXACT = Certificate(target="joint tilt", law="exact")
inf = math.inf

BASE = torch.tensor([0.5, 0.2, 0.2, 0.1], dtype=torch.float64)
FACTOR = torch.tensor([0.3, -1.0, 0.0, 2.0], dtype=torch.float64)
REWARD = torch.tensor([-1.0, 0.5, 2.0, 0.25], dtype=torch.float64)


def kl(beta, reward=REWARD):
    """The divergence between the tilted and the plain posterior, by enumeration."""
    plain = (BASE.log() + FACTOR).log_softmax(0)
    tilted = (BASE.log() + FACTOR + beta * reward).log_softmax(0)
    keep = tilted > -inf
    return float((tilted[keep].exp() * (tilted - plain)[keep]).sum())


def enumerated(beta, reward=REWARD, **fields):
    tilt = torch.where(torch.isneginf(reward), -inf if beta else 0.0, beta * reward)
    return WeightedSamples(
        kind="weighted",
        samples={},
        stats={"reward": reward},
        log_weights=(4 * BASE).log() + FACTOR + tilt,
        certificate=CONSISTENT,
        beta=beta,
        **fields,
    )


@pytest.mark.parametrize("made_at", [0.0, 1.5, -2.0])
@pytest.mark.parametrize("nats", [1e-6, 0.02, 0.5])
def test_spends_the_divergence_from_the_observed_base(made_at, nats):
    found = beta_for_kl(enumerated(made_at), nats, min_ess=1.0)
    assert found > 0
    assert kl(found) == pytest.approx(nats, rel=1e-8)
    exact = brentq(lambda beta: kl(beta) - nats, 0.0, 50.0, xtol=1e-14)
    assert found == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_the_scale_of_the_reward_does_not_matter(scale):
    one = beta_for_kl(enumerated(0.0), 0.3, min_ess=1.0)
    other = beta_for_kl(enumerated(0.0, REWARD * scale + scale), 0.3, min_ess=1.0)
    assert other * scale == pytest.approx(one, rel=1e-6)


def test_zero_nats_are_beta_zero():
    assert beta_for_kl(enumerated(1.0), 0.0) == 0.0


@pytest.mark.parametrize("made_at", [0.0, 0.8])
def test_gaussian_draws(made_at):
    """KL is beta^2 |theta|^2 / 2 on a standard normal; theta = (1, -2).

    Over 60 seeds the estimate had a standard deviation of .0012 (from the base) and .0028 (from
    the tilted law); the gate is six of the latter, a false-alarm rate of 2e-9.
    """
    torch.manual_seed(0)
    theta = torch.tensor([1.0, -2.0])
    x = torch.randn(200_000, 2) + made_at * theta
    draws = WeightedSamples(
        kind="iid",
        samples={"x": x},
        stats={"reward": x @ theta},
        log_weights=torch.zeros(len(x)),
        certificate=EXACT,
        beta=made_at,
    )
    found = beta_for_kl(draws, 0.4)
    assert found == pytest.approx(math.sqrt(2 * 0.4 / 5), abs=0.017)


def test_residual_weights_count():
    clipped = (BASE.log() + torch.minimum(FACTOR + REWARD, torch.tensor(1.0))).softmax(0)
    x = torch.arange(4).repeat_interleave((clipped * 1_000_000).round().long())
    draws = WeightedSamples(
        kind="iid",
        samples={"x": x},
        stats={"reward": REWARD[x]},
        log_weights=torch.zeros(len(x)),
        residual_log_weights=(FACTOR + REWARD - 1.0).clamp(min=0.0)[x],
        certificate=EXACT,
        beta=1.0,
    )
    assert kl(beta_for_kl(draws, 0.4)) == pytest.approx(0.4, abs=1e-4)


@pytest.mark.parametrize("kind", ["weighted", "iid", "at zero"])
def test_impossible_rewards_cost_their_mass(kind):
    reward = torch.tensor([-1.0, 0.5, 2.0, -inf], dtype=torch.float64)
    base = BaseDraws(reward=reward, log_factors=(4 * BASE).log() + FACTOR)
    if kind == "weighted":
        draws = enumerated(1.0, reward, base=base)
    elif kind == "at zero":
        draws = enumerated(0.0, reward)
    else:
        law = (BASE.log() + FACTOR + reward).softmax(0)
        x = torch.arange(4).repeat_interleave((law * 1_000_000).round().long())
        draws = WeightedSamples(
            kind="iid",
            samples={},
            stats={"reward": reward[x]},
            log_weights=torch.zeros(len(x)),
            certificate=EXACT,
            beta=1.0,
            base=base,
        )
    floor = -math.log(float((BASE.log() + FACTOR).softmax(0)[:3].sum()))
    nats = floor + 0.25
    assert kl(beta_for_kl(draws, nats, min_ess=1.0), reward) == pytest.approx(nats, abs=1e-4)
    with pytest.raises(ValueError, match="-inf on a part of the base"):
        beta_for_kl(draws, floor / 2, min_ess=1.0)


def test_out_of_reach_tells_how_far_the_draws_go():
    draws = enumerated(0.0)
    with pytest.raises(ValueError, match="out of reach") as error:
        beta_for_kl(draws, 50.0, min_ess=1.5)
    words = str(error.value)
    reach = float(words.split("is ")[1].split(" nats")[0])
    ess = float(words.split("sample size is ")[1].split(". Draw")[0])
    # The least divergence beyond which fewer than 1.5 effective draws remain, by enumeration.
    betas = torch.linspace(0, 50, 20001, dtype=torch.float64)
    probs = ((BASE.log() + FACTOR) + betas[:, None] * REWARD).softmax(-1)
    last = betas[(1 / (probs**2).sum(-1) >= 1.5).nonzero().max()]
    assert reach == pytest.approx(kl(float(last)), rel=0.05)
    assert ess == pytest.approx(1.5, abs=0.1)


def test_few_effective_draws_are_no_answer():
    torch.manual_seed(0)
    x = torch.randn(100, dtype=torch.float64)
    draws = WeightedSamples(
        kind="weighted",
        samples={},
        stats={"reward": x},
        log_weights=torch.zeros(100),
        certificate=CONSISTENT,
        beta=0.0,
    )
    with pytest.raises(ValueError, match="effective sample size of 10"):
        beta_for_kl(draws, 3.0)
    assert beta_for_kl(draws, 3.0, min_ess=1.0) > 0


def test_draws_far_from_the_base_are_no_answer():
    with pytest.raises(ValueError, match="too far from the base"):
        beta_for_kl(enumerated(0.0), 0.1, min_ess=3.9)


def test_a_constant_reward_spends_nothing():
    with pytest.raises(ValueError, match="out of reach"):
        beta_for_kl(enumerated(1.0, torch.ones(4, dtype=torch.float64)), 0.1, min_ess=1.0)


@pytest.mark.parametrize("nats", [-0.1, math.nan, inf])
def test_nats_are_a_divergence(nats):
    with pytest.raises(ValueError, match="nats"):
        beta_for_kl(enumerated(0.0), nats)
