# SPDX-License-Identifier: Apache-2.0
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

from pyro_tilt import rewards
from pyro_tilt.infer import LCB, AcceptanceTooLow, Rejection, SamplerWarning, ZeroWeights
from pyro_tilt.testing.exact_programs import conjugate_gaussian, two_categoricals
from pyro_tilt.testing.loop_case import LoopedSamplerTestCase
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
    mass = float(
        1 - ((log_base + log_weight.clamp(max=b)).logsumexp(0) - case.log_normalizer).exp()
    )
    return law, mass, float((law - case.probabilities).abs().sum() / 2)


class TestLCB(SamplerTestCase):
    sampler = LCB
    options = {"epsilon": 0.2}

    def law(self, case, result):
        return clipped(case, result)[0]


class TestLCBWithBudget(SamplerTestCase):
    sampler = LCB
    options = {"baseline": "budget", "budget": 1.3, "num_calibration": 1000}

    def law(self, case, result):
        return clipped(case, result)[0]


class TestLCBWithExchangeRate(SamplerTestCase):
    sampler = LCB
    options = {"baseline": "exchange", "exchange_rate": 3.0, "num_calibration": 1000}

    def law(self, case, result):
        return clipped(case, result)[0]


class TestLCBInALoop(LoopedSamplerTestCase):
    sampler = LCB
    # A given baseline spares the calibration draws, each of them a run of the program.
    options = {"vectorized": False, "baseline": -0.7}

    # It has nothing to do with the scale of such a weight either.
    test_extreme_beta_does_not_overflow = None


def linear(dim=4):
    def program():
        return pyro.sample("x", dist.Normal(torch.zeros(dim), torch.ones(dim)).to_event(1))

    theta = torch.tensor([0.6, -0.5, 0.4, 0.3][:dim])
    return program, rewards.Linear(theta), float(theta.square().sum())


def test_gaussian_acceptance_matches_the_sharpened_bound():
    # A ~ N(0, s^2): psi(t) = s^2 t^2 / 2, so the best sharpened baseline is known.
    program, reward, variance = linear()
    result = LCB(program, reward=reward, num_calibration=200_000, num_samples=20_000, seed=0).run()
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


def test_minibatches_shared_by_a_block_are_refused():
    def program():
        x = pyro.sample("x", dist.Normal(torch.tensor(0.0), torch.tensor(1.0)))
        with pyro.plate("rows", 4, subsample_size=2):
            pyro.sample("y", dist.Normal(x, torch.tensor(1.0)), obs=torch.zeros(2))
        return x

    with pytest.raises(ValueError, match="'rows'.*vectorized=False"):
        LCB(program, reward=rewards.Linear(torch.tensor(1.0)), num_samples=20, seed=0).run()


class Stated(rewards.Reward):
    """A reward with a bound that nothing checks."""

    event_dim = 1

    def __init__(self, fn, bound):
        self.fn, self.bound = fn, bound

    def __call__(self, value):
        return self.fn(value)

    @property
    def upper_bound(self):
        return self.bound


def test_a_wrong_bound_is_caught_before_it_is_certified():
    program, _, _ = linear()
    wrong = Stated(lambda x: x.sum(-1), bound=1.0)
    with pytest.raises(ValueError, match="above the bound"):
        LCB(program, reward=wrong, baseline=-1.0, num_samples=500, seed=0).run()


def test_rounding_above_the_bound_is_forgiven():
    program, _, _ = linear()
    # As where a sum of large float32 numbers attains its bound.
    rounded = Stated(lambda x: 0 * x.sum(-1) + 0.1 + 3e-6, bound=0.1)
    result = LCB(program, reward=rounded, baseline=0.0, num_samples=200, seed=0).run()
    assert result.certificate.law == "bounded"
    assert result.info["clipped_mass"] == pytest.approx(1 - math.exp(-0.1), abs=1e-5)


def test_a_capped_run_cut_short_bounds_nothing():
    case = two_categoricals()
    with pytest.warns(SamplerWarning, match="max_proposals"), pytest.raises(AcceptanceTooLow) as e:
        LCB(
            case.aligned(), baseline=0.0, max_proposals=2, max_draws=50, num_samples=100, seed=0
        ).run()
    certificate = e.value.partial.certificate
    assert certificate.law == "consistent" and "cut short" in certificate.excludes


def test_proposals_without_any_weight_have_evidence_zero():
    case = two_categoricals()
    rare = rewards.Constraint(lambda value: value[0] > 5)
    with pytest.warns(SamplerWarning, match="max_proposals") as caught:
        result = LCB(
            case.program, reward=rare, baseline=0.0, max_proposals=1, num_samples=3, seed=0
        ).run()
    assert [warning.filename for warning in caught] == [__file__]
    assert result.log_normalizer == -math.inf
    assert result.certificate.total_variation == 1.0


def test_calibration_leaves_the_stream_of_proposals_alone():
    case = conjugate_gaussian()
    runs = [
        LCB(case.aligned(), baseline=baseline, num_samples=50, seed=3, **options).run()
        for baseline, options in ((0.0, {}), ("budget", {"budget": 1e9, "num_calibration": 300}))
    ]
    # A budget so large ends at the bound, 0 up to rounding: the same proposals, accepted alike.
    assert runs[1].info["baseline"] == pytest.approx(0.0, abs=1e-5)
    assert torch.equal(runs[0].samples["x"], runs[1].samples["x"])
    plain = Rejection(case.aligned(), num_samples=50, seed=3).run()
    assert torch.equal(runs[0].samples["x"], plain.samples["x"])


def test_base_draws_are_the_stream_of_proposals():
    case = conjugate_gaussian()
    result = LCB(case.aligned(), num_samples=2000, seed=0).run()
    total = int(result.info["total_proposals"])
    assert len(result.base.reward) == min(total, 10_000)
    reward = result.base.reward.double()
    spread = float(reward.std()) / math.sqrt(len(reward))
    assert abs(float(reward.mean()) - case.base_reward_mean) < 4.5 * spread
    assert (result.base.log_factors == 0).all()
    few = [Rejection(case.aligned(), num_samples=3, seed=seed).run() for seed in range(20)]
    assert any(result.info["wasted"] > 0 for result in few)
    assert all(len(result.base.reward) == result.info["total_proposals"] for result in few)


@pytest.mark.parametrize("seed", [0, None])
@pytest.mark.parametrize("sampler", [Rejection, LCB])
def test_acceptance_and_calibration_have_randomness_of_their_own(sampler, seed):
    seen = []

    def program():
        zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
        x = pyro.sample("x", dist.Uniform(zero, one))
        seen.append(x)
        return x

    # Every proposal is accepted with probability one half, whatever its value: were x itself
    # the uniform that decides, only values below one half would be left.
    reward = rewards.Bounded(lambda x: torch.full_like(x, math.log(0.5)), low=-1.0, high=0.0)
    options = {} if sampler is Rejection else {"baseline": 0.0}
    result = sampler(program, reward=reward, num_samples=2000, seed=seed, **options).run()
    assert abs(float(result.samples["x"].mean()) - 0.5) < 4.5 / math.sqrt(12 * 2000)
    if sampler is LCB:
        seen.clear()
        LCB(program, reward=reward, num_samples=2000, num_calibration=2000, seed=seed).run()
        plain_run, calibration, first = seen[:3]
        assert len(calibration) == len(first) == 2000
        assert not set(calibration.tolist()) & set(first.tolist())
