# SPDX-License-Identifier: Apache-2.0
"""Networks as diffusion models, and those of diffusers."""

import pyro.distributions as dist
import pytest
import torch

from pyro_tilt import diffusion
from pyro_tilt.infer import LinearTilt
from pyro_tilt.infer.tilts import linear_tilt_draws

F64 = torch.float64
PREDICTIONS = ("x0", "epsilon", "v", "score", "velocity")
THETA = torch.tensor([0.9, -0.5], dtype=F64)


def mixture_model(schedule):
    locs = torch.tensor([[-2.5, -0.5], [1.0, 1.5]], dtype=F64)
    parts = dist.Normal(locs, torch.tensor([[0.5, 0.4], [0.4, 0.6]], dtype=F64)).to_event(1)
    mixture = dist.MixtureSameFamily(dist.Categorical(torch.tensor([0.6, 0.4], dtype=F64)), parts)
    return diffusion.MixtureDiffusion(mixture, schedule)


class Exact(torch.nn.Module):
    """A network that predicts what the mixture knows, by the time that it is told."""

    def __init__(self, base, prediction):
        super().__init__()
        self.base, self.prediction = base, prediction
        self.weight = torch.nn.Parameter(torch.zeros((), dtype=F64))

    def forward(self, x, time):
        assert time.shape == (len(x),)
        level = self.base.schedule.level(float(time[0]))
        return diffusion.from_x0(self.base.denoise(x, level), x, level, self.prediction)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("schedule", [diffusion.VP.cosine(15), diffusion.RectifiedFlow(15)])
def test_every_type_of_prediction_gives_the_same_draws(schedule, prediction):
    base = mixture_model(schedule)
    net = diffusion.NetworkDiffusion(Exact(base, prediction), schedule, (2,), prediction=prediction)
    assert net.dtype == F64 and not net.exact
    for form in ("start", "prediction"):
        torch.manual_seed(0)
        exact = linear_tilt_draws(base, THETA, 20, form=form)
        torch.manual_seed(0)
        ours = linear_tilt_draws(net, THETA, 20, form=form)
        torch.testing.assert_close(ours, exact, atol=1e-8, rtol=0)


def test_rows_are_counted_and_chunked():
    schedule = diffusion.VP.linear(6)
    net = diffusion.NetworkDiffusion(
        Exact(mixture_model(schedule), "v"), schedule, (2,), prediction="v", chunk=7
    )
    result = LinearTilt(net, THETA, max_z=1e9, num_samples=20, seed=0).run()
    # Twenty draws over six steps, and the line integral of the evidence: 2 (16 + 1) rows.
    assert result.cost.network_rows == 20 * 6 + 34
    assert result.info["denoiser_rows"] == 20 * 6 + 34
    warm = LinearTilt(net, THETA, max_z=1.0, num_samples=20, seed=0).run()
    assert warm.cost.network_rows == warm.info["denoiser_rows"]
    assert "network error" in warm.certificate.excludes


def test_clipping_is_done_at_the_shifted_state():
    schedule = diffusion.VP.linear(6)
    base = mixture_model(schedule)
    net = diffusion.NetworkDiffusion(
        Exact(base, "epsilon"), schedule, (2,), prediction="epsilon", clip=1.1
    )
    tilted = diffusion.TiltedDiffusion(net, THETA)
    level, x = schedule.levels[2], torch.randn(9, 2, dtype=F64)
    expected = base.denoise(diffusion.shifted_state(x, THETA, level), level).clamp(-1.1, 1.1)
    torch.testing.assert_close(tilted.denoise(x, level), expected)


def test_bad_networks_are_refused():
    schedule = diffusion.VP.linear(4)
    with pytest.raises(ValueError, match="prediction"):
        diffusion.NetworkDiffusion(lambda x, t: x, schedule, (2,), prediction="noise")
    with pytest.raises(ValueError, match="clip"):
        diffusion.NetworkDiffusion(lambda x, t: x, schedule, (2,), clip=-1.0)
    net = diffusion.NetworkDiffusion(lambda x, t: x[:, :1], schedule, (2,))
    with pytest.raises(ValueError, match="one prediction per state"):
        net.denoise(torch.zeros(3, 2), schedule.start)
    with pytest.raises(ValueError, match="event shape"):
        net.denoise(torch.zeros(3, 5), schedule.start)


diffusers = pytest.importorskip("diffusers")


@pytest.fixture(scope="module")
def digits():
    from pyro_tilt.examples.digits.model import load_denoiser, make_scheduler

    return load_denoiser(), make_scheduler()


