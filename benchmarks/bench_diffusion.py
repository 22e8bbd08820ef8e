# SPDX-License-Identifier: Apache-2.0
"""Linear tilts of a diffusion: their bias against the steps, wrong guidances, and their cost.

The mixture is a hard case in four ways at once. Its rarest component becomes nearly half of the
tilt and its commonest all but vanishes; and its narrow component lies near a wider one in the
direction of the slope, so that what a guidance does early decides between them: adding the slope
without the shift misses the mean by about .42, the gradient through the denoiser by about .21.
How far a wrong guidance goes wrong depends on the mixture (on wider components the first misses
by several units); this one was sought out for carrying those weights and those errors.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pyro.distributions as dist
import torch
from torch import Tensor

from benchmarks.harness import Row, paired_ratio
from pyro_tilt import diffusion, rewards
from pyro_tilt.infer import LinearTilt
from pyro_tilt.infer.tilts import linear_tilt_draws

TITLE = "Linear tilts of a diffusion, 2-D mixture of three components"
DRAWS, SEED = 40_000, 0
STEPS = (25, 50, 100, 200, 400, 800)
F64 = torch.float64
WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=F64)
HEIGHTS = torch.tensor([-1.0, 0.5, 2.15], dtype=F64)
SCALES = torch.tensor([[0.2, 0.2], [0.2, 0.2], [0.05, 0.2]], dtype=F64)
# The slope and the scales that carry the weights .5, .3, .2 to .0181, .5088, .4731.
WANTED = torch.tensor([0.0181, 0.5088, 0.4731], dtype=F64)
SIZE = 1.25
HIGH_DIM, HIGH_STEPS, HIGH_DRAWS = 1000, 50, 512


def mixture() -> dist.MixtureSameFamily:
    """Components whose means make the stated weights those of the tilt by (1.25, 0)."""
    gains = (WANTED / WEIGHTS).log()
    variances = SCALES[:, 0].square()
    first = (gains - gains[0]) / SIZE - 0.5 * SIZE * (variances - variances[0])
    locs = torch.stack([first - 1.6, HEIGHTS], -1)
    parts = dist.Normal(locs, SCALES).to_event(1)
    return dist.MixtureSameFamily(dist.Categorical(WEIGHTS), parts)


THETA = torch.tensor([SIZE, 0.0], dtype=F64)
SETTINGS: dict[str, tuple[Callable[[int], diffusion.Schedule], str]] = {
    "VP ancestral": (diffusion.VP.linear, "ancestral"),
    # An ODE keeps the error of its start, a centre of zero: about |mean| / sigma_max of a weight.
    "VE Heun": (lambda steps: diffusion.VE.geometric(steps, 200.0), "heun"),
    "rectified flow": (diffusion.RectifiedFlow, "euler"),
}


def shares(draws: Tensor, law: dist.MixtureSameFamily) -> Tensor:
    """Mean posterior weights of the components."""
    parts = law.component_distribution
    scores = parts.log_prob(draws.unsqueeze(-2)) + law.mixture_distribution.logits
    return scores.softmax(-1).mean(0)


def guided(base: diffusion.MixtureDiffusion, kind: str) -> Tensor:
    """The two guidances that are taken for a tilt, under the same ancestral sampler."""

    def denoise(x: Tensor, level: diffusion.Level) -> Tensor:
        factor = level.s**2 / level.a**2
        if kind == "unshifted":
            return base.denoise(x, level) + factor * THETA
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            clean = base.denoise(x, level)
            pull = torch.autograd.grad((clean * THETA).sum(), x)[0]
        return clean.detach() + level.a * factor * pull

    torch.manual_seed(SEED)
    with torch.no_grad():
        x, levels = base.start((DRAWS,)), base.schedule.levels
        for now, then in zip(levels, levels[1:]):
            mean, std = base.step(x, now, then, denoise=denoise)
            x = mean + std * torch.randn_like(mean)
    return x


def run() -> list[Row]:
    law = mixture()
    exact = diffusion.MixtureDiffusion(law, diffusion.VP.linear(2)).tilted_law(
        rewards.Linear(THETA)
    )
    target = exact.law.mixture_distribution.probs
    rows = [Row("exact weights of the tilt", _show(target), _show(WANTED), _near(target))]
    for name, (schedule, sampler) in SETTINGS.items():
        bias = []
        for steps in STEPS:
            base = diffusion.MixtureDiffusion(law, schedule(steps))
            tilt = LinearTilt(
                base, THETA, sampler=sampler, num_samples=DRAWS, seed=SEED, progress=False
            )
            draws = tilt.run().samples["x_0"]
            found = shares(draws, exact.law)
            bias.append(float((found - target).abs().max()))
            if steps == 400:
                mean = float((draws.mean(0) - exact.law.mean).norm())
                rows.append(
                    Row(
                        f"{name}, 400 steps, {DRAWS:,} draws",
                        f"weights {_show(found)}, error in mean {mean:.3f}",
                        "within 0.008",
                        bias[-1] <= 0.008,
                    )
                )
        figures = ", ".join(f"{n}: {value:.4f}" for n, value in zip(STEPS, bias))
        rows.append(Row(f"{name}, largest error of a weight by steps", figures, "-", True))
    rows += wrong_rows(law, exact.law)
    rows += [identity_row(law), cost_row()]
    return rows


def wrong_rows(law: dist.MixtureSameFamily, exact: dist.MixtureSameFamily) -> list[Row]:
    """The wrong guidances on the same mixture."""
    base = diffusion.MixtureDiffusion(law, diffusion.VP.linear(400))
    names = {
        "unshifted": ("theta / a added to the score without the shift", 0.42),
        "gradient": ("gradient of the reward through the denoiser", 0.21),
    }
    rows = []
    for kind, (words, expected) in names.items():
        draws = guided(base, kind)
        error = float((draws.mean(0) - exact.mean).norm())
        found = _show(shares(draws, exact))
        rows.append(
            Row(
                f"wrong: {words}",
                f"error in mean {error:.3f}, weights {found}",
                f"about {expected}, to a tenth of it",
                abs(error - expected) <= 0.1 * expected,
            )
        )
    return rows


def identity_row(law: dist.MixtureSameFamily) -> Row:
    base = diffusion.MixtureDiffusion(law, diffusion.VP.linear(400))
    found = []
    for form in ("start", "prediction"):
        torch.manual_seed(SEED)
        found.append(linear_tilt_draws(base, THETA, 2000, form=form))
    gap = float((found[0] - found[1]).abs().max())
    return Row(
        "shifted start against shifted prediction, same noise",
        f"{gap:.1e}",
        "at most 1e-10",
        gap <= 1e-10,
    )


def cost_row() -> Row:
    """A tilt in a thousand dimensions against the plain sampler of the base, by CPU time."""
    torch.manual_seed(SEED)
    parts = dist.Normal(torch.randn(3, HIGH_DIM), 0.5 + torch.rand(3, HIGH_DIM)).to_event(1)
    law = dist.MixtureSameFamily(dist.Categorical(WEIGHTS.float()), parts)
    base = diffusion.MixtureDiffusion(law, diffusion.VP.linear(HIGH_STEPS))
    theta = torch.randn(HIGH_DIM) / math.sqrt(HIGH_DIM)
    plain = diffusion.DiffusionLaw(base)

    def tilted() -> None:
        LinearTilt(base, theta, num_samples=HIGH_DRAWS, seed=SEED, progress=False).run()

    ratio, ours, theirs = paired_ratio(
        tilted, lambda: plain.sample((HIGH_DRAWS,)), rounds=9, blocks=(1, 1)
    )
    return Row(
        f"tilt in {HIGH_DIM:,} dimensions / plain base sampling, per draw, CPU time",
        f"{ratio:.2f} ({1e3 * ours / HIGH_DRAWS:.2f} and {1e3 * theirs / HIGH_DRAWS:.2f} ms)",
        "at most 1.2",
        ratio <= 1.2,
    )


def _show(weights: Tensor) -> str:
    return "/".join(f"{value:.4f}" for value in weights.tolist())


def _near(weights: Tensor) -> bool:
    return bool((weights - WANTED).abs().max() < 1e-4)
