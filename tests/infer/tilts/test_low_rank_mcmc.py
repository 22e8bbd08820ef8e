# SPDX-License-Identifier: Apache-2.0
"""Quadratic tilts of any rank by Langevin chains on a log-concave mixing density."""

import pyro.distributions as dist
import pytest
import torch
from tilt_models import F64, WEIGHTS, exact_draws, gate_mixture

from pyro_tilt import diffusion, rewards
from pyro_tilt.infer import QuadraticTilt
from pyro_tilt.infer.tilts.low_rank_choice import positive_factor
from pyro_tilt.infer.tilts.low_rank_mcmc import LogConcaveRoute, covariance_test
from pyro_tilt.testing.gates import Z_SCORE

DIMS = 6


def wide(*, spread=0.5, scales=(0.6, 0.6, 0.6)):
    generator = torch.Generator().manual_seed(3)
    locs = spread * torch.randn(3, DIMS, generator=generator, dtype=F64)
    parts = dist.Normal(locs, torch.tensor(scales, dtype=F64)[:, None].expand(3, DIMS)).to_event(1)
    law = dist.MixtureSameFamily(dist.Categorical(WEIGHTS), parts)
    return diffusion.MixtureDiffusion(law, diffusion.VP.linear(20))


def full_rank(size=0.1):
    generator = torch.Generator().manual_seed(5)
    root = torch.randn(DIMS, DIMS, generator=generator, dtype=F64)
    slope = 0.3 * torch.randn(DIMS, generator=generator, dtype=F64)
    return rewards.Quadratic(size * root @ root.T / DIMS, slope, torch.tensor(-0.3, dtype=F64))


def brute_force(base, reward, factor, count=20_000):
    """Largest norm of L Cov L' over random tilts, from the exact laws of the mixture."""
    parts = base.mixture.component_distribution
    torch.manual_seed(0)
    z = torch.randn(count, len(factor), dtype=F64) * 10 ** (2 * torch.rand(count, 1) - 0.5)
    theta = reward.b + z @ factor
    logits = base.mixture.mixture_distribution.logits + theta @ parts.mean.T
    logits = logits + 0.5 * theta.square() @ parts.variance.T
    rho = logits.softmax(-1)
    means = (parts.mean + theta[:, None] * parts.variance) @ factor.T
    inside = torch.einsum("rd,kd,sd->krs", factor, parts.variance, factor)
    middle = (rho[..., None] * means).sum(1, keepdim=True)
    away = means - middle
    covariance = torch.einsum("nk,krs->nrs", rho, inside)
    covariance = covariance + torch.einsum("nk,nkr,nks->nrs", rho, away, away)
    return float(torch.linalg.matrix_norm(covariance, 2).max())


def test_the_covariance_test_bounds_every_tilt():
    base, reward = wide(), full_rank()
    factor = positive_factor(reward)
    test = covariance_test(base, reward, factor)
    worst = brute_force(base, reward, factor)
    assert test.proved and worst <= test.value < 1.0
    assert worst > 0.3 * test.value


def test_without_a_common_covariance_the_supremum_is_searched():
    base, reward = wide(scales=(0.5, 0.6, 0.7)), full_rank()
    factor = positive_factor(reward)
    test = covariance_test(base, reward, factor)
    worst = brute_force(base, reward, factor)
    assert not test.proved and test.passed
    assert test.value > 0.9 * worst


@pytest.mark.parametrize("scales", [(0.6, 0.6, 0.6), (0.5, 0.6, 0.7)])
def test_the_law_is_the_closed_form(scales):
    base, reward = wide(scales=scales), full_rank()
    exact = base.tilted_law(reward)
    tilt = QuadraticTilt(base, reward, num_samples=10_000, seed=0)
    assert isinstance(tilt.route, LogConcaveRoute)
    with exact_draws():
        result = tilt.run()
    for direction in torch.linalg.eigh(reward.A)[1].T[[-1, 0]]:
        gate_mixture(result.samples["x_0"], exact.law, direction)
    gap = float(result.log_normalizer - exact.log_normalizer)
    assert abs(gap) < Z_SCORE * float(result.log_normalizer_error) < 0.05
    assert result.certificate.law == "consistent" and "mcmc_steps" in result.certificate.budget
    proved = len(set(scales)) == 1
    assert ("not proved" in result.certificate.excludes) == (not proved)
    assert 0.4 < result.info["mcmc_acceptance"] < 0.75 and result.info["mcmc_r_hat"] < 1.1


def test_a_high_rank_without_log_concavity_is_refused_with_its_theorem():
    base, reward = wide(spread=2.0), full_rank(0.2)
    assert not covariance_test(base, reward, positive_factor(reward)).passed
    with pytest.raises(NotImplementedError, match="rank is 6.*Theorem A.1"):
        QuadraticTilt(base, reward)


def test_a_network_of_high_rank_is_refused():
    net = diffusion.NetworkDiffusion(
        lambda x, t: 0.1 * x, diffusion.VP.linear(5), (DIMS,), prediction="x0", dtype=F64
    )
    with pytest.raises(NotImplementedError, match="does not know its normalisers.*Theorem A.1"):
        QuadraticTilt(net, full_rank())
    assert covariance_test(net, full_rank(), positive_factor(full_rank()), radius=0.9) is None
    base = wide(spread=2.0)
    test = covariance_test(base, full_rank(), positive_factor(full_rank()), radius=0.9)
    assert test.value == pytest.approx(0.81) and test.proved
