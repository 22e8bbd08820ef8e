# SPDX-License-Identifier: Apache-2.0
"""Positive quadratic tilts on a lattice against the closed forms of mixtures."""

import math

import pyro
import pytest
import torch
from tilt_models import F64, exact_draws, gate_mixture, model, network

from pyro_tilt import rewards
from pyro_tilt.infer import QuadraticTilt
from pyro_tilt.infer.tilts import Lattice, lattice_spacing
from pyro_tilt.infer.tilts.convex_family import ExactFamily
from pyro_tilt.infer.tilts.convex_mixture import TiltMixture, mixture_error
from pyro_tilt.infer.tilts.low_rank_choice import positive_factor
from pyro_tilt.testing.gates import Z_SCORE

ONE = torch.tensor([[0.9, 0.45]], dtype=F64)
TWO = torch.tensor([[0.8, 0.3], [-0.2, 0.7]], dtype=F64)
THREE = torch.tensor([[0.7, 0.2, 0.1], [-0.2, 0.6, 0.2], [0.1, -0.3, 0.5]], dtype=F64)
B = torch.tensor([0.3, -0.4, 0.2], dtype=F64)


def quadratic(factor):
    dims = factor.shape[-1]
    return rewards.Quadratic(0.5 * factor.T @ factor, B[:dims], torch.tensor(0.2, dtype=F64))


@pytest.mark.parametrize("epsilon", [0.3, 1e-2, 1e-5])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_the_error_of_a_lattice_is_bounded_over_its_box(rank, epsilon):
    low = torch.tensor([-2.0, -5.0, 0.3], dtype=F64)[:rank]
    high = torch.tensor([3.5, -1.0, 2.0], dtype=F64)[:rank]
    lattice = Lattice.over(low, high, epsilon)
    torch.manual_seed(0)
    u = low + (high - low) * torch.rand(20_000, rank, dtype=F64)
    ends = torch.cartesian_prod(*torch.stack([low, high], -1)).reshape(-1, rank)
    u = torch.cat([u, ends])
    off = (lattice.log_factor(u).exp() - 1).abs().max()
    assert 0.3 * lattice.error < float(off) <= lattice.error * (1 + 1e-9) <= epsilon
    # The factor is the sum over all points, which the product of the axes must repeat.
    z, c = lattice.points, lattice.log_coefficients
    whole = (c + u[:50] @ z.T).logsumexp(-1) - 0.5 * u[:50].square().sum(-1)
    torch.testing.assert_close(whole, lattice.log_factor(u[:50]))


def test_the_spacing_is_that_of_poisson_summation():
    """At the stated spacing the first wave of the error is half of epsilon."""
    for rank, epsilon in ((1, 0.1), (2, 1e-3), (3, 1e-6)):
        h, margin = lattice_spacing(rank, epsilon)
        assert 2 * rank * math.exp(-2 * math.pi**2 / h**2) == pytest.approx(epsilon / 2)
        assert rank * math.exp(-(margin**2) / 2) == pytest.approx(epsilon / 2)


@pytest.mark.parametrize(("rank", "most"), [(1, 15), (2, 241), (3, 3936)])
def test_few_points_reach_a_small_total_variation(rank, most):
    """Features of norm 5 at most, and a total variation of 5e-5."""
    reach = torch.full((rank,), 5.0, dtype=F64)
    lattice = Lattice.over(-reach, reach, 5e-5)
    assert len(lattice) <= most and lattice.total_variation < 5.1e-5
    torch.manual_seed(0)
    u = 10 * torch.rand(100_000, rank, dtype=F64) - 5
    factor = lattice.log_factor(u[u.norm(dim=-1) <= 5.0]).exp()
    assert float(0.5 * (factor / factor.mean() - 1).abs().mean()) <= lattice.total_variation


