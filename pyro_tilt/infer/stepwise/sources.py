# SPDX-License-Identifier: Apache-2.0
"""Where the baselines of a step come from."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from pyro_tilt.infer.stepwise.baselines import (
    StateRule,
    baselines_from_draws,
    baselines_from_mgf,
)
from pyro_tilt.infer.twists.features import holds_particles
from pyro_tilt.ops.importance import as_double

__all__ = ["BaselineSource", "Drawn", "Given", "KnownMgf", "Moment", "per_row"]


@dataclass(frozen=True)
class Moment:
    """
    A step that chains are about to take.

    :ivar carry: before the step; None before the first step.
    :ivar x: its element of ``xs``.
    :ivar place: its position, -1 for the start.
    :ivar num_steps: number of steps.
    :ivar size: number n of chains.
    :ivar epsilon: its share of the clipped mass.
    :ivar where: what errors call it.
    :ivar draw: draws a number k of fresh proposals per chain, and gives their A, shape (n, k).
    """

    carry: Any
    x: Any
    place: int
    num_steps: int
    size: int
    epsilon: float
    where: str
    draw: Callable[[int], Tensor]


class BaselineSource(Protocol):
    """Gives the baselines of a step, shape (n,) in float64."""

    def __call__(self, at: Moment) -> Tensor: ...


@dataclass(frozen=True)
class Given:
    """
    Baselines of a function.

    :ivar function: of the carry before a step and its element of ``xs`` to shape (N,).
    """

    function: Callable[[Any, Any], Tensor]

    def __call__(self, at: Moment) -> Tensor:
        found = self.function(at.carry, at.x)
        # Of a carry without particles no function can tell how many there are.
        if isinstance(found, Tensor) and found.shape == (1,) and not holds_particles(at.carry):
            found = found.expand(at.size)
        found = per_row(found, at.size, f"{at.where}: the baseline")
        if not bool(found.isfinite().all()):
            raise ValueError(f"{at.where}: the baseline is not finite at some state")
        return found


@dataclass(frozen=True)
class KnownMgf:
    """
    Baselines from known log-MGFs.

    :ivar rule: makes the rule of a share of epsilon.
    :ivar mgf: as in :func:`baselines_from_mgf`.
    """

    rule: Callable[[float], StateRule]
    mgf: Callable[[Any, Any, Tensor], Tensor]

    def __call__(self, at: Moment) -> Tensor:
        rule = self.rule(at.epsilon)
        found = baselines_from_mgf(rule, self.mgf, at.carry, at.x, at.size, at.where)
        if not bool((found > -math.inf).all()):
            raise ValueError(f"{at.where}: log_mgf says that no mass is left at some state")
        return found


@dataclass(frozen=True)
class Drawn:
    """
    Baselines from fresh proposals of every state.

    :ivar rule: makes the rule of a share of epsilon.
    :ivar num_inner: proposals per state.
    """

    rule: Callable[[float], StateRule]
    num_inner: int

    def __call__(self, at: Moment) -> Tensor:
        return baselines_from_draws(self.rule(at.epsilon), at.draw(self.num_inner), at.where)


def per_row(value: Any, size: int, what: str) -> Tensor:
    """
    A tensor with one number per particle, in float64.

    :param value: what a function of the user's gave.
    :param size: number of particles.
    :param what: what an error calls it.
    :raises TypeError: for no tensor.
    :raises ValueError: for another shape.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{what} is a {type(value).__name__}, not a tensor")
    if value.shape != (size,):
        raise ValueError(
            f"{what} has shape {tuple(value.shape)}, expected ({size},), one per particle"
        )
    return as_double(value.detach())
