# SPDX-License-Identifier: Apache-2.0
"""One step of a sampler, from one noise level to the next."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from pyro_tilt.diffusion.levels import Level

__all__ = ["SAMPLERS", "Denoise", "check_sampler", "evaluations", "sampler_step"]

Denoise = Callable[[Tensor, Level], Tensor]
SAMPLERS = ("ancestral", "heun", "euler")


def check_sampler(sampler: str, eta: float) -> None:
    """
    Refuses an unknown sampler.

    :param sampler: ``"ancestral"``, ``"heun"`` or ``"euler"``.
    :param eta: in [0, 1]; only the ancestral sampler has one.
    :raises ValueError: for another word or number.
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}; got {sampler!r}")
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f"eta must lie in [0, 1], got {eta}")


def sampler_step(
    denoise: Denoise, x: Tensor, now: Level, then: Level, *, sampler: str, eta: float = 1.0
) -> tuple[Tensor, float]:
    r"""
    Mean and standard deviation of the state at the level ``then``, given that at ``now``.

    With the prediction :math:`\hat x_0` of the data and :math:`\hat\epsilon = (x - a \hat x_0)/s`,

    .. math::

        \text{ancestral:}\quad x' &\sim N\bigl(a' \hat x_0 + \sqrt{s'^2 - \sigma^2}\,
        \hat\epsilon,\; \sigma^2\bigr), \quad
        \sigma^2 = \eta^2 s'^2 \Bigl(1 - \frac{a^2 s'^2}{a'^2 s^2}\Bigr) \\
        \text{euler:}\quad x' &= a' \hat x_0 + s' \hat\epsilon \\
        \text{heun:}\quad x' &= x + (a' - a) \tfrac12 (\hat x_0 + \tilde x_0)
        + (s' - s) \tfrac12 (\hat\epsilon + \tilde\epsilon)

    where the tilde marks predictions at the Euler point. The ancestral step is that of DDPM for
    :math:`\eta = 1` (Ho, Jain and Abbeel 2020, arXiv 2006.11239) and of DDIM in general (Song,
    Meng and Ermon 2020, arXiv 2010.02502). Heun's rule takes the flow :math:`dx = \hat x_0\, da +
    \hat\epsilon\, ds`, which is that of Karras et al. 2022, arXiv 2206.00364, where a = 1. The last
    step, to clean data, returns :math:`\hat x_0`.

    :param denoise: the prediction of the data, a function of state and level.
    :param x: the state.
    :param now: its level.
    :param then: the next level.
    :param sampler: ``"ancestral"``, ``"heun"`` or ``"euler"``.
    :param eta: noise of the ancestral sampler; 1 is DDPM, 0 is the deterministic DDIM.

    >>> import torch
    >>> mean, std = sampler_step(
    ...     lambda x, level: 0.5 * x, torch.ones(2), Level(0.6, 0.8, 1.0), Level(1.0, 0.0, 0.0),
    ...     sampler="ancestral")
    >>> mean, std
    (tensor([0.5000, 0.5000]), 0.0)
    """
    clean = denoise(x, now)
    if then.s == 0.0:
        return (clean if then.a == 1.0 else then.a * clean), 0.0
    if sampler == "ancestral":
        shrink = now.a * then.s / (then.a * now.s)
        # At eta = 1 the part of the old noise that is kept is known without a cancellation.
        std = eta * then.s * math.sqrt(1.0 - shrink * shrink)
        kept = then.s * math.sqrt(1.0 - eta * eta * (1.0 - shrink * shrink)) / now.s
        return (then.a - kept * now.a) * clean + kept * x, std
    kept = then.s / now.s
    point = (then.a - kept * now.a) * clean + kept * x
    if sampler == "euler":
        return point, 0.0
    again = denoise(point, then)
    noise = (x - now.a * clean) / now.s + (point - then.a * again) / then.s
    slope = 0.5 * (then.a - now.a) * (clean + again)
    return x + slope + 0.5 * (then.s - now.s) * noise, 0.0


def evaluations(sampler: str, steps: int) -> int:
    """
    How often a run calls the denoiser for each draw.

    :param sampler: see :func:`sampler_step`.
    :param steps: number of steps.

    >>> evaluations("euler", 10), evaluations("heun", 10)
    (10, 19)
    """
    return 2 * steps - 1 if sampler == "heun" else steps
