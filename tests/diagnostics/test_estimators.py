# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch
from scipy import stats

from pyro_tilt.diagnostics.estimators import Estimate, kl_to_base, reward_gain, total_variation
from pyro_tilt.infer.base_draws import BaseDraws
from pyro_tilt.infer.certificate import Certificate
from pyro_tilt.infer.weighted_samples import WeightedSamples

CONSISTENT = Certificate(target="joint tilt", law="consistent", budget="num_samples")
EXACT = Certificate(target="joint tilt", law="exact")
inf = math.inf

BASE = torch.tensor([0.5, 0.2, 0.2, 0.1], dtype=torch.float64)
FACTOR = torch.tensor([0.3, -1.0, 0.0, 2.0], dtype=torch.float64)
REWARD = torch.tensor([-1.0, 0.5, 2.0, 0.25], dtype=torch.float64)
PLAIN = (BASE.log() + FACTOR).softmax(0)

# Gaussian program: x ~ N(0, I) in two dimensions, y | x ~ N(x_0, 1) observed at 1, r = <theta, x>.
# Given y the base is N((.5, 0), diag(.5, 1)), and a linear reward moves its mean by beta V theta.
THETA = torch.tensor([1.0, -0.5], dtype=torch.float64)
VARIANCE = torch.tensor([0.5, 1.0], dtype=torch.float64)
SHIFT = float(THETA @ (VARIANCE * THETA))
BETA = 0.8
TRUE_KL = BETA**2 * SHIFT / 2
TRUE_GAIN = BETA * SHIFT
LOG_Z = -0.5 * math.log(2 * math.pi) - 0.5 * math.log(2) - 0.25 + BETA * 0.5 + TRUE_KL


def tilted(beta, reward):
    return (BASE.log() + FACTOR + beta * reward).softmax(0)


def discrete_kl(beta, reward=REWARD):
    law = tilted(beta, reward)
    return float(torch.special.xlogy(law, law / PLAIN).sum())


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


def base_draws(num, generator):
    x = torch.randn(num, 2, generator=generator, dtype=torch.float64)
    log_factors = -0.5 * (1 - x[:, 0]) ** 2 - 0.5 * math.log(2 * math.pi)
    return x @ THETA, log_factors


def weighted(num, generator, *, with_base, chain_sizes=(), steps=None):
    reward, log_factors = base_draws(num, generator)
    return WeightedSamples(
        kind="weighted",
        samples={},
        stats={"reward": reward},
        log_weights=log_factors + BETA * reward,
        certificate=CONSISTENT,
        beta=BETA,
        base=BaseDraws(reward=reward, log_factors=log_factors) if with_base else None,
        chain_sizes=chain_sizes,
        steps=steps or {},
    )


def exact_rewards(num, generator):
    mean = torch.tensor([0.5, 0.0], dtype=torch.float64) + BETA * VARIANCE * THETA
    noise = torch.randn(num, 2, generator=generator, dtype=torch.float64)
    return (mean + noise * VARIANCE.sqrt()) @ THETA


def iid(num, generator, *, evidence_error=math.nan, kind="iid"):
    reward, log_factors = base_draws(4 * num, generator)
    log_z = LOG_Z
    if evidence_error > 0:
        log_z += evidence_error * float(torch.randn((), generator=generator))
    return WeightedSamples(
        kind=kind,
        samples={},
        stats={"reward": exact_rewards(num, generator)},
        log_weights=torch.full((num,), log_z),
        log_normalizer=log_z,
        log_normalizer_error=evidence_error,
        certificate=EXACT,
        beta=BETA,
        base=BaseDraws(reward=reward, log_factors=log_factors),
    )


@pytest.mark.parametrize("beta", [0.7, 3.0, -1.0, 0.0])
@pytest.mark.parametrize("with_base", [False, True])
def test_enumerated_base_gives_the_exact_numbers(beta, with_base):
    base = BaseDraws(reward=REWARD, log_factors=(4 * BASE).log() + FACTOR) if with_base else None
    draws = enumerated(beta, base=base)
    assert kl_to_base(draws).value == pytest.approx(discrete_kl(beta), abs=1e-12)
    gain = float((tilted(beta, REWARD) - PLAIN) @ REWARD)
    assert reward_gain(draws).value == pytest.approx(gain, abs=1e-12)


