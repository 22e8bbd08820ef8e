# SPDX-License-Identifier: Apache-2.0
import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

from pyro_tilt import rewards
from pyro_tilt.infer import LCB, AcceptanceTooLow, SamplerWarning, ZeroWeights
from pyro_tilt.infer.lcb_certificate import clipping
from pyro_tilt.testing.exact_programs import conjugate_gaussian, two_categoricals
from pyro_tilt.testing.sampler_case import SamplerTestCase


def clipped(case, result):
    """The exact law, clipped mass and distance of an LCB run with its own baseline."""
    log_weight = case.log_tilt.clone()
    log_base = case.log_base
    if "observed" in case.program.__name__:
        plain = two_categoricals().log_base
        log_weight, log_base = log_weight + (log_base - plain), plain
    b = result.info["baseline"]
    law = (log_base + log_weight.clamp(max=b)).softmax(0)
    mass = float(1 - ((log_base + log_weight.clamp(max=b)).logsumexp(0) - case.log_normalizer).exp())
    return law, mass, float((law - case.probabilities).abs().sum() / 2)


class TestLCB(SamplerTestCase):
    sampler = LCB
    options = {"epsilon": 0.2}

    def law(self, case, result):
        return clipped(case, result)[0]


class TestLCBWithBudget(SamplerTestCase):
    sampler = LCB
    options = {"baseline": "budget", "budget": 1.3}

    def law(self, case, result):
        return clipped(case, result)[0]


class TestLCBWithExchangeRate(SamplerTestCase):
    sampler = LCB
    options = {"baseline": "exchange", "exchange_rate": 3.0}

    def law(self, case, result):
        return clipped(case, result)[0]


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
        assert clipped(case, result)[1] <= epsilon * 1.05


def test_gaussian_acceptance_matches_the_sharpened_bound():
    # A ~ N(0, s^2): psi(t) = s^2 t^2 / 2, so the best sharpened baseline is known.
    program, reward, variance = linear()
    result = LCB(
        program, reward=reward, num_calibration=200_000, num_samples=20_000, seed=0
    ).run()
    lam = torch.linspace(0.05, 30, 4000, dtype=torch.float64)
    log_c = torch.xlogy(lam, lam) - torch.xlogy(1 + lam, 1 + lam)
    psi = 0.5 * variance * (1 + lam) ** 2
    exact = float(((psi - 0.5 * variance + log_c - math.log(0.05)) / lam).min())
    assert result.info["baseline"] == pytest.approx(exact, abs=0.05)
    b, s = result.info["baseline"], math.sqrt(variance)
    kept = math.exp(0.5 * variance) * stats.norm.cdf((b - variance) / s) + math.exp(
        b
    ) * stats.norm.sf(b / s)
    kappa = 1 - kept / math.exp(0.5 * variance)
    rate = kept * math.exp(-b)
    spread = math.sqrt(1 - rate) / math.sqrt(20_000)
    assert result.info["acceptance_rate"] == pytest.approx(rate, rel=4.5 * spread)
    assert result.info["clipped_mass"] == pytest.approx(kappa, abs=0.3 * kappa)
    assert kappa < 0.05


def test_unbounded_rewards_are_only_consistent():
    program, reward, _ = linear()
    result = LCB(program, reward=reward, num_samples=1000, seed=0).run()
    assert result.certificate.law == "consistent"
    assert result.certificate.total_variation is None
    assert result.certificate.estimated_total_variation > 0
    assert "clipped_mass_upper" not in result.info


def test_bounded_rewards_are_certified_and_the_bound_holds():
    case = two_categoricals()
    for seed in range(40):
        result = LCB(
            case.aligned(), baseline="budget", budget=1.2, num_samples=2000, seed=seed
        ).run()
        _, mass, distance = clipped(case, result)
        certificate = result.certificate
        assert certificate.law == "bounded"
        assert certificate.confidence == 0.95
        # Empirical Bernstein at 95 % is conservative: 40 of 40 are covered, and it is not vacuous.
        assert distance <= mass <= certificate.total_variation < mass + 0.1
        assert result.info["clipped_mass"] == pytest.approx(mass, abs=0.06)


