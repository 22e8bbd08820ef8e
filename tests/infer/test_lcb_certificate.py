# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch
from scipy import stats

from pyro_tilt.infer.lcb_certificate import clipping


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


def test_clipping_is_read_off_the_accepted_draws_alone():
    b, bound, num = 0.5, 3.0, 600
    log_weights = torch.linspace(-1.0, 2.0, num, dtype=torch.float64)
    capped = torch.zeros(num, dtype=torch.bool)
    capped[::6] = True
    found = clipping(log_weights, capped, baseline=b, log_bound=bound, confidence=0.9, may_cap=True)
    ratio = (log_weights[~capped] - b).clamp(min=0.0).exp()
    odds = ratio - 1.0
    kappa = float(odds.mean() / (1.0 + odds.mean()))
    assert found.clipped_mass == pytest.approx(kappa)
    distance = float(((1.0 - kappa) * ratio - 1.0).clamp(min=0.0).mean())
    assert 0.0 < distance < 0.9 * kappa
    assert found.total_variation == pytest.approx(distance + 1 / 6)
    # Each of the two bounds holds at 95 %: empirical Bernstein, and Clopper and Pearson.
    log_term, accepted = math.log(2 / 0.05), len(odds)
    mean = float(odds.mean() + (2 * odds.var() * log_term / accepted).sqrt())
    mean += 7 * math.expm1(bound - b) * log_term / (3 * (accepted - 1))
    assert found.clipped_mass_upper == pytest.approx(mean / (1 + mean))
    share = found.total_variation_upper - found.clipped_mass_upper
    assert stats.binom.cdf(100, 600, share) == pytest.approx(0.05)
