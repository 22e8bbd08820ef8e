# SPDX-License-Identifier: Apache-2.0
"""The engine of linear tilts: draws of a diffusion model, each with a tilt of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_tilt.infer.tilts.protocols import DiffusionModel, NoiseSchedule

__all__ = ["block_rows", "choose_form", "linear_tilt_draws", "run_levels", "tilted_denoise"]

FORMS = ("auto", "start", "prediction")
# Numbers of one state tensor: small enough for a processor's cache, large enough to be quick.
_BLOCK = 2**21


def choose_form(form: str, sampler: str, eta: float) -> str:
    """
    The way in which a sampler is tilted.

    :param form: ``"start"`` moves the starting point of the unmodified sampler, ``"prediction"``
        shifts the prediction at every level, ``"auto"`` is the first wherever it is right.
    :param sampler: ``"ancestral"``, ``"heun"`` or ``"euler"``.
    :param eta: noise of the ancestral sampler.
    :raises ValueError: for ``"start"`` with a sampler that is not fully stochastic.

    >>> choose_form("auto", "ancestral", 1.0), choose_form("auto", "heun", 1.0)
    ('start', 'prediction')
    """
    if form not in FORMS:
        raise ValueError(f"form must be one of {', '.join(FORMS)}; got {form!r}")
    stochastic = sampler == "ancestral" and eta == 1.0
    if form == "start" and not stochastic:
        name = f"ancestral with eta={eta:g}" if sampler == "ancestral" else sampler
        raise ValueError(
            f"form='start' is wrong for the sampler {name}: only where every step adds all of its "
            "noise (ancestral with eta=1) does a shifted start carry the tilt through; use "
            "form='prediction'"
        )
    return ("start" if stochastic else "prediction") if form == "auto" else form


def tilted_denoise(base: DiffusionModel, theta: Tensor) -> Callable[[Tensor, Any], Tensor]:
    r"""
    The prediction of the tilted data, :math:`D_q(y) = D_p(y + \tfrac{s^2}{a} \theta)`.

    :param base: the model.
    :param theta: of the event shape, or one per state.
    """

    def denoise(x: Tensor, level: Any) -> Tensor:
        return base.denoise(x + (level.s**2 / level.a) * theta, level)

    return denoise


def linear_tilt_draws(
    base: DiffusionModel,
    theta: Tensor,
    n: int | None = None,
    *,
    sampler: str = "ancestral",
    eta: float = 1.0,
    form: str = "auto",
    schedule: NoiseSchedule | None = None,
    warm: Tensor | None = None,
    max_batch: int | None = None,
    progress: Callable[[int], Any] | None = None,
) -> Tensor:
    r"""
    Draws of :math:`q(x_0) \propto p(x_0)\, e^{\langle\theta, x_0\rangle}` of a diffusion model.

    As :math:`q(x_0 | x_t = y) = p(x_0 | x_t = y + \tfrac{s^2}{a}\theta)` at every level, the
    sampler runs on the shifted prediction; for the fully stochastic one that is the unmodified
    sampler from :math:`x_T = s_T \xi + \tfrac{s_T^2}{a_T} \theta`.

    :param base: the model.
    :param theta: the tilt, of the event shape, or a tilt for each draw: ``(n,)`` + event shape.
    :param n: number of draws; by default the first dimension of ``theta``.
    :param sampler: see :meth:`pyro_tilt.diffusion.Diffusion.program`.
    :param eta: noise of the ancestral sampler.
    :param form: see :func:`choose_form`.
    :param schedule: levels to run over; by default the model's.
    :param warm: draws near the tilted law that are noised to the first level,
        :math:`a_T \hat x + s_T \xi`, in place of pure noise; ``(n,)`` + event shape.
    :param max_batch: most draws run at once; by default as many as make two million numbers.
    :param progress: called with the rows done, one per draw and step.
    :returns: ``(n,)`` + event shape, from the global random state.
    :raises ValueError: for shapes that do not fit, or a wrong form.

    >>> import pyro.distributions as dist
    >>> from pyro_tilt import diffusion
    >>> base = diffusion.MixtureDiffusion(
    ...     dist.MultivariateNormal(torch.zeros(2), torch.eye(2)), diffusion.VP.linear(200))
    >>> _ = torch.manual_seed(0)
    >>> draws = linear_tilt_draws(base, torch.tensor([[2.0, 0.0], [0.0, -1.0]]).repeat(4000, 1))
    >>> [round(x) for x in draws.view(-1, 4).mean(0).tolist()]
    [2, 0, 0, -1]
    """
    form = choose_form(form, sampler, eta)
    theta, n = check_tilts(base, theta, n)
    if warm is not None and warm.shape != (n, *base.event_shape):
        raise ValueError(
            f"warm must be {(n, *base.event_shape)}, one start per draw; got {tuple(warm.shape)}"
        )
    levels = (schedule or base.schedule).levels
    rows = block_rows(base, max_batch)
    parts = []
    with torch.no_grad():
        for first in range(0, n, rows):
            part = slice(first, min(n, first + rows))
            tilt = theta if theta.shape == base.event_shape else theta[part]
            x = start_noise(base, part.stop - part.start, levels[0])
            if warm is not None:
                x = x + levels[0].a * warm[part]
            denoise = None
            if form == "start":
                x = x + (levels[0].s ** 2 / levels[0].a) * tilt
            else:
                denoise = tilted_denoise(base, tilt)
            parts.append(run_levels(base, x, levels, sampler, eta, denoise, progress))
    return torch.cat(parts) if parts else theta.new_zeros((0, *base.event_shape))


def run_levels(
    base: DiffusionModel,
    x: Tensor,
    levels: Any,
    sampler: str,
    eta: float,
    denoise: Callable[[Tensor, Any], Tensor] | None = None,
    progress: Callable[[int], Any] | None = None,
) -> Tensor:
    """
    Runs a sampler over levels from given states at the first of them.

    :param base: the model.
    :param x: states of shape ``(n,)`` + event shape.
    :param levels: the levels, the last of them clean.
    :param sampler: see :meth:`pyro_tilt.diffusion.Diffusion.program`.
    :param eta: noise of the ancestral sampler.
    :param denoise: replaces the model's own prediction.
    :param progress: called with the rows of every step.
    :raises ValueError: if a draw is not finite.
    """
    for now, then in zip(levels, levels[1:]):
        x, std = base.step(x, now, then, sampler=sampler, eta=eta, denoise=denoise)
        if std:
            x = torch.normal(x, x.new_tensor(std).expand(x.shape))
        if progress is not None:
            progress(len(x))
    bad = int((~torch.isfinite(x)).flatten(1).any(-1).sum())
    if bad:
        raise ValueError(
            f"{bad} of {len(x)} draws are not finite: the model's prediction broke down, as it "
            "may where the tilt takes it far from what it was trained on (lower max_z)"
        )
    return x


def start_noise(base: DiffusionModel, n: int, level: Any) -> Tensor:
    """Noise of the first level, drawn as Pyro's normal draws it."""
    shape = (n, *base.event_shape)
    zero = torch.zeros((), dtype=base.dtype, device=base.device)
    return torch.normal(zero.expand(shape), (zero + level.s).expand(shape))


