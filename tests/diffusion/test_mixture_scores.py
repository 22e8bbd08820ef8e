# SPDX-License-Identifier: Apache-2.0
"""Predictions of a mixture diffusion, their tilts, and the conversions between them."""

import math

import pyro.distributions as dist
import pytest
import torch

from pyro_tilt import diffusion, rewards

F64 = torch.float64
WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=F64)
LOCS = torch.tensor([[-3.0, 0.0], [0.0, 2.0], [3.0, -1.0]], dtype=F64)
FACTORS = torch.tensor(
    [[[0.5, 0.0], [0.3, 0.7]], [[0.9, 0.0], [-0.4, 0.3]], [[0.4, 0.0], [0.1, 0.6]]], dtype=F64
)
SCALES = torch.tensor([[0.5, 0.8], [0.9, 0.4], [0.6, 0.6]], dtype=F64)
THETA = torch.tensor([0.9, -0.8], dtype=F64)
SCHEDULES = {
    "VP linear": diffusion.VP.linear(12),
    "VP cosine": diffusion.VP.cosine(12),
    "VE": diffusion.VE.geometric(12, 80.0),
    "RF": diffusion.RectifiedFlow(12),
}
PREDICTIONS = ("x0", "epsilon", "v", "score", "velocity")


def components(kind):
    if kind == "full":
        return dist.MultivariateNormal(LOCS, scale_tril=FACTORS)
    if kind == "low rank":
        return dist.LowRankMultivariateNormal(LOCS, FACTORS[..., :1], SCALES)
    return dist.Normal(LOCS, SCALES).to_event(1)


def model(kind, schedule):
    mixture = dist.MixtureSameFamily(dist.Categorical(WEIGHTS), components(kind))
    return diffusion.MixtureDiffusion(mixture, schedule)


def noisy_law(kind, level):
    """The law of the noisy state, by torch alone."""
    parts = components(kind)
    covariance = (
        torch.diag_embed(SCALES.square()) if kind == "diagonal" else parts.covariance_matrix
    )
    covariance = level.a**2 * covariance + level.s**2 * torch.eye(2, dtype=F64)
    return dist.MixtureSameFamily(
        dist.Categorical(WEIGHTS), dist.MultivariateNormal(level.a * LOCS, covariance)
    )


def states(level, rows=64):
    generator = torch.Generator().manual_seed(3)
    spread = math.hypot(3.0 * level.a, level.s)
    return spread * torch.randn(rows, 2, dtype=F64, generator=generator)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("kind", ["full", "diagonal", "low rank"])
