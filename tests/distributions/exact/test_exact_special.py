# SPDX-License-Identifier: Apache-2.0
"""Exact tilts at their extremes, and of laws that are no families."""

import math

import pyro.distributions as dist
import pytest
import torch
from exact_cases import default_dtype, indefinite
from pyro.distributions.torch_distribution import MaskedDistribution
from scalar_cases import positive, randn, slopes, triangular

from pyro_tilt.distributions.registry import find_tilt
from pyro_tilt.distributions.truncated_normal import TruncatedNormal
from pyro_tilt.rewards import BlackBox, Linear, LinearIn, Quadratic


@pytest.fixture(autouse=True)
def _double():
    with default_dtype(torch.float64):
        yield


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-7), (torch.float32, 1e-3)])
def test_steep_negative_quadratic(dtype, tolerance):
    # A rank-one Hessian of -1e8 aa' pins a'x to zero; what is left is the conditional normal law.
    a = torch.tensor([0.6, -0.8, 0.3])
    tril = triangular(3, 3)
    loc = randn(3)
    base = dist.MultivariateNormal(loc.to(dtype), scale_tril=tril.to(dtype))
    found = find_tilt(base, Quadratic.from_hessian(-1e8 * torch.outer(a, a).to(dtype)))
    cov = tril @ tril.mT
    gain = cov @ a / (a @ cov @ a + 1e-8)
    mean, rest = loc - gain * (a @ loc), cov - torch.outer(gain, cov @ a)
    assert found.log_normalizer.dtype == found.law.loc.dtype == dtype
    torch.testing.assert_close(found.law.mean.double(), mean, atol=tolerance, rtol=0)
    torch.testing.assert_close(found.law.covariance_matrix.double(), rest, atol=tolerance, rtol=0)
    spread = 1 + 1e8 * (a @ cov @ a)
    log_z = -spread.log() / 2 - 0.5e8 * (a @ loc) ** 2 / spread
    torch.testing.assert_close(
        found.log_normalizer.double(), log_z, atol=10 * tolerance, rtol=tolerance
    )


def test_quadratic_formula_of_the_reference():
    # log Z = c + b'm + m'Qm/2 - log det K / 2 + g'S'g/2 with g = b + Qm, computed plainly.
    base = dist.MultivariateNormal(randn(4, 3), scale_tril=0.5 * triangular(3, 3))
    A = torch.block_diag(indefinite(), torch.tensor(0.2))
    Q, b, c, m, cov = 2 * A, randn(3), 0.7, base.loc, base.covariance_matrix
    g = b + m @ Q
    tilted = torch.linalg.inv(torch.linalg.inv(cov) - Q)
    log_det = torch.linalg.slogdet(torch.eye(3) - cov @ Q).logabsdet
    log_z = c + m @ b + ((m @ Q) * m).sum(-1) / 2 - log_det / 2
    log_z = log_z + (g.unsqueeze(-2) @ tilted @ g.unsqueeze(-1)).flatten() / 2
    found = find_tilt(base, Quadratic(A, b, c))
    torch.testing.assert_close(found.log_normalizer, log_z)
    torch.testing.assert_close(found.law.covariance_matrix, tilted)


def test_linear_reward_keeps_low_rank():
    base = dist.LowRankMultivariateNormal(randn(4), randn(4, 2), positive(4))
    found = find_tilt(base, Linear(randn(4)))
    assert isinstance(found.law, dist.LowRankMultivariateNormal)
    torch.testing.assert_close(found.law.cov_factor, base.cov_factor)


@pytest.mark.parametrize("theta", [-1e6, -40.0, 40.0])
def test_half_normal_far_tilt(theta):
    scale = torch.tensor([0.5, 2.0])
    found = find_tilt(dist.HalfNormal(scale), Linear(theta, 0))
    # Z = 2 exp(u^2/2) Phi(u) with u = scale * theta: erfcx on the falling side.
    u = scale * theta
    if theta < 0:
        log_z = torch.special.erfcx(-u / math.sqrt(2)).log()
    else:
        log_z = math.log(2) + u**2 / 2 + torch.special.log_ndtr(u)
    torch.testing.assert_close(found.log_normalizer, log_z, atol=1e-10, rtol=1e-10)
    draws = found.law.sample((4000,))
    assert draws.isfinite().all() and (draws >= 0).all()
    error = (draws.mean(0) - found.law.mean) / found.law.stddev * math.sqrt(4000)
    assert (error.abs() < 5).all()


def test_wishart_against_its_gaussian_factors():
    # A Wishart matrix of 5 degrees of freedom is a sum of 5 outer products of normal vectors.
    tril, B = 0.6 * triangular(2, 2), torch.tensor([[0.2, 0.3], [-0.1, -0.4]])
    found = find_tilt(dist.Wishart(torch.tensor(5.0), scale_tril=tril), Linear(B))
    vector = dist.MultivariateNormal(torch.zeros(2), scale_tril=tril)
    one = find_tilt(vector, Quadratic(B))
    torch.testing.assert_close(found.log_normalizer, 5 * one.log_normalizer)
    torch.testing.assert_close(found.law.mean, 5 * one.law.covariance_matrix)


def test_dirichlet_against_betas():
    # Two parts of a Dirichlet law make a beta law.
    c = torch.tensor([0.5, -0.4])
    found = find_tilt(dist.Dirichlet(torch.tensor([1.5, 2.0])), LinearIn(1, log=c))
    beta = find_tilt(dist.Beta(1.5, torch.tensor(2.0)), LinearIn(log=c[0], log1m=c[1]))
    torch.testing.assert_close(found.log_normalizer, beta.log_normalizer)
    torch.testing.assert_close(found.law.mean[0], beta.law.mean)