def test_impossible_rewards_are_counted_in_the_divergence():
    reward = torch.tensor([-1.0, 0.5, 2.0, -inf], dtype=torch.float64)
    base = BaseDraws(reward=reward, log_factors=(4 * BASE).log() + FACTOR)
    draws = enumerated(0.7, reward, base=base)
    assert kl_to_base(draws).value == pytest.approx(discrete_kl(0.7, reward), abs=1e-12)
    assert math.isfinite(kl_to_base(draws).error)
    gain = reward_gain(draws)
    assert gain.value == inf and math.isnan(gain.error)
    # Without the base draws the lost mass is unknown.
    assert math.isnan(kl_to_base(enumerated(0.7, reward)).value)


def test_impossible_rewards_with_exact_draws():
    reward = torch.tensor([-1.0, 0.5, 2.0, -inf], dtype=torch.float64)
    x = torch.arange(4).repeat_interleave((tilted(0.7, reward) * 1_000_000).round().long())
    draws = WeightedSamples(
        kind="iid",
        samples={},
        stats={"reward": reward[x]},
        log_weights=torch.zeros(len(x)),
        certificate=EXACT,
        beta=0.7,
        base=BaseDraws(reward=reward, log_factors=(4 * BASE).log() + FACTOR),
    )
    assert kl_to_base(draws).value == pytest.approx(discrete_kl(0.7, reward), abs=1e-5)


def test_residual_weights_measure_the_target():
    clipped = (BASE.log() + torch.minimum(FACTOR + REWARD, torch.tensor(1.0))).softmax(0)
    x = torch.arange(4).repeat_interleave((clipped * 1_000_000).round().long())
    draws = WeightedSamples(
        kind="iid",
        samples={},
        stats={"reward": REWARD[x]},
        log_weights=torch.zeros(len(x)),
        residual_log_weights=(FACTOR + REWARD - 1.0).clamp(min=0.0)[x],
        certificate=EXACT,
        beta=1.0,
        base=BaseDraws(reward=REWARD, log_factors=(4 * BASE).log() + FACTOR),
    )
    assert kl_to_base(draws).value == pytest.approx(discrete_kl(1.0), abs=1e-5)
    target = float((tilted(1.0, REWARD) - PLAIN) @ REWARD)
    assert reward_gain(draws, corrected=True).value == pytest.approx(target, abs=1e-5)
    plain = float((clipped - PLAIN) @ REWARD)
    assert reward_gain(draws).value == pytest.approx(plain, abs=1e-5)


CASES = {
    "weighted, own draws": lambda n, g: weighted(n, g, with_base=False),
    "weighted, base draws": lambda n, g: weighted(n, g, with_base=True),
    "iid, base draws alone": iid,
    "iid, evidence of its own": lambda n, g: iid(n, g, evidence_error=0.02),
    "iid, known evidence": lambda n, g: iid(n, g, evidence_error=0.0),
    "independent chain": lambda n, g: iid(n, g, kind="chain"),
}


@pytest.mark.parametrize("name", CASES)
def test_errors_are_calibrated_on_a_gaussian(name):
    """Over 300 runs, squared deviations over squared errors follow a chi-square law.

    Two-sided gates at 1e-6 each, for KL and gain: an error off by a factor of 1.25, or a bias
    of half a standard error, falls outside.
    """
    generator = torch.Generator().manual_seed(11)
    runs = [CASES[name](2000, generator) for _ in range(300)]
    for estimator, truth in ((kl_to_base, TRUE_KL), (reward_gain, TRUE_GAIN)):
        found = [estimator(run) for run in runs]
        z = torch.tensor([(est.value - truth) / est.error for est in found])
        p = stats.chi2.cdf(float((z**2).sum()), len(z))
        assert 1e-6 < p < 1 - 1e-6, f"{estimator.__name__}: mean square z {float((z**2).mean())}"
        assert abs(float(z.mean())) * math.sqrt(len(z)) < 5


