# SPDX-License-Identifier: Apache-2.0
"""The samplers' laws with a hundred times the draws; in ``make test-full`` only.

Each gate has a false-alarm rate of at most 1e-5. A bias of one part in a thousand, which the short
tests cannot see, fails here.
"""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from pyro_tilt.infer import LCB, ImportanceSampler, Rejection, ZeroWeights
from pyro_tilt.testing.exact_programs import conjugate_gaussian, two_categoricals

pytestmark = pytest.mark.slow

P_VALUE, Z_SCORE = 1e-5, 4.5


def _chi_square(counts, law):
    kept = law > 0
    assert counts[~kept].sum() == 0
    expected = law[kept] * counts.sum()
    statistic = float(((counts[kept] - expected).square() / expected).sum())
    assert stats.chi2.sf(statistic, int(kept.sum()) - 1) > P_VALUE


@pytest.mark.parametrize("observed", [False, True])
def test_rejection_over_a_million_draws(observed):
    case = two_categoricals(observed=observed)
    result = Rejection(case.aligned(), num_samples=1_000_000, seed=1, progress=False).run()
    counts = torch.bincount(case.state(result.samples), minlength=12).double()
    _chi_square(counts, case.probabilities)


@pytest.mark.parametrize("epsilon", [0.3, 0.1])
def test_lcb_over_a_million_draws(epsilon):
    case = two_categoricals()
    result = LCB(
        case.aligned(), epsilon=epsilon, num_samples=1_000_000, seed=1, progress=False
    ).run()
    law = (case.log_base + case.log_tilt.clamp(max=result.info["baseline"])).softmax(0)
    counts = torch.bincount(case.state(result.samples), minlength=12).double()
    _chi_square(counts, law)
    distance = float((law - case.probabilities).abs().sum() / 2)
    assert result.certificate.estimated_total_variation == pytest.approx(distance, abs=2e-3)
    assert distance <= result.certificate.total_variation


@pytest.mark.filterwarnings("ignore::pyro_tilt.infer.SamplerWarning")
@pytest.mark.parametrize("sampler", [ImportanceSampler, Rejection, LCB])
@pytest.mark.parametrize("num_samples", [2, 5])
def test_evidence_of_very_short_runs_is_unbiased(sampler, num_samples):
    case = two_categoricals(observed=True)
    options = {"num_calibration": 100} if sampler is LCB else {}
    ratios = []
    for seed in range(2000):
        run = sampler(
            case.aligned(), num_samples=num_samples, seed=seed, progress=False, **options
        ).run
        try:
            ratios.append(math.exp(float(run().log_normalizer) - case.log_normalizer))
        except ZeroWeights:
            # Nothing but excluded states: the estimate of this run is zero.
            ratios.append(0.0)
    score = (np.mean(ratios) - 1.0) / (np.std(ratios, ddof=1) / math.sqrt(len(ratios)))
    assert abs(score) < Z_SCORE


def test_lcb_bound_covers_at_its_confidence():
    case = two_categoricals()
    misses = 0
    for seed in range(1000):
        result = LCB(
            case.aligned(), baseline=-0.4, num_samples=300, seed=seed, confidence=0.8
        ).run()
        log_kept = (case.log_base + case.log_tilt.clamp(max=-0.4)).logsumexp(0)
        mass = 1.0 - float((log_kept - case.log_normalizer).exp())
        misses += result.info["clipped_mass_upper"] < mass
    # At most one in five may miss; a binomial above this has a probability below 1e-5.
    assert misses <= stats.binom.isf(P_VALUE, 1000, 0.2)


def test_importance_moments_over_four_million_draws():
    case = conjugate_gaussian()
    result = ImportanceSampler(
        case.aligned(), num_samples=1_000_000, num_chains=4, seed=0, progress=False
    ).run()
    assert float(result.log_normalizer) == pytest.approx(
        case.log_normalizer, abs=Z_SCORE * float(result.log_normalizer_error) + 1e-6
    )
    for site, exact, variance in zip("zx", case.mean, case.covariance.diagonal()):
        error = math.sqrt(float(variance) / result.ess)
        mean = float(result.expectation(lambda s, site=site: s[site].double(), weights="raw"))
        assert abs(mean - float(exact)) < Z_SCORE * error
