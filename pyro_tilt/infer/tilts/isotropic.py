# SPDX-License-Identifier: Apache-2.0
"""Quadratic tilts whose curvature is the same in every direction, and negative."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyro_tilt.infer.tilts.diffusion_tilt import TiltDraws
from pyro_tilt.infer.tilts.linear_draws import (
    block_rows,
    check_tilts,
    choose_form,
    run_levels,
    start_noise,
)
from pyro_tilt.infer.tilts.protocols import DiffusionModel
from pyro_tilt.rewards import Quadratic

if TYPE_CHECKING:
    from pyro_tilt.infer.tilts.quadratic import QuadraticTilt

__all__ = ["IsotropicRoute", "isotropic_draws"]


class IsotropicRoute:
    r"""
    The route of :func:`isotropic_draws`, for :math:`A = -\tfrac c2 I` with c > 0, beta folded in.

    :param reward: the quadratic.
    :param curvature: c.
    """

    def __init__(self, reward: Quadratic, curvature: float) -> None:
        self.reward, self.curvature = reward, curvature

    @classmethod
    def match(cls, base: DiffusionModel, reward: Quadratic) -> IsotropicRoute | None:
        """
        The route where it applies, otherwise None.

        :param base: the model.
        :param reward: the quadratic, beta folded in.
        """
        diagonal = reward.A.diagonal() if reward.A.dim() == 2 else reward.A.reshape(1)
        middle = diagonal.mean()
        rest = reward.A - middle * torch.eye(len(diagonal)).to(reward.A)
        slack = 1e-6 if reward.A.dtype == torch.float32 else 1e-12
        if float(middle) >= 0.0 or float(rest.abs().max()) > slack * float(middle.abs()):
            return None
        return cls(reward, -2.0 * float(middle))

    def draw(self, tilt: QuadraticTilt, progress: Callable[[int], Any]) -> TiltDraws:
        """
        Draws of the tilt.

        :param tilt: the sampler, whose options count.
        :param progress: called with the rows done.
        """
        base, n, c = tilt.base, tilt.num_samples, self.curvature
        form = choose_form(tilt.form, tilt.diffusion_sampler, tilt.eta)
        schedule = isotropic_schedule(base, c) if form == "start" else base.schedule
        values = isotropic_draws(
            base,
            self.reward.b,
            c,
            n,
            sampler=tilt.diffusion_sampler,
            eta=tilt.eta,
            form=form,
            max_batch=tilt.rows,
            progress=progress,
        )
        log_z = isotropic_normalizer(base, self.reward.b, c) + float(self.reward.c)
        steps = len(schedule.levels) - 1
        return TiltDraws(
            values,
            log_normalizer=log_z,
            log_normalizer_error=math.nan if math.isnan(log_z) else 0.0,
            rows=n * base.evaluations(tilt.diffusion_sampler, steps),
            base_draws=n,
            steps={"noise_ratio": torch.tensor([v.ratio for v in schedule.levels[:-1]]).double()},
            info={"start_ratio": schedule.levels[0].ratio, "curvature": c},
        )


def isotropic_draws(
    base: DiffusionModel,
    theta: Tensor,
    curvature: float,
    n: int | None = None,
    *,
    sampler: str = "ancestral",
    eta: float = 1.0,
    form: str = "auto",
    max_batch: int | None = None,
    progress: Callable[[int], Any] | None = None,
) -> Tensor:
    r"""
    Draws of :math:`q \propto p(x)\, e^{\langle\theta, x\rangle - \frac c2 |x|^2}`.

    The tilt is the density of :math:`\theta / c = x + \epsilon / \sqrt c`, so that q is the law of
    the data given that noisy value. The unmodified stochastic sampler, started at the point
    :math:`x_t = a\theta / c` of the level with :math:`s / a = 1 / \sqrt c`, draws from it. Other
    samplers start from noise and use the shifted prediction

    .. math::

        D_q(y; a, s) = D_p\bigl(\sigma_*^2 (\theta + a y / s^2);\, 1, \sigma_*\bigr), \qquad
        1 / \sigma_*^2 = c + a^2 / s^2.

    Both are derived here; negative definite diagonal tilts are also treated by McDonald 2026,
    arXiv 2604.27196.

    :param base: the model.
    :param theta: of the event shape, or one per draw: ``(n,)`` + event shape.
    :param curvature: c > 0.
    :param n: number of draws; by default the first dimension of ``theta``.
    :param sampler: ``"ancestral"``, ``"heun"`` or ``"euler"``.
    :param eta: noise of the ancestral sampler.
    :param form: ``"start"``, ``"prediction"`` or ``"auto"``.
    :param max_batch: most draws run at once.
    :param progress: called with the rows of every step.
    :raises ValueError: for a curvature that is not positive, or so small that a network would be
        asked at noise it was not trained on.

    >>> import pyro.distributions as dist
    >>> from pyro_tilt import diffusion
    >>> base = diffusion.MixtureDiffusion(
    ...     dist.MultivariateNormal(torch.zeros(2), torch.eye(2)), diffusion.VP.linear(100))
    >>> _ = torch.manual_seed(0)
    >>> draws = isotropic_draws(base, torch.tensor([3.0, 0.0]), 1.0, 4000)  # N(theta / 2, I / 2)
    >>> [round(x, 1) + 0.0 for x in draws.mean(0).tolist()]
    [1.5, 0.0]
    """
    if not 0.0 < curvature < math.inf:
        raise ValueError(f"curvature must be positive and finite, got {curvature}")
    form = choose_form(form, sampler, eta)
    theta, n = check_tilts(base, theta, n)
    schedule = isotropic_schedule(base, curvature) if form == "start" else base.schedule
    levels, rows, parts = schedule.levels, block_rows(base, max_batch), []
    with torch.no_grad():
        for first in range(0, n, rows):
            part = slice(first, min(n, first + rows))
            tilt = theta if theta.shape == base.event_shape else theta[part]
            if form == "start":
                point = levels[0].a / curvature * tilt
                x = point.expand(part.stop - first, *base.event_shape)
                denoise = None
            else:
                x = start_noise(base, part.stop - first, levels[0])
                denoise = _denoise(base, tilt, curvature)
            parts.append(run_levels(base, x, levels, sampler, eta, denoise, progress))
    return torch.cat(parts) if parts else theta.new_zeros((0, *base.event_shape))


def isotropic_schedule(base: DiffusionModel, curvature: float) -> Any:
    """
    The levels from the one whose noise is that of the tilt, as many as the model's own.

    :param base: the model.
    :param curvature: c > 0.
    :raises ValueError: where a network is not trained at that level.
    """
    ratio, own = 1.0 / math.sqrt(curvature), base.schedule
    highest = own.levels[0].ratio
    if ratio > highest and not base.exact:
        raise ValueError(
            f"a quadratic tilt of curvature {curvature:.3g} starts at the noise ratio "
            f"{ratio:.3g}, above the {highest:.3g} at which the network's schedule begins; at so "
            "small a curvature use form='prediction', or LinearTilt and importance weights"
        )
    return own.starting_at(ratio, len(own.levels) - 1 if base.exact else None)


def isotropic_normalizer(base: DiffusionModel, theta: Tensor, curvature: float) -> float:
    r"""
    :math:`\log E\, e^{\langle\theta, x\rangle - \frac c2 |x|^2}` from the density of the noisy
    data, nan where the model does not know it.

    :param base: the model.
    :param theta: of the event shape.
    :param curvature: c > 0.
    """
    log_density = getattr(base, "log_density", None)
    if log_density is None:
        return math.nan
    level = isotropic_schedule(base, curvature).levels[0]
    size = base.event_shape.numel()
    theta = theta.to(dtype=base.dtype, device=base.device)
    density = float(log_density(level.a / curvature * theta, level)) + size * math.log(level.a)
    height = float(theta.double().square().sum()) / (2.0 * curvature)
    return density + height + 0.5 * size * math.log(2.0 * math.pi / curvature)


def _denoise(base: DiffusionModel, theta: Tensor, curvature: float) -> Callable[..., Tensor]:
    def denoise(x: Tensor, level: Any) -> Tensor:
        precision = curvature + 1.0 / level.ratio**2
        lower = base.schedule.starting_at(precision**-0.5).levels[0]
        return base.denoise(lower.a / precision * (theta + level.a / level.s**2 * x), lower)

    return denoise
