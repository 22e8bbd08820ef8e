# SPDX-License-Identifier: Apache-2.0
"""Scalar continuous bases with any reward, against closed forms and scipy's quadrature."""

import math

import numpy as np
import pyro.distributions as dist
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
import torch
from pyro.distributions.torch_distribution import ExpandedDistribution
from torch.distributions import kl_divergence

from pyro_tilt import rewards
from pyro_tilt.distributions import Tilted

# Each goodness-of-fit test fails a right sampler with this probability; seeds are fixed.
GATE = 1e-6
DTYPES = [torch.float32, torch.float64]


def integrated(base, reward, points):
    """log Z by scipy, with break points given by hand."""

    def integrand(x):
        x = torch.tensor(x, dtype=torch.float64)
        return float((base.log_prob(x) + reward(x)).exp())

    total = 0.0
    for low, high in zip(points, points[1:]):
        total += scipy.integrate.quad(integrand, low, high, epsabs=1e-13, epsrel=1e-12, limit=200)[
            0
        ]
    return math.log(total)


@pytest.mark.parametrize("dtype", DTYPES)
def test_beta_linear_is_kummer(dtype):
    generator = torch.Generator().manual_seed(5)
    a, b = (0.3 + 4 * torch.rand(2, 3, 4, generator=generator, dtype=torch.float64)).to(dtype)
    theta = (20 * torch.randn(4, generator=generator, dtype=torch.float64)).to(dtype)
    tilted = Tilted(dist.Beta(a, b), rewards.Linear(theta, 0))
    expected = np.log(scipy.special.hyp1f1(*(v.double().numpy() for v in (a, a + b, theta))))
    assert tilted.tractability.normalizer == "quadrature"
    assert tilted.log_normalizer.dtype == dtype
    rounding = 2e-6 * abs(expected).max() if dtype == torch.float32 else 0.0
    error = abs(tilted.log_normalizer.double().numpy() - expected).max()
    assert error <= min(tilted.log_normalizer_error, 1e-7) + rounding
    # Where the density stays finite at both ends nothing is lost to their rounding.
    smooth = (torch.minimum(a, b) > 1).numpy()
    assert abs(tilted.log_normalizer.double().numpy() - expected)[smooth].max() <= 1e-9 + rounding


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("base", "theta", "points"),
    [
        (lambda t: dist.LogNormal(t(0.3), t(0.8)), -2.0, [1e-6, 0.1, 1, 10, 60]),
        (lambda t: dist.HalfCauchy(t(2.0)), -0.5, [0, 1, 10, 120]),
        (lambda t: dist.Pareto(t(0.5), t(1.5)), -3.0, [0.5, 1, 3, 30]),
        (lambda t: dist.Weibull(t(2.0), t(0.7)), -1.5, [0, 1e-3, 0.1, 1, 30]),
        (lambda t: dist.InverseGamma(t(2.0), t(1.0)), -0.7, [0, 0.3, 1, 5, 80]),
    ],
)
def test_heavy_tails_with_a_negative_slope(base, theta, points, dtype):
    base32 = base(lambda v: torch.tensor(v, dtype=dtype))
    base64 = base(lambda v: torch.tensor(v, dtype=torch.float64))
    tilted = Tilted(base32, rewards.Linear(torch.tensor(theta, dtype=dtype)))
    expected = integrated(base64, lambda x: theta * x, points)
    tolerance = 2e-6 if dtype == torch.float32 else 1e-9
    assert tilted.log_normalizer.item() == pytest.approx(expected, abs=tolerance)


def test_bounded_black_box_on_student_t():
    base = dist.StudentT(torch.tensor(2.5, dtype=torch.float64), 1.0, 2.0)

    def reward(x):
        return 3 * torch.tanh(x - 2) + 2 * torch.exp(-((x + 1) ** 2))

    tilted = Tilted(base, reward)
    expected = integrated(base, reward, [-1e5, -1e3, -100, -10, -2, 0, 2, 4, 10, 100, 1e3, 1e5])
    beyond = 2 * scipy.stats.t(2.5, scale=2).sf(1e5 - 1) * math.exp(3)
    assert abs(tilted.log_normalizer.item() - expected) < 1e-9 + beyond