def test_the_digits_model_is_its_own_ancestral_sampler(digits):
    """The program of the examples, step by step: clipping, respaced times, posterior variance."""
    from pyro_tilt.examples.digits.model import reverse_steps

    denoiser, scheduler = digits
    base = diffusion.from_diffusers(denoiser.unet, scheduler, steps=10)
    assert base.event_shape == (1, 8, 8) and base.schedule.steps == 10 and base.clip == 1.0
    torch.manual_seed(0)
    ours = theirs = torch.randn(3, 1, 8, 8)
    levels = base.schedule.levels
    with torch.no_grad():
        for step, now, then in zip(reverse_steps(10), levels, levels[1:]):
            noise = torch.randn(3, 1, 8, 8)
            mean, std = base.step(ours, now, then)
            expected = step.mean(theirs, denoiser(theirs, step.timestep))
            assert now.time == step.timestep and std == pytest.approx(step.std, abs=1e-6)
            ours, theirs = mean + std * noise, expected + step.std * noise
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["DDPMScheduler", "DDIMScheduler"])
@pytest.mark.parametrize("target", ["epsilon", "sample", "v_prediction"])
def test_schedulers_of_diffusers_take_the_same_step(kind, target):
    """Their mean against ours, for their own types of prediction, at a time in the middle."""
    make = getattr(diffusers, kind)
    scheduler = make(
        num_train_timesteps=100, prediction_type=target, clip_sample=False, beta_end=0.1
    )
    scheduler.set_timesteps(20)
    torch.manual_seed(0)
    table = torch.randn(2, 3, 4, 4)
    base = diffusion.from_diffusers(
        torch.nn.Identity(), scheduler, event_shape=(3, 4, 4), call=lambda x, t: table
    )
    assert base.schedule.steps == 20
    place, x = 8, torch.randn(2, 3, 4, 4)
    now, then = base.schedule.levels[place : place + 2]
    time = int(scheduler.timesteps[place])
    assert now.time == time
    if kind == "DDIMScheduler":
        theirs = scheduler.step(table, time, x, eta=0.0).prev_sample
        ours, std = base.step(x, now, then, eta=0.0)
        assert std == 0.0
    else:
        generator = torch.Generator().manual_seed(5)
        theirs = scheduler.step(table, time, x, generator=generator).prev_sample
        mean, std = base.step(x, now, then)
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(5))
        ours = mean + std * noise
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_flow_matching_schedulers_predict_a_velocity():
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000)
    scheduler.set_timesteps(12)
    torch.manual_seed(0)
    velocity, x = torch.randn(2, 2, 4, 4), torch.randn(2, 2, 4, 4)
    told = []

    def call(states, time):
        told.append(float(time[0]))
        return velocity

    base = diffusion.from_diffusers(
        torch.nn.Identity(), scheduler, event_shape=(2, 4, 4), call=call
    )
    assert base.prediction == "velocity"
    now, then = base.schedule.levels[4:6]
    ours, _ = base.step(x, now, then, sampler="euler")
    torch.testing.assert_close(ours, x + (then.s - now.s) * velocity, atol=1e-5, rtol=0)
    assert told[0] == pytest.approx(1000 * now.s)
    assert now.s == pytest.approx(float(scheduler.sigmas[4]), abs=1e-5)


def test_a_digits_tilt_runs_and_reports_its_reach(digits):
    denoiser, scheduler = digits
    base = diffusion.from_diffusers(denoiser.unet, scheduler, steps=10)
    ink = torch.full((1, 8, 8), 0.1)
    result = LinearTilt(base, ink, num_samples=32, seed=0).run()
    plain = linear_tilt_draws(base, torch.zeros(1, 8, 8), 32)
    assert result.samples["x_0"].shape == (32, 1, 8, 8)
    assert result.info["z_max"] <= 1.0 + 1e-6
    assert float(result.samples["x_0"].mean()) > float(plain.mean())
    assert result.cost.network_rows == result.info["denoiser_rows"]


def test_pixels_and_latents_are_not_mixed_up(digits):
    base = diffusion.from_diffusers(digits[0].unet, digits[1], steps=10)
    with pytest.raises(ValueError, match="latent"):
        LinearTilt(base, torch.zeros(3, 64, 64))


def test_diffusers_models_that_cannot_be_tilted():
    net = torch.nn.Identity()
    silent = diffusers.DDIMScheduler(rescale_betas_zero_snr=True, timestep_spacing="trailing")
    with pytest.raises(ValueError, match="a = 0"):
        diffusion.from_diffusers(net, silent, event_shape=(1, 4, 4))
    with pytest.raises(ValueError, match="thresholding"):
        diffusion.from_diffusers(
            net, diffusers.DDPMScheduler(thresholding=True), event_shape=(1, 4, 4)
        )
    with pytest.raises(ValueError, match="event_shape"):
        diffusion.from_diffusers(net, diffusers.DDPMScheduler())
    with pytest.raises(TypeError, match="must be a diffusers scheduler, .* got builtins.object"):
        diffusion.from_diffusers(net, object(), event_shape=(1, 4, 4))
    with pytest.raises(TypeError, match="sigmas"):
        diffusion.from_diffusers(net, diffusers.KarrasVeScheduler(), event_shape=(1, 4, 4))


def test_a_small_unet_of_diffusers_is_tilted():
    """As published, in flat states too, which quadratic and convex rewards take."""
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    ).eval()
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=100, clip_sample=False)
    square = diffusion.from_diffusers(unet, scheduler, steps=10)
    flat = diffusion.from_diffusers(
        unet,
        scheduler,
        steps=10,
        event_shape=(64,),
        call=lambda x, t: unet(x.reshape(-1, 1, 8, 8), t).sample.flatten(1),
    )
    ink = torch.full((1, 8, 8), 0.05)
    drawn = LinearTilt(square, ink, num_samples=6, seed=0).run().samples["x_0"]
    same = LinearTilt(flat, ink.flatten(), num_samples=6, seed=0).run().samples["x_0"]
    assert drawn.shape == (6, 1, 8, 8) and bool(drawn.isfinite().all())
    torch.testing.assert_close(drawn.flatten(1), same, atol=1e-4, rtol=1e-4)
    plain = LinearTilt(square, 0.0 * ink, num_samples=6, seed=0).run().samples["x_0"]
    assert bool((drawn.flatten(1).mean(-1) > plain.flatten(1).mean(-1)).all())
