# SPDX-License-Identifier: Apache-2.0
"""A linear tilt of a diffusion model, as a diffusion model again."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_tilt.diffusion.levels import Level
from pyro_tilt.diffusion.model import Diffusion
from pyro_tilt.diffusion.predictions import shifted_state

__all__ = ["TiltedDiffusion"]


class TiltedDiffusion(Diffusion):
    r"""
    The model of :math:`q(x_0) \propto p(x_0)\, e^{\langle\theta, x_0\rangle}`.

    It predicts :math:`D_q(y) = D_p(y + \tfrac{s^2}{a}\theta)`, exactly so where the model does, and
    its program is an ordinary Pyro program of the tilted law, under any sampler.

    :param base: the model.
    :param theta: the tilt, of the event shape.
    :raises ValueError: for another shape, or a theta that is not finite.

    >>> import pyro.distributions as dist
    >>> from pyro_tilt import diffusion
    >>> base = diffusion.MixtureDiffusion(
    ...     dist.MultivariateNormal(torch.zeros(2), torch.eye(2)), diffusion.VP.linear(50))
    >>> tilted = TiltedDiffusion(base, torch.tensor([2.0, 0.0]))
    >>> tilted.program(sampler="heun")().shape
    torch.Size([2])
    """

    def __init__(self, base: Diffusion, theta: Tensor) -> None:
        if theta.shape != base.event_shape:
            raise ValueError(
                f"theta must have the event shape {tuple(base.event_shape)} of the model, got "
                f"{tuple(theta.shape)}"
            )
        if not bool(torch.isfinite(theta).all()):
            raise ValueError("theta must be finite")
        self.base, self.schedule, self.event_shape = base, base.schedule, base.event_shape
        self.dtype, self.device, self.exact = base.dtype, base.device, base.exact
        self.theta = theta.to(dtype=base.dtype, device=base.device)

    def denoise(self, x: Tensor, level: Level) -> Tensor:
        return self.base.denoise(shifted_state(x, self.theta, level), level)
