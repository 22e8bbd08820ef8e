# SPDX-License-Identifier: Apache-2.0
"""A twist that comes in gradually."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor

from pyro_tilt.infer.twists.step_keys import StepKeys
from pyro_tilt.infer.twists.twist import Twist
from pyro_tilt.rewards import log_tilt

__all__ = ["Tempered"]

Schedule = Callable[[Any], float] | Sequence[float] | Tensor


class Tempered(Twist):
    r"""
    Another twist, scaled.

    .. math:: \log\psi'_t(c) = \lambda_t \log\psi_t(c), \qquad 0 \le \lambda_t \uparrow 1

    Early estimates are poor, and a small :math:`\lambda_t` keeps them from killing particles (as
    in Kim, Kim and Park 2025, arXiv 2501.05803). The increments telescope, so that the target
    does not depend on the schedule.

    :param twist: a twist or any function of carry and step.
    :param schedule: :math:`\lambda`, a function of the element of ``xs`` or, together with ``xs``,
        one number per element, which do not fall and end at 1.
    :param xs: what the scan goes over.
    :raises ValueError: if the schedule leaves [0, 1], falls, or does not end at 1.

    >>> import torch
    >>> twist = Tempered(lambda x, t: -x, schedule=[0.5, 1.0], xs=range(1, -1, -1))
    >>> twist(torch.tensor([2.0]), 1), twist(torch.tensor([2.0]), 0)
    (tensor([-1.]), tensor([-2.]))
    """

    def __init__(
        self,
        twist: Callable[[Any, Any], Tensor],
        schedule: Schedule,
        *,
        xs: Iterable[Any] | None = None,
    ) -> None:
        super().__init__()
        if not callable(twist):
            raise TypeError(f"Tempered: twist must be callable, got {type(twist).__name__}")
        self.twist = twist
        self.schedule: Callable[[Any], float] | list[float]
        self.keys: StepKeys | None = None
        if callable(schedule) and not isinstance(schedule, Tensor):
            if xs is not None:
                raise ValueError("Tempered: xs belongs to a schedule of numbers, not to a function")
            self.schedule = schedule
            return
        if xs is None:
            raise ValueError("Tempered: a schedule of numbers needs xs=, what the scan goes over")
        self.keys = StepKeys(xs)
        self.schedule = [float(value) for value in schedule]
        rising = all(a <= b for a, b in zip(self.schedule, self.schedule[1:]))
        if len(self.schedule) != len(self.keys):
            raise ValueError(
                f"Tempered: the schedule has {len(self.schedule)} numbers for "
                f"{len(self.keys)} steps"
            )
        if not rising or self.schedule[0] < 0.0 or self.schedule[-1] != 1.0:
            raise ValueError(
                f"Tempered: the schedule must rise from 0 or more to 1 at the last step, "
                f"got {self.schedule}"
            )

    def scale(self, x: Any) -> float:
        r"""
        :math:`\lambda` of a step.

        :param x: the element of ``xs``.
        :raises ValueError: if it lies outside [0, 1].
        """
        if isinstance(self.schedule, list):
            assert self.keys is not None
            return self.schedule[self.keys(x)]
        scale = float(self.schedule(x))
        if not 0.0 <= scale <= 1.0:
            raise ValueError(f"Tempered: the schedule gives {scale} at {x!r}, outside [0, 1]")
        return scale

    def log_psi(self, carry: Any, x: Any) -> Tensor:
        """See :meth:`Twist.log_psi`."""
        return log_tilt(self.twist(carry, x), self.scale(x))