def test_baseline_at_the_bound_is_exact_rejection():
    case = conjugate_gaussian()
    result = LCB(case.aligned(), baseline=0.5, num_samples=100, seed=0).run()
    assert result.certificate.law == "exact"
    assert (result.residual_log_weights == 0).all()


def test_residual_weights_are_the_excess():
    case = two_categoricals()
    result = LCB(case.aligned(), baseline=-1.5, num_samples=500, seed=0).run()
    log_weights = case.beta * result.stats["reward"].double()
    torch.testing.assert_close(
        result.residual_log_weights, (log_weights + 1.5).clamp(min=0.0), rtol=1e-6, atol=1e-6
    )
    assert (result.residual_log_weights > 0).any()


def test_capped_draws_follow_their_law_and_are_declared():
    case, cap = two_categoricals(), 2
    counts = torch.zeros(12).double()
    for seed in range(5):
        with pytest.warns(SamplerWarning, match="max_proposals"):
            result = LCB(
                case.aligned(), baseline=0.0, max_proposals=cap, num_samples=4000, seed=seed
            ).run()
        counts += torch.bincount(case.state(result.samples), minlength=12)
        assert int(result.stats["proposals"].max()) == cap
        share = float(result.stats["capped"].double().mean())
        assert result.certificate.total_variation >= share
        assert (result.residual_log_weights[result.stats["capped"]] == -math.inf).all()
    base, accept = case.log_base.exp(), case.log_tilt.exp()
    rate = float((base * accept).sum())
    fail = (1 - rate) ** cap
    law = (1 - fail) * case.probabilities + fail * base * (1 - accept) / (1 - rate)
    expected = law * counts.sum()
    statistic = float(((counts - expected).square() / expected).sum())
    assert stats.chi2.sf(statistic, 11) > 1e-5
    assert float(counts.sum()) == 20_000


def test_a_cap_costs_confidence_even_when_it_was_not_hit():
    log_weights = torch.zeros(100).double()
    never = torch.zeros(100, dtype=torch.bool)
    options = {"baseline": 0.0, "log_bound": 0.0, "confidence": 0.95}
    free = clipping(log_weights, never, may_cap=False, **options)
    held = clipping(log_weights, never, may_cap=True, **options)
    assert free.exact and free.total_variation_upper == 0.0
    # None of 100: the exact upper bound at 97.5 % solves (1 - f)^100 = 0.025.
    assert not held.exact
    assert held.total_variation_upper == pytest.approx(1 - 0.025**0.01)


def test_too_few_calibration_draws_are_never_silent():
    program, reward, _ = linear()
    with pytest.warns(SamplerWarning, match="calibration"):
        LCB(program, reward=reward, beta=6.0, num_calibration=200, num_samples=20, seed=0).run()


def test_more_calibration_reaches_the_target_without_warning():
    program, reward, _ = linear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LCB(program, reward=reward, num_calibration=20_000, num_samples=1000, seed=0).run()


def test_proposals_show_in_cost_with_the_calibration():
    case = conjugate_gaussian()
    result = LCB(case.aligned(), num_calibration=500, num_samples=200, seed=0).run()
    proposals = int(result.stats["proposals"].sum())
    assert result.cost.base_draws == 500 + proposals + result.info["wasted"]


@pytest.mark.parametrize(
    "options,word",
    [
        ({"epsilon": 0.0}, "epsilon"),
        ({"epsilon": 1.0}, "epsilon"),
        ({"baseline": "chernov"}, "chernov"),
        ({"num_calibration": 10}, "num_calibration"),
        ({"confidence": 1.5}, "confidence"),
        ({"budget": 0.5}, "budget"),
    ],
)
def test_bad_options_are_named(options, word):
    with pytest.raises(ValueError, match=word):
        LCB(conjugate_gaussian().aligned(), **options)


def test_max_draws_keeps_what_was_accepted():
    case = two_categoricals()
    with pytest.raises(AcceptanceTooLow) as caught:
        LCB(case.aligned(), num_samples=500, max_draws=300, seed=0).run()
    assert 0 < len(caught.value.partial) < 300


def test_no_positive_weight_in_calibration():
    case = two_categoricals()
    nothing = rewards.Constraint(lambda value: value[0] > 5)
    with pytest.raises(ZeroWeights):
        LCB(case.program, reward=nothing, num_samples=40, seed=0).run()