def block_rows(base: DiffusionModel, max_batch: int | None) -> int:
    """Most draws to run at once."""
    return max_batch or max(1, _BLOCK // max(1, base.event_shape.numel()))


def check_tilts(base: DiffusionModel, theta: Tensor, n: int | None) -> tuple[Tensor, int]:
    """One tilt or one per draw, in the model's dtype, and the number of draws."""
    theta = torch.as_tensor(theta)
    shape = tuple(base.event_shape)
    single = tuple(theta.shape) == shape
    each = theta.dim() == len(shape) + 1 and tuple(theta.shape[1:]) == shape
    if not single and not each:
        raise ValueError(
            f"theta must have the event shape {shape} of the model, or (n,) in front of it; got "
            f"{tuple(theta.shape)}. A tilt is linear in what the diffusion runs on: for a latent "
            "diffusion theta lives in the latent space, not among the pixels that a decoder makes "
            "of it"
        )
    if not bool(torch.isfinite(theta).all()):
        raise ValueError("theta must be finite")
    if each and n not in (None, len(theta)):
        raise ValueError(f"theta has {len(theta)} rows, but n = {n} draws were asked for")
    if single and n is None:
        raise ValueError("give n, the number of draws, with a single theta")
    return theta.to(dtype=base.dtype, device=base.device), len(theta) if each else int(n or 0)
