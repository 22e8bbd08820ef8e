# SPDX-License-Identifier: Apache-2.0
"""Isotropic quadratic tilts against exactly tilted mixtures, and refusals."""

import math

import pyro.distributions as dist
import pytest
import torch

from pyro_tilt import diffusion, rewards
from pyro_tilt.infer import QuadraticTilt
from pyro_tilt.infer.tilts import isotropic_draws
from pyro_tilt.infer.tilts.isotropic import isotropic_normalizer
from pyro_tilt.testing.gates import Z_SCORE

F64 = torch.float64
WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=F64)
LOCS = torch.tensor([[-2.5, -0.5], [1.0, 1.5], [2.0, -1.5]], dtype=F64)
FACTORS = torch.tensor(
    [[[0.5, 0.0], [0.3, 0.7]], [[0.9, 0.0], [-0.4, 0.3]], [[0.4, 0.0], [0.1, 0.6]]], dtype=F64
)
EYE = torch.eye(2, dtype=F64)
B = torch.tensor([1.1, -0.6], dtype=F64)


def model(schedule=None):
    parts = dist.MultivariateNormal(LOCS, scale_tril=FACTORS)
    mixture = dist.MixtureSameFamily(dist.Categorical(WEIGHTS), parts)
    return diffusion.MixtureDiffusion(mixture, schedule or diffusion.VP.linear(50))


def near_modes(draws):
    mode = (draws.unsqueeze(1) - LOCS).square().sum(-1).argmin(-1)
    return torch.nn.functional.one_hot(mode, 3).to(F64)


def check_moments(draws, law, *, slack):
    """Means, second moments and mode shares at Z_SCORE errors plus a discretisation slack."""
    torch.manual_seed(1)
    reference = law.sample((200_000,))
    for fn in (lambda x: x, lambda x: x.square(), lambda x: x[:, :1] * x[:, 1:], near_modes):
        ours, theirs = fn(draws), fn(reference)
        error = (theirs.var(0) * (1 / len(draws) + 1 / len(reference))).sqrt()
        assert bool(((ours.mean(0) - theirs.mean(0)).abs() < Z_SCORE * error + slack).all())


@pytest.mark.parametrize("schedule", [diffusion.VP.linear(250), diffusion.VE.geometric(150, 50.0)])
def test_the_tilt_starts_at_a_point(schedule):
    reward = rewards.Quadratic(-0.35 * EYE, B, torch.tensor(0.4, dtype=F64))
    base = model(schedule)
    exact = base.tilted_law(reward)
    result = QuadraticTilt(base, reward, num_samples=4000, seed=2).run()
    check_moments(result.samples["x_0"], exact.law, slack=0.02)
    assert float(result.log_normalizer) == pytest.approx(float(exact.log_normalizer), abs=1e-9)
    torch.testing.assert_close(result.stats["reward"], reward(result.samples["x_0"]))
    assert result.info["start_ratio"] == pytest.approx(1 / math.sqrt(0.7))


def test_the_sign_and_the_half_of_the_curvature_matter():
    """The moments tell apart curvatures and slopes that differ by the usual slips."""
    base, reward = model(diffusion.VP.linear(150)), rewards.Quadratic(-0.35 * EYE, B)
    law = base.tilted_law(reward).law
    for c, slope in ((0.35, B), (1.4, B), (0.7, -B), (0.7, 2 * B)):
        with pytest.raises(AssertionError):
            check_moments(isotropic_draws(base, slope, c, 3000), law, slack=0.02)


@pytest.mark.parametrize("sampler", ["heun", "euler"])
def test_deterministic_samplers_take_the_shifted_prediction(sampler):
    reward = rewards.Quadratic(-0.35 * EYE, B)
    base = model(diffusion.VE.geometric(60, 50.0))
    result = QuadraticTilt(base, reward, sampler=sampler, num_samples=3000, seed=2).run()
    check_moments(result.samples["x_0"], base.tilted_law(reward).law, slack=0.03)
    with pytest.raises(ValueError, match="form='start'"):
        QuadraticTilt(base, reward, sampler=sampler, form="start")


