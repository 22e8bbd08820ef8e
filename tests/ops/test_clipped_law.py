# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from pyro_tilt.ops.clipped_law import (
    ClippedLaw,
    clipped_mass_from_accepted,
    clipped_mass_from_proposals,
    clipped_mass_upper,
    total_variation_from_accepted,
)
from pyro_tilt.ops.pool import pooled_rejection

inf = math.inf
CLOSE = {"rtol": 1e-10, "atol": 1e-10}


@pytest.fixture
def law():
    """200 random bases of 12 values, with baselines between the weights and some values of -inf."""
    log_p = torch.log_softmax(2 * torch.randn(200, 12, dtype=torch.float64), -1)
    A = 2 * torch.randn(200, 12, dtype=torch.float64)
    A[::5, 3] = -inf
    low, high = A[:, [0, 1, 2]].amin(-1), A.amax(-1)
    b = low + (high + 0.5 - low) * torch.rand(200, dtype=torch.float64)
    return ClippedLaw(log_p, A, b)


def quantities(law):
    """Everything from sums over the values, with no identity used."""
    p, w, level = law.base_log_prob.exp(), law.A.exp(), law.b.exp().unsqueeze(-1)
    accepted = p * torch.minimum(w / level, torch.ones(()).double())
    alpha = accepted.sum(-1, keepdim=True)
    target = p * w / (p * w).sum(-1, keepdim=True)
    return p, w, level, alpha, target, accepted / alpha


def kl(a, b):
    return torch.where(a > 0, a * (a / b).log(), 0.0).sum(-1)


def test_law_and_acceptance(law):
    p, w, level, alpha, target, draws = quantities(law)
    torch.testing.assert_close(law.log_prob.exp(), draws, **CLOSE)
    torch.testing.assert_close(law.target_log_prob.exp(), target, **CLOSE)
    torch.testing.assert_close(law.acceptance_rate, alpha.squeeze(-1), **CLOSE)
    torch.testing.assert_close(law.expected_proposals, 1 / alpha.squeeze(-1), **CLOSE)
    torch.testing.assert_close(law.log_normalizer.exp(), (p * w).sum(-1), **CLOSE)
    clipped = (p * torch.minimum(w, level)).sum(-1)
    torch.testing.assert_close(law.clipped_log_normalizer.exp(), clipped, **CLOSE)
    kept = law.clipped_log_normalizer - law.log_normalizer
    torch.testing.assert_close(1 - law.clipped_mass, kept.exp(), **CLOSE)
    cost = (law.b - law.log_normalizer).exp() / (1 - law.clipped_mass)
    torch.testing.assert_close(law.expected_proposals, cost, **CLOSE)
    assert (law.b >= law.clipped_log_normalizer - 1e-12).all()


def test_distances(law):
    *_, target, draws = quantities(law)
    torch.testing.assert_close(law.total_variation, (draws - target).abs().sum(-1) / 2, **CLOSE)
    torch.testing.assert_close(law.kl_to_target, kl(draws, target), **CLOSE)
    torch.testing.assert_close(law.kl_from_target, kl(target, draws), **CLOSE)
    above = (target * law.A.gt(law.b.unsqueeze(-1))).sum(-1)
    assert (law.total_variation <= law.clipped_mass + 1e-14).all()
    assert (law.clipped_mass <= above + 1e-14).all()
    assert (law.kl_to_target <= -torch.log1p(-law.clipped_mass) + 1e-14).all()
    assert (law.clipped_mass > 1e-3).sum() > 100


def test_density_ratio_and_regularised_objective(law):
    p, _, _, _, target, draws = quantities(law)
    assert (draws * (1 - law.clipped_mass).unsqueeze(-1) <= target + 1e-12).all()
    reward = torch.where(draws > 0, draws * law.A, 0.0).sum(-1)
    gap = law.log_normalizer - (reward - kl(draws, p))
    torch.testing.assert_close(gap, law.kl_to_target, **CLOSE)


def test_residual_weights_restore_the_target(law):
    *_, target, draws = quantities(law)
    weighted = draws * law.residual_log_weights.exp()
    torch.testing.assert_close(weighted / weighted.sum(-1, keepdim=True), target, **CLOSE)
    odds = (draws * law.residual_log_weights.expm1()).sum(-1)
    torch.testing.assert_close(odds, law.clipped_mass / (1 - law.clipped_mass), **CLOSE)


@pytest.mark.parametrize("cap", [1, 4])
def test_capped_law_by_enumeration(law, cap):
    p, w, level, alpha, _, _ = quantities(law)
    passed = p * torch.minimum(w / level, torch.ones(()).double())
    rejected = p - passed
    total = sum(passed * (1 - alpha) ** k for k in range(cap))
    total = total + rejected * (1 - alpha) ** (cap - 1)
    torch.testing.assert_close(law.capped_prob(cap), total, **CLOSE)
    torch.testing.assert_close(law.capped_prob(cap).sum(-1), torch.ones(200).double(), **CLOSE)


