# SPDX-License-Identifier: Apache-2.0
"""The toy's grid solution against piecewise Gauss-Legendre rules and plain draws."""

import math

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from scipy import stats

from pyro_tilt.poutine import ParticlePlate
from pyro_tilt.testing.two_mode_toy import two_mode_toy


@pytest.fixture(scope="module")
def case():
    return two_mode_toy(beta=5.0)


@pytest.fixture(scope="module")
def quadrature(case):
    """Nodes that respect the jump at -7, and the program's own kernels of the first coordinate."""
    nodes, weights = zip(*(_legendre(*ends) for ends in ((-14, -7, 150), (-7, 14, 450))))
    nodes, weights = torch.cat(nodes), torch.cat(weights)
    kernels = []
    for t in range(case.num_steps):
        data = {f"x_{s}": torch.zeros(2).double() for s in range(case.num_steps + 1)}
        # The second coordinate of the state before must not matter.
        data[f"x_{t + 1}"] = torch.stack([nodes, torch.sin(nodes)], -1)
        trace = poutine.trace(poutine.condition(case.program, data=data)).get_trace()
        normal = trace.nodes[f"x_{t}"]["fn"].base_dist
        loc, scale = normal.loc[:, :1], normal.scale.expand(normal.loc.shape)[:, :1]
        kernels.append(torch.distributions.Normal(loc, scale).log_prob(nodes).exp())
    return nodes, weights, kernels


def test_laws_and_soft_values_against_gauss_legendre(case, quadrature):
    nodes, weights, kernels = quadrature
    states = torch.stack([nodes, torch.cos(nodes)], -1)
    exact, soft = case.twist(), (case.beta * case.reward(states)).exp()
    density = (-0.5 * nodes.square()).exp() / math.sqrt(2 * math.pi)
    densities = [density]
    for kernel in reversed(kernels):
        densities.append((weights * densities[-1]) @ kernel)
    densities = densities[::-1]
    inside = nodes.abs() < 11.0
    for t in range(case.num_steps + 1):
        error = (exact(states, t) - soft.log())[inside].abs().max()
        assert float(error) < 1e-5
        normalizer = float((weights * densities[t] * soft).sum())
        assert case.log_normalizer == pytest.approx(math.log(normalizer), abs=1e-9)
        # Rejection under the global bound, state by state and over the aligned law of a step.
        if t:
            cost = weights * densities[t] * soft / normalizer * (math.exp(case.beta) / soft)
            assert case.envelope_proposals == pytest.approx(float(cost.sum()), rel=1e-9)
            density = case.chain.target_densities[t] * case.chain.spacing
            assert float(density.sum()) == pytest.approx(1.0, abs=1e-9)
        if t < case.num_steps:
            soft = kernels[t] @ (weights * soft)
    base = float((weights * densities[0])[nodes < -7.0].sum())
    assert case.base_mass == pytest.approx(base, abs=1e-10)
    assert case.mass == pytest.approx(base * math.exp(5.0) / normalizer, abs=1e-9)
    assert case.kl == pytest.approx(5.0 * case.mass - math.log(normalizer), abs=1e-8)
    edges = torch.tensor([-8.2, -7.0, -6.1, 3.0, 5.2])
    tilted = weights * densities[0] * (case.beta * case.reward(states)).exp() / normalizer
    for aligned, total in ((True, 1.0), (False, 1.0)):
        claimed = case.probabilities(edges, aligned=aligned)
        assert float(claimed.sum()) == pytest.approx(total, abs=1e-12)
    at_jump = case.probabilities(torch.tensor([-7.0]))
    assert float(at_jump[0]) == pytest.approx(float(tilted[nodes < -7.0].sum()), abs=1e-9)


@pytest.mark.parametrize(
    "beta, mass, proposals, digits",
    [(1, None, 2.68, 2), (3, 0.1301, 17.60, 2), (5, 0.5249, 71.0, 1), (7, 0.8909, 120.6, 1)],
)
def test_known_grid_figures(beta, mass, proposals, digits):
    """A spacing of .025 with the jump on a point, which it leaves unrewarded, has these masses."""
    case = two_mode_toy(beta=float(beta), points=1121)
    rewarded = case.chain.grid < -7.0 - 1e-9
    base = float(case.chain.densities[0][rewarded].sum()) * case.chain.spacing
    normalizer = 1.0 + math.expm1(beta) * base
    assert round(math.exp(beta) / normalizer, digits) == proposals
    if mass is not None:
        assert round(math.exp(beta) * base / normalizer, 4) == mass
    # The half cell that such a sum leaves out belongs to the region.
    half_cell = 0.0125 * float(case.chain.densities[0][(case.chain.grid + 7.0).abs().argmin()])
    assert case.base_mass == pytest.approx(base + half_cell, abs=1e-6)


def test_plain_program_follows_the_law(case):
    """Chi-square over bins of 60,000 draws of both coordinates, false alarm 1e-5 each."""
    pyro.set_rng_seed(12)
    with ParticlePlate(60_000, dim=-1):
        last = case.program()
    assert last.shape == (60_000, 2)
    edges = torch.tensor([-7.0, -5.0, -2.0, 3.0, 4.0, 5.0, 6.0, 7.0]).double()
    counts = torch.bincount(torch.bucketize(last[:, 0].contiguous(), edges), minlength=9)
    expected = 60_000 * case.probabilities(edges, aligned=False)
    statistic = float(((counts - expected).square() / expected).sum())
    assert stats.chi2.sf(statistic, 8) > 1e-5
    variance = 1.0
    for scale in case.kernel_scales.flip(0).tolist():
        variance = variance / (1.0 + scale**2) + scale**2
    second = float(last[:, 1].square().sum()) / variance
    assert 0.5e-5 < stats.chi2(60_000).cdf(second) < 1 - 0.5e-5


def test_aligned_bins_by_weighting(case):
    """Bins weighted by the tilt: only the rewarded ones grow, by the same factor."""
    edges = torch.tensor([-9.0, -8.0, -7.0, 0.0, 5.0])
    base, aligned = case.probabilities(edges, aligned=False), case.probabilities(edges)
    growth = torch.tensor([5.0, 5.0, 5.0, 0.0, 0.0, 0.0]).double() - case.log_normalizer
    torch.testing.assert_close(aligned, base * growth.exp(), rtol=1e-7, atol=0)


def test_schedule_is_that_of_the_prototype(case):
    """The schedule as printed in the authors' notebook."""
    printed = [0.98, 0.96935642, 0.95099643, 0.92163612, 0.87468467, 0.79960244, 0.67953495]
    printed += [0.48752946, 0.40085355]
    alphas = 1.0 / (1.0 + case.kernel_scales.square())
    torch.testing.assert_close(
        alphas[:9], torch.tensor(printed, dtype=torch.float64), rtol=0, atol=1e-8
    )
    torch.testing.assert_close(alphas[8:], alphas[8].expand(11))


def _legendre(low, high, count):
    nodes, weights = np.polynomial.legendre.leggauss(count)
    middle, half = (low + high) / 2, (high - low) / 2
    return torch.from_numpy(middle + half * nodes), torch.from_numpy(half * weights)