@pytest.mark.parametrize("factor", [ONE, TWO, THREE], ids=["rank 1", "rank 2", "rank 3"])
@pytest.mark.parametrize("rejection", [False, True])
def test_the_law_is_the_closed_form(factor, rejection):
    base, reward = model(factor.shape[-1]), quadratic(factor)
    exact = base.tilted_law(reward)
    with exact_draws():
        tilt = QuadraticTilt(
            base, reward, num_samples=20_000, seed=1, epsilon=0.002, rejection=rejection
        )
        result = tilt.run()
    draws = result.samples["x_0"]
    for direction in (*factor, torch.ones(len(B), dtype=F64)[: factor.shape[-1]]):
        gate_mixture(draws, exact.law, direction)
    gap = abs(float(result.log_normalizer - exact.log_normalizer))
    if rejection:
        assert gap < Z_SCORE * float(result.log_normalizer_error) + 1e-9
        assert gap < 1e-4
        assert 0.996 < result.info["acceptance_rate"] < 1.0
    else:
        assert gap < 0.002
        assert 0.0 < result.certificate.estimated_total_variation <= 0.002
    # No bound may be claimed while the discretisation is left out of it.
    assert result.certificate.law == "consistent" and result.certificate.total_variation is None
    assert "discretisation" in result.certificate.excludes
    torch.testing.assert_close(result.stats["reward"], reward(draws))


def test_the_total_variation_is_within_the_certificate():
    """The law of a coarse lattice, by its density ratio s(u) against the exact tilt."""
    base, reward = model(), quadratic(ONE)
    exact = base.tilted_law(reward).law
    torch.manual_seed(0)
    u = exact.sample((200_000,)) @ ONE.T
    for epsilon in (0.4, 0.1, 0.01):
        tilt = QuadraticTilt(base, reward, epsilon=epsilon)
        low, high, _ = tilt.route._range(ExactFamily(base, ONE, B[:2]), None, 0.1 * epsilon)
        outside = float(((u < low) | (u > high)).double().mean())
        assert outside <= 0.1 * epsilon
        lattice = Lattice.over(low, high, 0.85 * epsilon / (1 + epsilon))
        factor = lattice.log_factor(u).exp()
        distance = float(0.5 * (factor / factor.mean() - 1).abs().mean())
        assert 0.05 * epsilon < distance <= epsilon


def test_through_the_diffusion():
    """The slack is that of 150 steps."""
    base, reward = model(steps=150), quadratic(ONE)
    exact = base.tilted_law(reward)
    draws = QuadraticTilt(base, reward, num_samples=4000, seed=3).run().samples["x_0"]
    error = (exact.law.variance / len(draws)).sqrt()
    assert bool(((draws.mean(0) - exact.law.mean).abs() < Z_SCORE * error + 0.02).all())


def test_a_radius_takes_the_place_of_the_range():
    base, reward = model(), quadratic(ONE)
    small = QuadraticTilt(base, reward, radius=4.0, num_samples=20, seed=0).run()
    large = QuadraticTilt(base, reward, radius=40.0, num_samples=20, seed=0).run()
    h = large.info["lattice_spacing"]
    more = large.info["lattice_points"] - small.info["lattice_points"]
    assert more == pytest.approx(72.0 / h, abs=2.0)
    assert 0.0 < large.certificate.estimated_total_variation <= 0.001


def test_the_factor_is_that_of_half_the_square():
    factor = positive_factor(rewards.Quadratic(0.5 * TWO.T @ TWO))
    torch.testing.assert_close(factor.T @ factor, TWO.T @ TWO)
    assert positive_factor(rewards.Quadratic(0.5 * ONE.T @ ONE)).shape == (1, 2)


def test_beta_is_folded_in_and_seeds_reproduce():
    base, reward = model(), quadratic(ONE)
    twice = QuadraticTilt(base, reward, beta=1.1, num_samples=50, seed=4).run()
    other = QuadraticTilt(base, reward * 1.1, num_samples=50, seed=4).run()
    assert torch.equal(twice.samples["x_0"], other.samples["x_0"])
    torch.testing.assert_close(twice.stats["reward"] * 1.1, other.stats["reward"])
    pyro.set_rng_seed(0)
    state = torch.get_rng_state()
    QuadraticTilt(base, reward, num_samples=5, seed=4).run()
    assert torch.equal(torch.get_rng_state(), state)