def test_particle_runs_are_compared_as_wholes():
    """Copies of one draw within a run carry no information: the errors must not shrink."""
    generator = torch.Generator().manual_seed(5)
    z_squares = []
    for _ in range(200):
        single = weighted(400, generator, with_base=False)
        copies = 10
        # Twenty runs, each of twenty draws copied ten times.
        order = torch.arange(400).reshape(20, 20).repeat(1, copies).reshape(-1)
        draws = WeightedSamples(
            kind="weighted",
            samples={},
            stats={"reward": single.stats["reward"][order]},
            log_weights=single.log_weights[order],
            certificate=CONSISTENT,
            beta=BETA,
            chain_sizes=(20 * copies,) * 20,
            steps={"ess": torch.zeros(20, 3)},
        )
        found = kl_to_base(draws)
        z_squares.append(((found.value - TRUE_KL) / found.error) ** 2)
    # A mean square of ten would come from counting copies as draws; 200 values of one with 19
    # degrees of freedom each stay below 2 up to a rate of 1e-9.
    assert 0.5 < sum(z_squares) / 200 < 2


def test_markov_chains_pay_for_autocorrelation():
    """Each draw of an exact sample repeated five times gives the error of the sample."""
    generator = torch.Generator().manual_seed(5)
    plain = iid(2000, generator, evidence_error=0.0)
    repeated = WeightedSamples(
        kind="chain",
        samples={},
        stats={"reward": plain.stats["reward"].repeat_interleave(5)},
        log_weights=torch.full((10_000,), LOG_Z),
        log_normalizer_error=0.0,
        certificate=EXACT,
        beta=BETA,
        base=plain.base,
    )
    ratio = reward_gain(repeated).error / reward_gain(plain).error
    assert 0.8 < ratio < 1.25


def test_what_cannot_be_told_is_nan():
    reward = torch.ones(3)
    fields = {"samples": {}, "log_weights": torch.zeros(3), "certificate": EXACT}
    alone = WeightedSamples(kind="iid", stats={"reward": reward}, beta=1.0, **fields)
    no_beta = WeightedSamples(kind="iid", stats={"reward": reward}, **fields)
    for draws in (alone, no_beta):
        assert all(math.isnan(number) for number in kl_to_base(draws))
        assert all(math.isnan(number) for number in reward_gain(draws))
    dead = {**fields, "log_weights": torch.full((3,), -inf)}
    none = WeightedSamples(kind="weighted", stats={"reward": reward}, beta=1.0, **dead)
    assert math.isnan(kl_to_base(none).value) and math.isnan(reward_gain(none).value)
    for estimator in (kl_to_base, reward_gain):
        with pytest.raises(ValueError, match="reward"):
            estimator(WeightedSamples(kind="iid", **fields))


@pytest.mark.parametrize(
    ("certificate", "expected"),
    [
        (EXACT, (0.0, 0.0)),
        (
            Certificate(target="t", law="bounded", total_variation=0.25, confidence=0.9),
            (0.25, 0.0),
        ),
        (
            Certificate(
                target="t",
                law="bounded",
                total_variation=0.25,
                confidence=0.9,
                estimated_total_variation=0.1,
            ),
            (0.25, 0.0),
        ),
        (
            Certificate(target="t", law="consistent", estimated_total_variation=0.125),
            (0.125, math.nan),
        ),
        (CONSISTENT, (math.nan, math.nan)),
        (Certificate(target="t", law="bounded", kl=0.1, confidence=1.0), (math.nan, math.nan)),
    ],
)
def test_total_variation_reads_the_certificate(certificate, expected):
    draws = WeightedSamples(
        kind="iid", samples={}, log_weights=torch.zeros(2), certificate=certificate
    )
    assert tuple(total_variation(draws)) == pytest.approx(expected, nan_ok=True)


def test_estimate_prints_and_unpacks():
    value, error = Estimate(1.23456, 0.0123)
    assert (value, error) == (1.23456, 0.0123)
    assert str(Estimate(1.23456, 0.0123)) == "1.235 ± 0.012"


def test_noise_of_the_observations_cancels_from_base_draws():
    """Both evidences come from the same base draws, so a small tilt has a small error."""
    generator = torch.Generator().manual_seed(2)
    reward, log_factors = base_draws(4000, generator)
    draws = WeightedSamples(
        kind="iid",
        samples={},
        stats={"reward": exact_rewards(1000, generator)},
        log_weights=torch.zeros(1000),
        certificate=EXACT,
        beta=1e-4,
        base=BaseDraws(reward=reward, log_factors=log_factors),
    )
    # Rewards of standard deviation about one, times beta, over the root of the draws.
    assert kl_to_base(draws).error < 1e-5