@pytest.mark.parametrize("dtype", DTYPES)
def test_batches_of_distant_locations_and_scales(dtype):
    loc = torch.tensor([-1e4, 0.0, 3.0, 1e5], dtype=dtype)
    smallest = 1.0 if dtype == torch.float32 else 1e-3
    scale = torch.tensor([[smallest], [1.0], [1e3]], dtype=dtype)
    base = dist.Normal(loc, scale)
    tilted = Tilted(base, lambda x: 2 * (x > loc).to(dtype))
    # The jump can be placed no better than a value can be told from its neighbour.
    error = (tilted.log_normalizer - math.log(0.5 + 0.5 * math.exp(2))).abs()
    resolution = torch.finfo(dtype).eps * (1 + loc.abs()) / scale
    assert (error <= 1e-9 + 2 * resolution).all()


def test_narrow_peaks_far_from_the_base_are_found():
    base = dist.Uniform(torch.zeros(3, dtype=torch.float64), 1e6)
    peak = torch.tensor([3.0, 12345.6, 999_999.0], dtype=torch.float64)
    width = torch.tensor([1e-3, 1.0, 1e-2], dtype=torch.float64)
    tilted = Tilted(base, lambda x: -0.5 * ((x - peak) / width) ** 2)
    expected = (width * math.sqrt(2 * math.pi) / 1e6).log()
    torch.testing.assert_close(tilted.log_normalizer, expected, atol=1e-8, rtol=0.0)
    torch.testing.assert_close(tilted.mean, peak, atol=1e-6, rtol=0.0)
    torch.testing.assert_close(tilted.stddev, width, atol=0.0, rtol=1e-6)


def test_separated_narrow_modes_of_a_mixture():
    weights = torch.tensor([0.3, 0.7], dtype=torch.float64)
    places = torch.tensor([-1e5, 1e5], dtype=torch.float64)
    spread = torch.tensor([0.01, 0.5], dtype=torch.float64)
    base = dist.MixtureSameFamily(dist.Categorical(weights), dist.Normal(places, spread))
    tilted = Tilted(base, lambda x: torch.where(x < 0, 1.5, 0.0).double())
    mass = weights * torch.tensor([math.exp(1.5), 1.0], dtype=torch.float64)
    assert tilted.log_normalizer.item() == pytest.approx(mass.sum().log().item(), abs=1e-8)
    share = (tilted.sample((20_000,)) < 0).sum().item()
    assert scipy.stats.binomtest(share, 20_000, float(mass[0] / mass.sum())).pvalue > GATE


@pytest.mark.parametrize("dtype", DTYPES)
def test_indicators(dtype):
    edges = torch.tensor([[-0.5, 0.25], [1.5, 2.0], [3.0, 3.0625]], dtype=dtype)
    base = dist.Normal(torch.tensor(0.0, dtype=dtype), 1.0).expand((3,))
    inside = rewards.Constraint(lambda x: (x > edges[:, 0]) & (x < edges[:, 1]))
    tilted = Tilted(base, inside)
    cdf = scipy.special.ndtr(edges.double().numpy())
    expected = np.log(cdf[:, 1] - cdf[:, 0])
    tolerance = 1e-5 if dtype == torch.float32 else 1e-8
    np.testing.assert_allclose(tilted.log_normalizer, expected, atol=tolerance)
    draws = tilted.sample((5000,))
    assert ((draws > edges[:, 0]) & (draws < edges[:, 1])).all()


def _kolmogorov(tilted, low, num=20_000):
    """p-value of draws against the integral of the law's own density from ``low``."""
    draws = np.sort(tilted.sample((num,)).double().numpy())
    knots = np.concatenate([[low], np.quantile(draws, np.linspace(0, 1, 400))])
    grid = np.linspace(knots[:-1], knots[1:], 65)
    density = tilted.log_prob(torch.tensor(grid)).exp().numpy()
    mass = scipy.integrate.simpson(density, x=grid, axis=0).cumsum()
    return scipy.stats.kstest(draws, lambda x: np.interp(x, knots[1:], mass)).pvalue