def test_unclipped_law_is_the_target():
    log_p = torch.tensor([0.2, 0.8]).log()
    law = ClippedLaw(log_p, torch.tensor([1.0, -2.0]), torch.tensor(3.0))
    assert law.clipped_mass == law.total_variation == law.kl_from_target == 0
    torch.testing.assert_close(law.log_prob, law.target_log_prob)
    sure = ClippedLaw(log_p, torch.zeros(2), torch.tensor(0.0))
    torch.testing.assert_close(sure.capped_prob(3), log_p.double().exp())


def test_estimates_over_the_whole_base_are_exact(law):
    # Each value taken once, weighted by its probability: the estimators become the sums.
    weighted = clipped_mass_from_proposals(
        law.A, law.b.unsqueeze(-1), log_weights=law.base_log_prob + law.A
    )
    torch.testing.assert_close(weighted, law.clipped_mass, **CLOSE)


@pytest.fixture(scope="module")
def accepted_runs():
    """2,000 groups of 500 accepted draws of one law with a clipped mass of about 0.2."""
    log_p = torch.tensor([0.4, 0.35, 0.2, 0.05], dtype=torch.float64).log()
    A = torch.tensor([-1.0, 0.5, 2.0, 3.0], dtype=torch.float64)
    law = ClippedLaw(log_p, A, torch.tensor(1.7, dtype=torch.float64))
    generator = torch.Generator().manual_seed(0)
    result = pooled_rejection(
        lambda n: torch.multinomial(log_p.exp(), n, replacement=True, generator=generator),
        lambda x: A[x] - law.b,
        1_000_000,
        max_block=2_000_000,
        generator=torch.Generator().manual_seed(1),
    )
    return law, A[result.batch].reshape(2000, 500)


def test_estimates_from_accepted_draws(accepted_runs):
    # Means of 2,000 runs within 5 standard errors (6e-7), spread against the stated error 10 %.
    law, A = accepted_runs
    value, error = clipped_mass_from_accepted(A, law.b)
    odds = value / (1 - value)
    exact = law.clipped_mass / (1 - law.clipped_mass)
    assert abs(odds.mean() - exact) < 5 * odds.std() / math.sqrt(2000)
    assert (value.std() / error.mean()).item() == pytest.approx(1.0, abs=0.1)
    distance = total_variation_from_accepted(A, law.b, law.clipped_mass)
    error = distance.std() / math.sqrt(2000)
    assert abs(distance.mean() - law.total_variation) < 5 * error
    assert law.total_variation < 0.9 * law.clipped_mass


def test_upper_bound_covers(accepted_runs):
    # At confidence 0.9, misses in 2,000 runs are at most binomial(2000, 0.1): 260 has p < 1e-5.
    law, A = accepted_runs
    bounds = [clipped_mass_upper(a, float(law.b), 3.0, confidence=0.9) for a in A]
    bounds = torch.tensor(bounds)
    assert (bounds < law.clipped_mass).sum() < 260
    assert bounds.mean() < 2 * law.clipped_mass
    many = clipped_mass_upper(A.reshape(-1), float(law.b), 3.0, confidence=0.9)
    assert law.clipped_mass < many < 1.02 * law.clipped_mass


def test_upper_bound_by_hand():
    A = torch.tensor([0.0, 0.0, 1.0, 2.0], dtype=torch.float64)
    odds = torch.tensor([0.0, 0.0, math.e - 1, math.e**2 - 1], dtype=torch.float64)
    term = math.log(2 / 0.05)
    bound = odds.mean() + (2 * odds.var() * term / 4).sqrt() + 7 * (math.e**3 - 1) * term / 9
    assert clipped_mass_upper(A, 0.0, 3.0) == pytest.approx((bound / (1 + bound)).item(), rel=1e-12)


def test_upper_bound_where_there_is_none():
    A = torch.randn(100)
    assert clipped_mass_upper(A, 0.0, inf) is None
    assert clipped_mass_upper(A.clamp(max=0.5), 1.0, 0.9) == 0.0
    assert clipped_mass_upper(torch.zeros(1), -1.0, 0.0) == 1.0
    assert clipped_mass_upper(torch.zeros(10), 0.0, 1e4) == 1.0
    with pytest.raises(ValueError, match="above its upper bound"):
        clipped_mass_upper(torch.ones(10), 0.0, 0.5)
    with pytest.raises(ValueError, match="confidence"):
        clipped_mass_upper(torch.zeros(10), 0.0, 1.0, confidence=1.0)


def test_no_target_to_clip():
    with pytest.raises(ValueError, match="every weight is zero"):
        clipped_mass_from_proposals(torch.full((3,), -inf), 0.0)
    one = clipped_mass_from_accepted(torch.tensor([1.0]), 0.5)
    assert one[0] > 0 and one[1].isnan()