def test_delta_stays():
    base = dist.Delta(randn(3, 2), event_dim=1)
    found = find_tilt(base, Linear(torch.tensor([2.0, -1.0])))
    torch.testing.assert_close(found.log_normalizer, base.v @ torch.tensor([2.0, -1.0]))
    assert found.law is base


@pytest.mark.parametrize("batch", [(), (2,)])
def test_particles_are_reweighted(batch):
    particles, log_weights = randn(*batch, 50, 3), randn(*batch, 50)
    theta = randn(*batch, 3)
    found = find_tilt(dist.Empirical(particles, log_weights), Linear(theta, 1))
    gain = (particles * theta.unsqueeze(-2)).sum(-1)
    weights = (log_weights + gain).softmax(-1)
    expected = (log_weights.softmax(-1) * gain.exp()).sum(-1).log()
    torch.testing.assert_close(found.log_normalizer, expected)
    torch.testing.assert_close(found.law.mean, (weights.unsqueeze(-1) * particles).sum(-2))
    assert found.law.sample((7,)).shape == (7, *batch, 3)


def test_particles_take_any_reward():
    particles = torch.arange(6.0)
    found = find_tilt(
        dist.Empirical(particles, torch.zeros(6)),
        BlackBox(lambda x: torch.where(x > 3, 0.0, -math.inf)),
    )
    assert found.log_normalizer.item() == pytest.approx(math.log(2 / 6))
    with pytest.raises(ValueError, match="every particle"):
        find_tilt(dist.Empirical(particles, torch.zeros(6)), BlackBox(lambda x: -math.inf + 0 * x))


def test_mask_stays_on_the_tilted_law():
    mask = torch.tensor([True, False])
    base = dist.Normal(randn(2), 1.0)
    found = find_tilt(base.mask(mask), Linear(1.3, 0))
    plain = find_tilt(base, Linear(1.3, 0))
    assert isinstance(found.law, MaskedDistribution)
    torch.testing.assert_close(found.log_normalizer, plain.log_normalizer)
    value = randn(2)
    torch.testing.assert_close(found.law.log_prob(value), plain.law.log_prob(value) * mask)


def test_batched_diagonal_mixture():
    locs, scale, logits = randn(2, 3, 2), positive(2, 3, 2), randn(2, 3)
    reward = Linear(slopes(2, 2), 1)
    found = find_tilt(dist.MixtureOfDiagNormals(locs, scale, logits), reward)
    parts = dist.Normal(locs, scale).to_event(1)
    plain = find_tilt(dist.MixtureSameFamily(dist.Categorical(logits=logits), parts), reward)
    torch.testing.assert_close(found.log_normalizer, plain.log_normalizer)
    assert found.law.sample((5,)).shape == (5, 2, 2)


def test_impossible_categories_stay_impossible():
    found = find_tilt(
        dist.OneHotCategorical(torch.tensor([0.5, 0.5, 0.0])), Linear(torch.tensor([0.0, 1, 60]))
    )
    torch.testing.assert_close(found.law.probs[2], torch.tensor(0.0))
    assert found.log_normalizer.item() == pytest.approx(math.log((1 + math.e) / 2))
    certain = find_tilt(dist.Bernoulli(torch.tensor([0.0, 1.0])), Linear(50.0, 0))
    torch.testing.assert_close(certain.log_normalizer, torch.tensor([0.0, 50.0]))
    assert (certain.law.sample((1000,)) == torch.tensor([0.0, 1.0])).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_impossible_stays_so_after_use_and_expansion(dtype):
    # Once its logits were asked for, torch's expansion is parametrised by the clamped ones.
    base = dist.Categorical(torch.tensor([0.5, 0.5, 0.0], dtype=dtype))
    certain = dist.Bernoulli(torch.tensor(1.0, dtype=dtype))
    base.log_prob(torch.tensor(0)), certain.log_prob(torch.tensor(1.0, dtype=dtype))
    theta = torch.tensor([1.0, 30.0], dtype=dtype)
    law = find_tilt(base.expand([2]), Linear(theta, 0)).law
    assert (law.probs[:, 2] == 0).all()
    found = find_tilt(certain.expand([2]), Linear(-theta, 0))
    torch.testing.assert_close(found.log_normalizer, -theta)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_improbable_is_not_impossible(dtype):
    # Probabilities that round to 0 or 1, from logits, can be tilted back.
    base = dist.Categorical(logits=torch.tensor([0.0, -800.0], dtype=dtype))
    found = find_tilt(base, Linear(torch.tensor(801.0, dtype=dtype)))
    torch.testing.assert_close(found.law.probs[1].item(), torch.sigmoid(torch.tensor(1.0)).item())
    sure = dist.Bernoulli(logits=torch.tensor(-math.log(torch.finfo(dtype).eps) + 1, dtype=dtype))
    assert sure.probs == 1
    law = find_tilt(sure, Linear(-sure.logits)).law
    torch.testing.assert_close(law.probs, torch.tensor(0.5, dtype=dtype))


def test_value_checks_follow_the_base():
    base = dist.HalfNormal(torch.tensor(1.0), validate_args=False)
    law = find_tilt(base, Linear(1.0, 0)).law
    assert law.log_prob(torch.tensor(-1.0)) == -math.inf
    law = find_tilt(dist.HalfNormal(torch.tensor(1.0)), Linear(1.0, 0)).law
    with pytest.raises(ValueError, match="support"):
        law.log_prob(torch.tensor(-1.0))


def test_reversed_ends_are_refused():
    with pytest.raises(ValueError, match="low must be below high"):
        TruncatedNormal(0.0, 1.0, low=torch.tensor(2.0), high=1.0)
