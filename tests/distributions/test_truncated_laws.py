# SPDX-License-Identifier: Apache-2.0
"""The laws that closed-form tilts need: accuracy in their tails, quantiles, gradients."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from pyro_tilt.distributions.generalized_logistic import GeneralizedGumbel, GeneralizedLogistic
from pyro_tilt.distributions.truncated_exponential import TruncatedExponential, log_sinhc
from pyro_tilt.distributions.truncated_normal import TruncatedNormal

INTERVALS = [
    (0.0, 1.0, -math.inf, math.inf),
    (-20.0, 1.0, 0.0, math.inf),
    (20.0, 1.0, -math.inf, 0.0),
    (-1e4, 1.0, 0.0, math.inf),
    (0.3, 2.0, -1.0, 4.0),
    (5.0, 1.0, -2.0, -1.9),
    (0.0, 1.0, 1.0, 1.001),
    (-3.0, 0.5, -10.0, 30.0),
    (1e3, 2.0, -5.0, 5.0),
    (1.0, 2.0, -8.0, 1.5),
]


def tail_integrals(loc, scale, low, high):
    """Log mass and mean on a fine grid around the mode, relative to the density there."""
    mode = min(max(loc, low), high)
    reach = 45 * scale / max(1.0, abs(mode - loc) / scale)
    start, stop = max(low, mode - reach), min(high, mode + reach)
    x = torch.linspace(start, stop, 400_001, dtype=torch.float64)
    height = torch.exp(-((x - mode) * (x + mode - 2 * loc)) / (2 * scale**2))
    mass = torch.trapezoid(height, x)
    return mode, mass.log().item(), (torch.trapezoid(height * (x - mode), x) / mass).item()


@pytest.mark.parametrize("loc, scale, low, high", INTERVALS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_truncated_normal_far_and_near(loc, scale, low, high, dtype):
    law = TruncatedNormal(torch.tensor(loc, dtype=dtype), scale, low, high)
    mode, log_mass, excess = tail_integrals(loc, scale, low, high)
    tolerance = 1e-8 if dtype == torch.float64 else 2e-4
    assert law.mode.item() == pytest.approx(mode, rel=tolerance)
    assert law.log_prob(law.mode).item() == pytest.approx(-log_mass, rel=tolerance, abs=tolerance)
    shift = (law.mean - law.mode).item()
    assert shift == pytest.approx(excess, rel=10 * tolerance, abs=tolerance * law.stddev.item())
    levels = torch.tensor([0.01, 0.3, 0.77, 0.99], dtype=dtype)
    values = law.icdf(levels)
    assert law.support.check(values).all()
    torch.testing.assert_close(law.cdf(values), levels, atol=10 * tolerance, rtol=0)


@pytest.mark.parametrize("low, high", [(-math.inf, 1.0), (1.0, math.inf), (1.0, 2.0)])
def test_support_has_a_bijection(low, high):
    law = TruncatedNormal(torch.tensor(0.0), 1.0, low, high)
    transform = torch.distributions.biject_to(law.support)
    values = transform(torch.tensor([-3.0, 0.0, 3.0]))
    assert law.support.check(values).all()
    torch.testing.assert_close(transform.inv(values), torch.tensor([-3.0, 0.0, 3.0]))


@pytest.mark.parametrize("loc, scale, low, high", INTERVALS)
def test_truncated_normal_draws(loc, scale, low, high):
    law = TruncatedNormal(torch.tensor(loc, dtype=torch.float64), scale, low, high)
    ranks = law.cdf(law.sample((5000,)))
    # Ten tests at 1e-6 each.
    assert stats.kstest(ranks.numpy(), "uniform").pvalue > 1e-6


@pytest.mark.parametrize("loc, scale, low, high", [INTERVALS[i] for i in (1, 2, 4, 5)])
def test_truncated_normal_gradients(loc, scale, low, high):
    loc = torch.tensor(loc, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(scale, dtype=torch.float64, requires_grad=True)
    levels = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    x = TruncatedNormal(loc, scale, low, high).icdf(levels).detach()

    def law(loc, scale):
        return TruncatedNormal(loc, scale, low, high)

    assert torch.autograd.gradcheck(lambda m, s: law(m, s).icdf(levels), (loc, scale))
    assert torch.autograd.gradcheck(lambda m, s: law(m, s).log_prob(x), (loc, scale))
    assert torch.autograd.gradcheck(lambda m, s: law(m, s).mean, (loc, scale))


@pytest.mark.parametrize("tilt", [-1e5, -30.0, -1e-4, 0.0, 1e-9, 2e-3, 0.4, 700.0])
def test_truncated_exponential(tilt):
    law = TruncatedExponential(torch.tensor(tilt, dtype=torch.float64), -1.0, 2.0)
    levels = torch.linspace(0.0, 1.0, 13, dtype=torch.float64)
    values = law.icdf(levels)
    torch.testing.assert_close(values[[0, -1]], torch.tensor([-1.0, 2.0], dtype=torch.float64))
    torch.testing.assert_close(law.cdf(values), levels, atol=1e-9, rtol=0)
    # The density is the derivative of the distribution function, mean and variance its moments.
    node, weight = (torch.as_tensor(a) for a in np.polynomial.legendre.leggauss(120))
    reach = min(3.0, 60.0 / max(abs(tilt), 1e-9))
    start = 2.0 - reach if tilt > 0 else -1.0
    x = start + reach * (node + 1) / 2
    mass = law.log_prob(x).exp() * weight * reach / 2
    assert mass.sum().item() == pytest.approx(1.0, rel=1e-9)
    mean = (mass * x).sum()
    assert law.mean.item() == pytest.approx(mean.item(), rel=1e-8, abs=1e-9)
    variance = (mass * (x - mean) ** 2).sum().item()
    assert law.variance.item() == pytest.approx(variance, rel=1e-6)
    slope = torch.tensor(tilt, dtype=torch.float64, requires_grad=True)
    middle = levels[1:-1]
    assert torch.autograd.gradcheck(lambda t: TruncatedExponential(t).icdf(middle), slope)


def test_log_sinhc_is_smooth():
    u = torch.tensor([0.0, 1e-4, 0.29999, 0.30001, 2.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(log_sinhc, u)
    assert torch.autograd.gradgradcheck(log_sinhc, u)


def test_logs_of_gamma_variables_at_small_shapes():
    # With shapes of 1e-3 a gamma variable underflows single precision almost always.
    shape = torch.tensor(1e-3)
    draws = GeneralizedLogistic(0.0, 1.0, shape, 1.0).sample((20_000,))
    assert draws.isfinite().all()
    assert draws.mean().item() == pytest.approx(-1000.0, abs=5 * 1000 / math.sqrt(20_000))
    law = GeneralizedGumbel(0.0, 1.0, shape)
    ranks = law.cdf(law.sample((2000,)).clamp(max=80.0))
    below = (ranks < ranks.max()).double().mean().item()
    assert below == pytest.approx(law.cdf(torch.tensor(80.0)).item(), abs=0.05)


def test_generalized_gumbel_draws():
    law = GeneralizedGumbel(torch.tensor(0.5, dtype=torch.float64), 0.7, 0.4)
    assert stats.kstest(law.cdf(law.sample((5000,))).numpy(), "uniform").pvalue > 1e-6