def test_float32_states():
    import pyro.distributions as dist
    from tilt_models import LOCS, SCALES, WEIGHTS

    from pyro_tilt import diffusion

    parts = dist.Normal(LOCS[:, :2].float(), SCALES[:, :2].float()).to_event(1)
    law = dist.MixtureSameFamily(dist.Categorical(WEIGHTS.float()), parts)
    base = diffusion.MixtureDiffusion(law, diffusion.VP.linear(20))
    reward = rewards.Quadratic(0.5 * ONE.T @ ONE).to(torch.float32)
    for rejection in (False, True):
        result = QuadraticTilt(base, reward, num_samples=200, seed=0, rejection=rejection).run()
        assert result.samples["x_0"].dtype == torch.float32


def test_a_negative_direction_is_refused_with_its_theorem():
    for A in (torch.diag(torch.tensor([-1.0, 0.0])), torch.diag(torch.tensor([0.1, -0.3]))):
        with pytest.raises(NotImplementedError, match="Theorem 4.1.*ConvexTilt"):
            QuadraticTilt(model(), rewards.Quadratic(A))


def test_a_quadratic_that_is_not_integrable_is_refused():
    with pytest.raises(ValueError, match="not integrable"):
        QuadraticTilt(model(), rewards.Quadratic(torch.diag(torch.tensor([4.0, 0.0]))))


def test_bad_options():
    for options in ({"epsilon": 0.7}, {"radius": -1.0}, {"max_z": 0.0}, {"mcmc_steps": 0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            QuadraticTilt(model(), quadratic(ONE), **options)


def test_estimated_normalizers_enter_the_certificate():
    """A network: evidence within its stated error, and that error in the certificate."""
    reward = rewards.Quadratic(0.25 * ONE.T @ ONE, B[:2])
    exact = model().tilted_law(reward)
    found = {}
    for size in (500, 2000):
        result = QuadraticTilt(
            network(), reward, num_samples=500, seed=0, normalizer_samples=size, max_z=1e9
        ).run()
        error = float(result.log_normalizer_error)
        assert abs(float(result.log_normalizer - exact.log_normalizer)) < Z_SCORE * error + 0.02
        certificate = result.certificate
        assert certificate.law == "consistent" and certificate.total_variation is None
        assert "normalizer_samples" in certificate.budget
        found[size] = certificate.estimated_total_variation
    assert 0.0 < found[2000] < 0.8 * found[500]


def test_errors_of_normalizers_bound_the_total_variation():
    """Weights off by the errors at their joint confidence, in the worst direction."""
    torch.manual_seed(0)
    family = ExactFamily(model(), ONE)
    family.exact = False
    masses, errors = torch.randn(7, dtype=F64), 0.03 * torch.rand(7, dtype=F64) + 0.01
    mixture = TiltMixture(family, torch.zeros(7, 1, dtype=F64), masses, errors)
    score = -float(torch.special.ndtri(torch.tensor(0.005 / 7, dtype=F64)))
    assert 3.0 < score < 3.3
    for uniform in (False, True):
        bound = mixture_error(mixture, uniform=uniform)
        for _ in range(50):
            signs = torch.randint(0, 2, (7,)) * 2 - 1
            other = (masses + score * errors * signs).softmax(-1)
            assert float(0.5 * (other - masses.softmax(-1)).abs().sum()) <= bound
    assert mixture_error(mixture) < mixture_error(mixture, uniform=True)
    epsilon = math.expm1(score * float(errors.max()))
    assert mixture_error(mixture, uniform=True) == pytest.approx(epsilon / (1 - epsilon))