def test_predictions_are_tweedies_formula_of_the_noisy_density(kind, name):
    base = model(kind, SCHEDULES[name])
    for level in base.schedule.levels:
        x = states(level).requires_grad_()
        log_density = noisy_law(kind, level).log_prob(x)
        score = torch.autograd.grad(log_density.sum(), x)[0]
        x = x.detach()
        expected = (x + level.s**2 * score) / level.a
        torch.testing.assert_close(base.denoise(x, level), expected, atol=1e-8, rtol=0)
        torch.testing.assert_close(
            base.log_density(x, level), log_density.detach(), atol=1e-8, rtol=1e-10
        )


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_shifted_prediction_is_that_of_the_tilted_mixture(name, prediction):
    """From a = 1 down to 0.006 (0.001 for straight paths), to 1e-8 of the larger of one and it."""
    base = model("full", SCHEDULES[name])
    tilted = diffusion.MixtureDiffusion(base.tilted_law(rewards.Linear(THETA)).law, base.schedule)
    for level in base.schedule.levels[:-1]:
        x = states(level)
        shifted = diffusion.shifted_state(x, THETA, level)
        value = diffusion.from_x0(base.denoise(shifted, level), shifted, level, prediction)
        ours = diffusion.shift_prediction(value, THETA, level, prediction)
        exact = diffusion.from_x0(tilted.denoise(x, level), x, level, prediction)
        # The shift itself is of this size, and the last digits of it are rounded.
        size = max(1.0, level.ratio * float(THETA.norm()))
        assert float((ours - exact).abs().max()) <= 1e-8 * size


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_conversions_are_inverse_to_each_other(name, prediction):
    for level in SCHEDULES[name].levels[:-1]:
        x, clean = states(level), states(diffusion.Level(1.0, 0.0, 0.0))
        value = diffusion.from_x0(clean, x, level, prediction)
        back = diffusion.to_x0(value, x, level, prediction)
        torch.testing.assert_close(back, clean, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("name", ["VP linear", "VP cosine", "RF"])
def test_the_velocity_is_the_derivative_of_the_path(name):
    """Along x_t = a x_0 + s eps with both fixed, by central differences of the schedule."""
    schedule, step = SCHEDULES[name], 1e-6
    clean, noise = torch.tensor(0.7, dtype=F64), torch.tensor(-1.3, dtype=F64)
    for level in schedule.levels[1:-1]:
        low, high = (schedule.level(level.time + sign * step) for sign in (-1, 1))
        slope = ((high.a - low.a) * clean + (high.s - low.s) * noise) / (2 * step)
        x = level.a * clean + level.s * noise
        velocity = diffusion.from_x0(clean, x, level, "velocity")
        torch.testing.assert_close(velocity, slope, atol=1e-5, rtol=1e-5)


def test_v_is_the_usual_one():
    level, x = diffusion.Level(0.6, 0.8, 0.5), torch.tensor(0.5, dtype=F64)
    clean = torch.tensor(2.0, dtype=F64)
    noise = (x - 0.6 * clean) / 0.8
    assert float(diffusion.from_x0(clean, x, level, "v")) == pytest.approx(
        float(0.6 * noise - 0.8 * clean)
    )


def test_single_precision_keeps_the_components_apart_at_high_noise():
    """The states are a thousand times the data, whose likelihoods would cancel in float32."""
    schedule = diffusion.RectifiedFlow(12)
    double = model("diagonal", schedule)
    parts = dist.Normal(LOCS.float(), SCALES.float()).to_event(1)
    mixture = dist.MixtureSameFamily(dist.Categorical(WEIGHTS.float()), parts)
    single = diffusion.MixtureDiffusion(mixture, schedule)
    level = schedule.start
    shifted = diffusion.shifted_state(states(level), THETA, level)
    expected = double.denoise(shifted, level)
    assert single.dtype == torch.float32
    found = single.denoise(shifted.float(), level)
    assert float((found - expected).abs().max()) < 2e-3


def test_log_normalizer_is_that_of_the_registry():
    thetas = torch.stack([THETA, -THETA, torch.zeros(2, dtype=F64)])
    for kind in ("full", "diagonal"):
        base = model(kind, SCHEDULES["VE"])
        exact = [base.tilted_law(rewards.Linear(theta)).log_normalizer for theta in thetas]
        torch.testing.assert_close(base.log_normalizer(thetas), torch.stack(exact))


def test_one_component_and_many_dimensions():
    scale = torch.linspace(0.5, 2.0, 1000, dtype=F64)
    law = dist.Normal(torch.linspace(-1, 3, 1000, dtype=F64), scale).to_event(1)
    base = diffusion.MixtureDiffusion(law, diffusion.VP.linear(10))
    level = base.schedule.levels[5]
    x = torch.randn(4, 1000, dtype=F64)
    gain = level.a * scale**2 / (level.a**2 * scale**2 + level.s**2)
    expected = law.mean + gain * (x - level.a * law.mean)
    torch.testing.assert_close(base.denoise(x, level), expected)


def test_refuses_what_is_no_vector_mixture():
    schedule = diffusion.VP.linear(10)
    with pytest.raises(TypeError, match="Independent"):
        diffusion.MixtureDiffusion(
            dist.MixtureSameFamily(
                dist.Categorical(torch.ones(2)), dist.Gamma(torch.ones(2), torch.ones(2))
            ),
            schedule,
        )
    with pytest.raises(ValueError, match="batch shape"):
        diffusion.MixtureDiffusion(
            dist.MultivariateNormal(torch.zeros(3, 2), torch.eye(2)), schedule
        )
    with pytest.raises(ValueError, match="event shape"):
        model("full", schedule).denoise(torch.zeros(4, 3, dtype=F64), schedule.start)


def test_repr_says_shape_and_schedule():
    base = model("full", diffusion.VP.linear(10))
    tilted = diffusion.TiltedDiffusion(base, torch.zeros(base.event_shape, dtype=F64))
    for each in (base, tilted):
        assert repr(each).startswith(f"{type(each).__name__}(event_shape={tuple(base.event_shape)}")
        assert repr(each).endswith(f"{base.schedule!r})")