@pytest.mark.parametrize(
    ("tilted", "low"),
    [
        (Tilted(dist.Beta(2.5, 1.3), rewards.Linear(torch.tensor(-4.0))), 0.0),
        (Tilted(dist.HalfCauchy(1.0), rewards.Linear(torch.tensor(-0.5))), 0.0),
        (Tilted(dist.StudentT(4.0, 1.0, 2.0), lambda x: 2 * torch.sin(x)), -4e3),
        (Tilted(dist.Normal(1.0, 2.0), lambda x: (x.abs() < 1.5) * 2.0), -30.0),
        (Tilted(dist.LogNormal(0.0, 1.0), rewards.Linear(torch.tensor(-1.0))), 1e-9),
    ],
)
def test_draws_follow_the_density(tilted, low):
    assert tilted.tractability.sampling == "quadrature"
    assert tilted.tractability.error < 1e-3
    assert _kolmogorov(tilted, low) > GATE


def test_moments_entropy_and_kl():
    a, b, theta = 2.0, 3.5, 4.0
    base = dist.Beta(torch.tensor(a).double(), torch.tensor(b).double())
    tilted = Tilted(base, rewards.Linear(torch.tensor(theta).double()))
    ratio = scipy.special.hyp1f1([a, a + 1, a + 2], [a + b, a + b + 1, a + b + 2], theta)
    mean = a / (a + b) * ratio[1] / ratio[0]
    second = a * (a + 1) / (a + b) / (a + b + 1) * ratio[2] / ratio[0]
    assert tilted.mean.item() == pytest.approx(mean, abs=1e-9)
    assert tilted.variance.item() == pytest.approx(second - mean**2, abs=1e-9)
    kl = theta * mean - math.log(ratio[0])
    assert kl_divergence(tilted, base).item() == pytest.approx(kl, abs=1e-9)
    # Against another law, and by the definition of entropy.
    other = dist.Beta(torch.tensor(1.0).double(), torch.tensor(1.0).double())
    assert kl_divergence(tilted, other).item() == pytest.approx(-tilted.entropy().item(), abs=1e-8)


@pytest.mark.parametrize(
    "base",
    [
        dist.LogNormal(torch.tensor(0.3).double(), torch.tensor(0.8).double()),
        dist.Weibull(torch.tensor(2.0).double(), torch.tensor(1.5).double()),
    ],
    ids=["LogNormal", "Weibull"],
)
def test_a_transformed_base_that_was_used_before(base):
    # Its transforms and their inverses hold each other from the first density on.
    base.log_prob(torch.tensor(0.5).double())
    tilted = Tilted(base, rewards.Linear(torch.tensor(-0.5).double()), 1.3)
    kl = -0.65 * tilted.mean - tilted.log_normalizer
    assert kl_divergence(tilted, base).item() == pytest.approx(kl.item(), abs=1e-8)


def test_a_base_that_pyro_expanded():
    inner = dist.Normal(torch.tensor([0.3, -1.0]).double(), 1.5)
    base = ExpandedDistribution(inner, (3, 2))
    tilted = Tilted(base, lambda x: 0.5 * x)
    expected = Tilted(inner, rewards.Linear(torch.tensor(0.5).double())).log_normalizer
    torch.testing.assert_close(tilted.log_normalizer, expected.expand(3, 2), atol=1e-6, rtol=1e-6)
    assert tilted.sample((5,)).shape == (5, 3, 2)


def test_moments_that_do_not_exist_are_not_numbers():
    df = torch.tensor([0.8, 1.7, 2.6, 8.0], dtype=torch.float64)
    tilted = Tilted(dist.StudentT(df), torch.tanh)
    assert tilted.mean.isnan().tolist() == [True, False, False, False]
    assert tilted.variance.isfinite().tolist() == [False, False, True, True]
    assert tilted.variance[1] == math.inf


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("base", "reward"),
    [
        (lambda t: dist.StudentT(t(3.0)), lambda x: 0.1 * x),
        (lambda t: dist.Cauchy(t(0.0), t(1.0)), lambda x: -1e-3 * x),
        (lambda t: dist.LogNormal(t(0.0), t(1.0)), lambda x: 1e-3 * x),
        (lambda t: dist.HalfCauchy(t(1.0)), lambda x: 1e-3 * x),
        (lambda t: dist.Normal(t(0.0), t(1.0)), lambda x: 0.6 * x * x),
        (lambda t: dist.Normal(t(0.0), t(1.0)), lambda x: x**4),
        (lambda t: dist.Normal(t(0.0), t(1.0)), torch.exp),
        (lambda t: dist.Beta(t(0.5), t(1.0)), lambda x: -0.6 * x.log()),
        (lambda t: dist.Laplace(t(0.0), t(1.0)), lambda x: 1.01 * x),
        (lambda t: dist.Gamma(t(2.0), t(1.0)), lambda x: x),
        (lambda t: dist.Pareto(t(1.0), t(2.0)), lambda x: 2.1 * x.log()),
    ],
)
def test_tilts_that_do_not_exist_are_refused(base, reward, dtype):
    tilted = Tilted(base(lambda v: torch.tensor(v, dtype=dtype)), reward)
    with pytest.raises(ValueError, match="does not exist"):
        tilted.sample()


