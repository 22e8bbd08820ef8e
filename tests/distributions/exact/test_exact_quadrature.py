# SPDX-License-Identifier: Apache-2.0
"""Every exact tilt against quadrature or summation of p(x) e^r(x), and its draws against both."""

import pyro
import pytest
import torch
from exact_cases import DISCRETE, PLANE, SCALAR, make
from exact_reference import (
    batch_of,
    bin_probabilities,
    chi_square_gate,
    ends,
    enumerated_points,
    grid_points,
    mean_of,
    scalar_points,
)
from torch.distributions import kl_divergence

from pyro_tilt.distributions import Tilted
from pyro_tilt.distributions.registry import find_tilt
from pyro_tilt.rewards import Linear, LinearIn, Quadratic

SUMMED = [case for case in DISCRETE if case.kind != "other"]
integrated = pytest.mark.parametrize("case", SCALAR + SUMMED + PLANE, ids=lambda case: case.name)
# torch normalises von Mises laws by polynomials of this accuracy.
LOOSE = {"von mises": 1e-6}


@pytest.fixture(autouse=True)
def _unvalidated():
    """Quadrature nodes round to the ends of a support, and counts pass the end of a binomial."""
    with pyro.validation_enabled(False):
        yield


def points_of(case, base, reward, found):
    batch = batch_of(base, reward)
    if case.kind == "scalar":
        return scalar_points(base, reward, batch, case.kink)
    if case.kind == "plane":
        draws = found.law.sample((2000,))
        return grid_points(base, reward, draws.mean(0), draws.std(0), batch)
    return enumerated_points(base, reward, case.kind, batch)


def columns(tensor):
    """A tensor of shape (n, *batch) as (n, laws)."""
    return tensor.reshape(len(tensor), -1)


def with_gradients(reward):
    """A copy of the reward with its parameters as leaves, and their statistics of a value."""
    if isinstance(reward, Linear):
        theta = reward.theta.detach().clone().requires_grad_()
        return Linear(theta, reward.event_dim, offset=reward.offset), [(theta, lambda x: x)]
    if isinstance(reward, Quadratic):
        b = reward.b.detach().clone().requires_grad_()
        A = reward.A.detach().clone().requires_grad_()
        square = (lambda x: x.unsqueeze(-1) * x.unsqueeze(-2)) if reward.event_dim else torch.square
        copy = Quadratic(A, b, reward.c, event_dim=reward.event_dim)
        return copy, [(A, square), (b, lambda x: x)]
    parts = {k: v.detach().clone().requires_grad_() for k, v in reward.coefficients.items()}
    named = {"x": lambda x: x, "reciprocal": torch.reciprocal}
    named |= {"log": torch.log, "cos": torch.cos, "sin": torch.sin}
    named["log1m"] = lambda x: torch.log1p(-x)
    copy = LinearIn(reward.event_dim, offset=reward.offset, **parts)
    return copy, [(parts[k], named[k]) for k in parts]


@integrated
def test_normalizer_and_its_gradient(case):
    base, reward, found = make(case)
    tolerance = LOOSE.get(case.name, 1e-8)
    points = points_of(case, base, reward, found)
    assert found.error <= 1e-6
    torch.testing.assert_close(found.log_normalizer, points.log_z, atol=tolerance, rtol=tolerance)
    copy, parts = with_gradients(reward)
    log_z = find_tilt(base, copy).log_normalizer
    gradients = torch.autograd.grad(log_z.sum(), [parameter for parameter, _ in parts])
    tolerance = LOOSE.get(case.name, 1e-7)
    for (parameter, statistic), gradient in zip(parts, gradients):
        mean = points.mean(statistic(points.values)).sum_to_size(parameter.shape)
        torch.testing.assert_close(gradient, mean, atol=10 * tolerance, rtol=tolerance)


@integrated
def test_moments_and_divergence(case):
    base, reward, found = make(case)
    points = points_of(case, base, reward, found)
    tolerance = LOOSE.get(case.name, 1e-8)
    gain, log_ratio = points.mean(reward(points.values)), found.law.log_prob(points.values)
    divergence = points.mean(log_ratio - base.log_prob(points.values))
    torch.testing.assert_close(
        divergence, gain - points.log_z, atol=10 * tolerance, rtol=10 * tolerance
    )
    if "certain" not in case.name:  # where torch clamps probabilities of zero
        torch.testing.assert_close(
            kl_divergence(Tilted(base, reward), base), divergence, atol=tolerance, rtol=tolerance
        )
    try:
        mean, variance = mean_of(found.law), found.law.variance
    except NotImplementedError:
        return
    if case.name in LOOSE or isinstance(found.law, torch.distributions.Categorical):
        return  # torch's variance of angles is circular, that of categories undefined
    expected = points.mean(points.values)
    torch.testing.assert_close(mean, expected, atol=1e-8, rtol=1e-7)
    spread = points.mean((points.values - expected) ** 2)
    torch.testing.assert_close(variance, spread, atol=1e-8, rtol=1e-7)


@pytest.mark.parametrize("case", SCALAR, ids=lambda case: case.name)
def test_draws_of_scalar_laws(case):
    base, reward, found = make(case)
    batch = batch_of(base, reward)
    low, high = ends(base, batch)
    pilot = found.law.sample((4000,)).reshape(4000, -1)
    shares = torch.linspace(0.02, 0.98, 25, dtype=torch.float64)
    inner = torch.quantile(pilot, shares, dim=0).reshape(25, *batch)
    parts = [low.unsqueeze(0), inner, high.unsqueeze(0)]
    if case.kink is not None:
        parts.insert(1, torch.full((1, *batch), case.kink, dtype=torch.float64))
    edges = torch.cat(parts).clamp(min=low, max=high).sort(0).values
    probabilities = bin_probabilities(base, reward, edges)
    draws = found.law.sample((20000,))
    cells = torch.searchsorted(columns(edges[1:-1]).T.contiguous(), columns(draws).T.contiguous())
    counts = torch.stack([torch.bincount(row, minlength=len(edges) - 1) for row in cells], 1)
    chi_square_gate(counts, columns(probabilities))


@pytest.mark.parametrize("case", SUMMED, ids=lambda case: case.name)
def test_draws_of_discrete_laws(case):
    base, reward, found = make(case)
    batch = batch_of(base, reward)
    points = enumerated_points(base, reward, case.kind, batch)
    draws = found.law.sample((5000,)).unsqueeze(1)
    same = draws == points.values
    if base.event_shape:
        same = same.all(-1)
    probabilities = (points.log_mass - points.log_z).exp()
    chi_square_gate(columns(same.sum(0)), columns(probabilities))


@pytest.mark.parametrize("case", PLANE, ids=lambda case: case.name)
def test_draws_on_the_plane(case):
    base, reward, found = make(case)
    pilot = found.law.sample((2000,))
    centre, spread = pilot.mean(0), pilot.std(0)
    points = grid_points(base, reward, centre, spread, batch_of(base, reward))
    mass = (points.log_mass - points.log_z).exp()
    draws = found.law.sample((5000,))

    def cell(values):
        # The cuts lie half way between the nodes of the grid, where its sums are accurate.
        cuts = torch.tensor([-0.95, -0.35, 0.45, 1.15], dtype=values.dtype)
        index = torch.bucketize((values - centre) / spread, cuts)
        return index[..., 0] * 5 + index[..., 1]

    cells = torch.arange(25).reshape((-1, 1) + (1,) * len(centre.shape[:-1]))
    counts = columns((cell(draws) == cells).sum(1))
    chi_square_gate(counts, columns((mass * (cell(points.values) == cells)).sum(1)))
