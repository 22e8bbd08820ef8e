# SPDX-License-Identifier: Apache-2.0
"""The grid solution of the mixture diffusion against Gauss-Legendre rules and plain draws."""

import math

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from scipy import stats

from pyro_tilt.poutine import ParticlePlate
from pyro_tilt.testing.grid_chain import interpolate, solve_grid_chain
from pyro_tilt.testing.mixture_diffusion import mixture_diffusion


@pytest.fixture(scope="module")
def case():
    return mixture_diffusion(beta=1.1)


@pytest.fixture(scope="module")
def quadrature(case):
    """Nodes, weights, and the program's own kernels on them, time t first."""
    nodes, weights = (torch.from_numpy(part) for part in np.polynomial.legendre.leggauss(400))
    nodes, weights = 8.0 * nodes, 8.0 * weights
    kernels = []
    for t in range(case.num_steps):
        data = {f"x_{s}": torch.tensor(0.0).double() for s in range(case.num_steps + 1)}
        data |= {f"x_{t + 1}": nodes.unsqueeze(-1), f"x_{t}": nodes}
        trace = poutine.trace(poutine.condition(case.program, data=data)).get_trace()
        kernels.append(trace.nodes[f"x_{t}"]["fn"].log_prob(nodes).exp())
    return nodes, weights, kernels


def test_laws_and_soft_values_against_gauss_legendre(case, quadrature):
    nodes, weights, kernels = quadrature
    soft = (case.beta * case.reward(nodes)).exp()
    inside = nodes.abs() < 6.0
    exact = case.twist()
    for t in range(case.num_steps + 1):
        claimed = exact(nodes, t)
        torch.testing.assert_close(claimed[inside], soft.log()[inside], rtol=0, atol=2e-6)
        if t < case.num_steps:
            soft = kernels[t] @ (weights * soft)
    density = (-0.5 * nodes.square()).exp() / math.sqrt(2 * math.pi)
    log_z = float((weights * density * soft).sum().log())
    assert case.log_normalizer == pytest.approx(log_z, abs=1e-10)
    for kernel in reversed(kernels):
        density = (weights * density) @ kernel
    claimed = interpolate(case.chain.grid, case.chain.densities[0], nodes)
    torch.testing.assert_close(claimed, density, rtol=0, atol=1e-6)
    tilt = (case.beta * case.reward(nodes) - log_z).exp()
    mean = float((weights * density * tilt * case.reward(nodes)).sum())
    assert case.reward_mean == pytest.approx(mean, abs=1e-9)
    kl = float((weights * density * tilt * tilt.log()).sum())
    assert case.kl == pytest.approx(kl, abs=1e-9)
    base_mean = float((weights * density * case.reward(nodes)).sum())
    assert case.base_reward_mean == pytest.approx(base_mean, abs=1e-9)


def test_bins_against_gauss_legendre(case, quadrature):
    nodes, weights, kernels = quadrature
    density = (-0.5 * nodes.square()).exp() / math.sqrt(2 * math.pi)
    for kernel in reversed(kernels[1:]):
        density = (weights * density) @ kernel
    data = {"x_1": nodes}
    trace = poutine.trace(poutine.condition(case.program, data=data)).get_trace()
    edges = torch.tensor([-2.0, -0.7, 0.13, 0.9, 2.4])
    below = trace.nodes["x_0"]["fn"].cdf(edges.double().unsqueeze(-1)) @ (weights * density)
    base = case.probabilities(edges, aligned=False)
    torch.testing.assert_close(base.cumsum(0)[:-1], below, rtol=0, atol=1e-7)
    aligned = case.probabilities(edges)
    assert float(aligned.sum()) == pytest.approx(1.0, abs=1e-12)
    assert bool((aligned[-2:] > base[-2:]).all())


def test_denoiser_is_the_posterior_mean(case, quadrature):
    nodes, weights, _ = quadrature
    shares, means, scales = case.components
    data = (shares * dist_density(nodes.unsqueeze(-1), means, scales)).sum(-1)
    for t in (1, 4, case.num_steps):
        kept = case.alpha_bar[t]
        x = torch.tensor([-2.5, -0.4, 1.3]).double()
        noise = dist_density(x.unsqueeze(-1), kept.sqrt() * nodes, (1 - kept).sqrt())
        posterior = weights * data * noise
        expected = (posterior * nodes).sum(-1) / posterior.sum(-1)
        torch.testing.assert_close(case.denoise(x, t), expected, rtol=0, atol=1e-9)


def test_kernel_is_the_ddpm_posterior(case):
    """DDIM with eta = 1 is the Gaussian posterior of the step given the denoised value."""
    x = torch.linspace(-3, 3, 7).double()
    for t in range(case.num_steps):
        before, after = case.alpha_bar[t], case.alpha_bar[t + 1]
        precision = 1 / (1 - before) + (after / before) / (1 - after / before)
        clean = before.sqrt() * case.denoise(x, t + 1) / (1 - before)
        pull = (after / before).sqrt() * x / (1 - after / before)
        expected = (clean + pull) / precision
        torch.testing.assert_close(case.kernel_mean(x, t), expected, rtol=0, atol=1e-10)
        assert float(case.kernel_scales[t]) == pytest.approx(float(precision**-0.5), abs=1e-12)


def test_plain_program_follows_the_law(case):
    """Chi-square over ten bins of 40,000 draws and a z gate of the evidence, 1e-5 each."""
    pyro.set_rng_seed(6)
    with ParticlePlate(40_000, dim=-1):
        trace = poutine.trace(case.program).get_trace()
    edges = torch.linspace(-2.4, 2.8, 9).double()
    for t in (0, 3):
        place = torch.bucketize(trace.nodes[f"x_{t}"]["value"], edges)
        counts = torch.bincount(place, minlength=10).double()
        expected = 40_000 * case.probabilities(edges, step=t, aligned=False)
        statistic = float(((counts - expected).square() / expected).sum())
        assert stats.chi2.sf(statistic, 9) > 1e-5
    weights = (case.beta * case.reward(trace.nodes["_RETURN"]["value"])).exp()
    error = float(weights.mean()) - math.exp(case.log_normalizer)
    score = error / float(weights.std() / math.sqrt(len(weights)))
    assert abs(score) < stats.norm.isf(0.5e-5)


def test_log_mgf_of_order_one_is_the_soft_value(case):
    chain = case.chain
    for t in (0, 2):
        torch.testing.assert_close(chain.log_mgf(1.0, t), chain.log_soft_values[t + 1])
        assert bool((chain.log_mgf(2.0, t) >= 2.0 * chain.log_soft_values[t + 1] - 1e-9).all())


def test_coarse_grid_is_refused():
    grid = torch.linspace(-8, 8, 41, dtype=torch.float64)
    with pytest.raises(ValueError, match="coarse"):
        solve_grid_chain(grid, grid, lambda x, t: x, torch.tensor([0.3]), grid)


def dist_density(x, loc, scale):
    return torch.distributions.Normal(loc, scale).log_prob(x).exp()