def test_the_prediction_of_the_tilt_is_exact():
    from pyro_tilt.infer.tilts.isotropic import _denoise

    base, reward = model(), rewards.Quadratic(-0.35 * EYE, B)
    tilted = diffusion.MixtureDiffusion(base.tilted_law(reward).law, base.schedule)
    ours = _denoise(base, B, 0.7)
    generator = torch.Generator().manual_seed(0)
    for level in base.schedule.levels[:-1]:
        x = torch.randn(30, 2, dtype=F64, generator=generator) * math.hypot(2 * level.a, level.s)
        torch.testing.assert_close(ours(x, level), tilted.denoise(x, level), atol=1e-8, rtol=0)


def test_beta_is_folded_in():
    reward = rewards.Quadratic(-0.2 * EYE, B)
    base = model()
    twice = QuadraticTilt(base, reward, beta=2.0, num_samples=20, seed=0).run()
    other = QuadraticTilt(base, reward * 2.0, num_samples=20, seed=0).run()
    assert torch.equal(twice.samples["x_0"], other.samples["x_0"])
    torch.testing.assert_close(twice.stats["reward"] * 2, other.stats["reward"])
    assert float(twice.log_normalizer) == pytest.approx(float(other.log_normalizer))


def test_beta_zero_is_the_base():
    reward = rewards.Quadratic(-0.2 * EYE, B)
    base = model()
    result = QuadraticTilt(base, reward, beta=0.0, num_samples=1, seed=9).run()
    import pyro

    pyro.set_rng_seed(9)
    assert torch.equal(result.samples["x_0"][0], base.program()())
    assert float(result.log_normalizer) == pytest.approx(0.0, abs=1e-12)


def test_a_small_curvature_starts_above_the_schedule_where_the_model_knows_it():
    base, reward = model(diffusion.RectifiedFlow(150, end=0.9)), rewards.Quadratic(-0.002 * EYE, B)
    result = QuadraticTilt(base, reward, num_samples=3000, seed=0).run()
    assert result.info["start_ratio"] > base.schedule.start.ratio
    check_moments(result.samples["x_0"], base.tilted_law(reward).law, slack=0.03)
    net = diffusion.NetworkDiffusion(
        lambda x, t: 0 * x, diffusion.VP.linear(10), (2,), prediction="x0", dtype=F64
    )
    with pytest.raises(ValueError, match="trained|schedule begins"):
        QuadraticTilt(net, rewards.Quadratic(-1e-6 * EYE)).run()


@pytest.mark.parametrize("c", [0.3, 2.5])
def test_the_normalizer_of_the_start(c):
    base = model()
    exact = base.tilted_law(rewards.Quadratic(-0.5 * c * EYE, B)).log_normalizer
    assert isotropic_normalizer(base, B, c) == pytest.approx(float(exact), abs=1e-9)


def test_a_network_has_no_evidence_of_a_quadratic_tilt():
    net = diffusion.NetworkDiffusion(
        lambda x, t: 0.3 * x, diffusion.VP.linear(10), (2,), prediction="x0", dtype=F64
    )
    result = QuadraticTilt(net, rewards.Quadratic(-EYE, B), num_samples=5, seed=0).run()
    assert math.isnan(float(result.log_normalizer)) and result.samples["x_0"].shape == (5, 2)
    assert "network error" in result.certificate.excludes


def test_a_tilt_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="not integrable"):
        QuadraticTilt(model(), rewards.Quadratic(5.0 * EYE))


def test_hard_quadratics_are_refused_with_the_reason():
    with pytest.raises(NotImplementedError, match="2602.16570"):
        QuadraticTilt(model(), rewards.Quadratic(torch.diag(torch.tensor([-1.0, 0.0]))))


def test_bad_quadratics_are_refused():
    with pytest.raises(TypeError, match="Quadratic"):
        QuadraticTilt(model(), rewards.Linear(B))
    with pytest.raises(ValueError, match="A must be"):
        QuadraticTilt(model(), rewards.Quadratic(-torch.eye(3)))
    with pytest.raises(ValueError, match="curvature"):
        isotropic_draws(model(), B, -1.0, 5)
