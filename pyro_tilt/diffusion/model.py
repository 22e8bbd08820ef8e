# SPDX-License-Identifier: Apache-2.0
"""What every diffusion model here can do: predict the data, take a step, be a program."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_tilt.diffusion.kernels import Denoise, check_sampler, evaluations, sampler_step
from pyro_tilt.diffusion.law import DiffusionLaw
from pyro_tilt.diffusion.levels import Level
from pyro_tilt.diffusion.schedules import Schedule
from pyro_tilt.poutine.scan import scan

__all__ = ["Diffusion"]


class Diffusion(ABC):
    r"""
    A law of data :math:`x_0`, known through predictions of it from :math:`x_t = a x_0 + s\epsilon`.

    :ivar schedule: the levels that its samplers visit.
    :ivar event_shape: the shape of one :math:`x_0`.
    :ivar dtype: of the states.
    :ivar device: of the states.
    :ivar exact: whether :meth:`denoise` is :math:`E[x_0 | x_t]` exactly, at any level.
    """

    schedule: Schedule
    event_shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    exact: bool = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}(event_shape={tuple(self.event_shape)}, {self.schedule!r})"

    @abstractmethod
    def denoise(self, x: Tensor, level: Level) -> Tensor:
        r"""
        The prediction of the data, :math:`E[x_0 | x_t = x]`.

        :param x: states of shape batch + event shape.
        :param level: their noise level.
        :returns: shaped as ``x``.
        """

    def step(
        self,
        x: Tensor,
        now: Level,
        then: Level,
        *,
        sampler: str = "ancestral",
        eta: float = 1.0,
        denoise: Denoise | None = None,
    ) -> tuple[Tensor, float]:
        """
        See :func:`sampler_step`.

        :param denoise: in place of the model's own, such as a tilted one.
        """
        return sampler_step(denoise or self.denoise, x, now, then, sampler=sampler, eta=eta)

    def evaluations(self, sampler: str, steps: int) -> int:
        """See :func:`evaluations`."""
        return evaluations(sampler, steps)

    def start(self, batch_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        r"""
        Draws :math:`x_T \sim N(0, s_T^2 I)` from the global random state.

        :param batch_shape: of independent draws.
        """
        shape = (*batch_shape, *self.event_shape)
        zero = torch.zeros((), dtype=self.dtype, device=self.device)
        return torch.normal(zero.expand(shape), (zero + self.schedule.start.s).expand(shape))

    def program(
        self, sampler: str = "ancestral", *, eta: float = 1.0, record: str = "all"
    ) -> Callable[[], Tensor]:
        r"""
        The sampler as an ordinary Pyro program, with its steps in a :func:`~pyro_tilt.scan`.

        Sites are ``x_T`` :math:`\sim N(0, s_T^2 I)`, for the ancestral sampler one normal site
        ``x_k`` per level k = T - 1, ..., 1, and ``x_0``, which is determined by what went before.
        Deterministic samplers have only ``x_T`` and ``x_0``.

        :param sampler: ``"ancestral"``, ``"heun"`` or ``"euler"``.
        :param eta: noise of the ancestral sampler; at 0 its steps have no sites either.
        :param record: ``"all"``, or ``"last"`` for a program of the one site ``x_0``, whose law is
            the sampler's: no density, and nothing kept of the way there.
        :returns: a program without arguments that returns ``x_0``.
        :raises ValueError: for another word.
        """
        check_sampler(sampler, eta)
        if record not in ("all", "last"):
            raise ValueError(f'record must be "all" or "last", got {record!r}')
        if record == "last":
            law = DiffusionLaw(self, sampler, eta)
            return lambda: pyro.sample("x_0", law)
        return lambda: self._run(sampler, eta)

    def _run(self, sampler: str, eta: float) -> Tensor:
        levels, rank = self.schedule.levels, len(self.event_shape)
        zero = torch.zeros((), dtype=self.dtype, device=self.device)
        start = dist.Normal(zero, zero + levels[0].s).expand(self.event_shape).to_event(rank)
        x = pyro.sample("x_T", start)

        def step(x: Tensor, k: int) -> Tensor:
            place = len(levels) - 1 - k
            mean, std = self.step(x, levels[place - 1], levels[place], sampler=sampler, eta=eta)
            if std == 0.0:
                return mean
            return pyro.sample(f"x_{k}", dist.Normal(mean, std).to_event(rank))

        x = scan("diffusion", step, x, range(len(levels) - 2, 0, -1))
        clean, _ = self.step(x, levels[-2], levels[-1], sampler=sampler, eta=eta)
        return pyro.deterministic("x_0", clean, event_dim=rank)