@pytest.mark.parametrize(
    ("base", "reward", "expected"),
    [
        # Near the edge of existence, on its good side.
        (dist.Laplace(torch.zeros(()).double(), 1.0), lambda x: 0.9 * x, -math.log(1 - 0.81)),
        (dist.Pareto(torch.ones(()).double(), 2.0), lambda x: 1.5 * x.log(), math.log(4.0)),
        (dist.Normal(torch.zeros(()).double(), 1.0), lambda x: 0.49 * x * x, math.log(50) / 2),
        (dist.Normal(torch.zeros(()).double(), 1.0), lambda x: 50 * x, 1250.0),
    ],
)
def test_tilts_that_barely_exist_are_found(base, reward, expected):
    tilted = Tilted(base, reward)
    assert tilted.log_normalizer.item() == pytest.approx(expected, abs=1e-7)


def test_gradients_to_beta_location_and_support():
    def grads(value, inputs):
        return [g.item() for g in torch.autograd.grad(value, inputs)]

    loc, beta, width = (torch.tensor(v).double().requires_grad_() for v in (0.4, 0.7, 2.0))
    tilted = Tilted(dist.Normal(loc, 1.5), lambda x: x - 0.1 * x * x, beta)
    with torch.no_grad():
        tilted.sample((2,))
    x = torch.tensor(0.3).double()
    by_loc, by_beta = grads(tilted.log_prob(x), [loc, beta])
    exact = Tilted(
        dist.Normal(loc, 1.5),
        rewards.Quadratic(torch.tensor(-0.1).double(), torch.tensor(1.0).double()),
        beta,
    )
    assert [by_loc, by_beta] == pytest.approx(grads(exact.log_prob(x), [loc, beta]), abs=1e-8)

    flat = Tilted(dist.Uniform(torch.zeros(()).double(), width), lambda x: 3 * x)
    closed = torch.log((torch.exp(3 * width) - 1) / (3 * width))
    assert flat.exact_tilt().method == "quadrature"
    assert grads(flat.log_normalizer, [width]) == pytest.approx(grads(closed, [width]), abs=1e-8)


def test_nan_and_impossible_rewards_are_refused():
    base = dist.Normal(0.0, 1.0)
    with pytest.raises(ValueError, match="reward is NaN"):
        Tilted(base, lambda x: x.log()).sample()
    with pytest.raises(ValueError, match="-inf wherever Normal was probed"):
        Tilted(base, lambda x: x - math.inf).sample()
    with pytest.raises(ValueError, match="one number per batch element"):
        Tilted(base, lambda x: x.sum()).sample()


def test_nan_where_the_base_has_no_mass_is_no_matter():
    base = dist.Normal(torch.zeros(()).double(), 1.0)
    tilted = Tilted(base, lambda x: x - torch.log1p(x.exp()))
    expected = integrated(base, lambda x: torch.sigmoid(x).log(), [-12, -3, 0, 3, 12])
    assert tilted.log_normalizer.item() == pytest.approx(expected, abs=1e-9)


def test_finding_a_law_leaves_the_random_state():
    before = torch.get_rng_state()
    assert Tilted(dist.StudentT(3.0), torch.sin).log_normalizer.isfinite()
    assert torch.equal(before, torch.get_rng_state())


def test_a_large_batch_of_other_laws():
    generator = torch.Generator().manual_seed(2)
    shape = torch.rand(400, generator=generator, dtype=torch.float64) * 5 + 0.5
    tilted = Tilted(dist.Gamma(shape, 2.0), lambda x: -x)
    torch.testing.assert_close(tilted.log_normalizer, -shape * math.log(1.5), atol=1e-8, rtol=0.0)
    assert tilted.tractability.error < 1e-3
