# SPDX-License-Identifier: Apache-2.0
"""Sums and multiples of rewards."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from pyro_tilt.rewards.base import Reward
from pyro_tilt.rewards.black_box import RewardFn, as_reward
from pyro_tilt.rewards.tensors import (
    add_constant,
    as_constant,
    largest,
    multiply_values,
    scale_bounds,
    scale_signs,
    show,
    smallest,
)


class Scaled(Reward):
    """
    A multiple of a reward whose own class does not survive scaling.

    Zero times a reward of ``-inf`` is zero.

    :param reward: the reward that is scaled.
    :param scale: a number, or a tensor of the batch shape.

    >>> import torch
    >>> from pyro_tilt.rewards import BlackBox
    >>> reward = 2.0 * BlackBox(torch.sin)
    >>> reward
    2.0 * BlackBox(sin)
    """

    def __init__(self, reward: Reward, scale: float | Tensor) -> None:
        self.reward = reward
        self.scale = as_constant(scale, "scale")
        self.event_dim = reward.event_dim

    def __call__(self, value: Any) -> Tensor:
        return multiply_values(self.reward(value), self.scale)

    @property
    def lower_bound(self) -> float:
        return scale_bounds(self.scale, self.reward.lower_bound, self.reward.upper_bound)[0]

    @property
    def upper_bound(self) -> float:
        return scale_bounds(self.scale, self.reward.lower_bound, self.reward.upper_bound)[1]

    @property
    def convex(self) -> bool | None:
        return scaled_flag(self.scale, self.reward.convex, self.reward.concave)

    @property
    def concave(self) -> bool | None:
        return scaled_flag(self.scale, self.reward.concave, self.reward.convex)

    def _times(self, scale: float | Tensor) -> Reward:
        return Scaled(self.reward, self.scale * scale)

    def __repr__(self) -> str:
        inner = f"({self.reward!r})" if isinstance(self.reward, Sum) else repr(self.reward)
        return f"{show(self.scale)} * {inner}"


class Sum(Reward):
    """
    A sum of rewards whose classes do not merge into one.

    :param terms: the rewards, evaluated on the same value.
    :param offset: a constant, a number or a tensor of the batch shape.
    :raises ValueError: if the terms disagree on their event dimensions.

    >>> import torch
    >>> from pyro_tilt.rewards import BlackBox, Linear
    >>> Linear(torch.tensor(1.0)) + torch.sin + 2.0
    Linear(theta=tensor(1.0), event_dim=0, offset=tensor(2.0)) + BlackBox(sin)
    """

    def __init__(self, terms: Sequence[Reward], offset: float | Tensor = 0.0) -> None:
        if not terms:
            raise ValueError("a sum of rewards needs at least one term")
        self.terms = tuple(terms)
        self.offset = as_constant(offset, "offset")
        dims = {term.event_dim for term in self.terms} - {None}
        if len(dims) > 1:
            shown = " and ".join(
                f"{term.event_dim} of {term!r}" for term in self.terms if term.event_dim is not None
            )
            raise ValueError(f"the terms of a sum need one event_dim, got {shown}")
        self.event_dim = dims.pop() if dims else None

    def __call__(self, value: Any) -> Tensor:
        total = self.terms[0](value)
        for term in self.terms[1:]:
            total = total + term(value)
        return add_constant(total, self.offset)

    @property
    def lower_bound(self) -> float:
        offset = smallest(self.offset) if isinstance(self.offset, Tensor) else self.offset
        return _add_bounds([term.lower_bound for term in self.terms], offset, -math.inf)

    @property
    def upper_bound(self) -> float:
        offset = largest(self.offset) if isinstance(self.offset, Tensor) else self.offset
        return _add_bounds([term.upper_bound for term in self.terms], offset, math.inf)

    @property
    def convex(self) -> bool | None:
        return True if all(term.convex for term in self.terms) else None

    @property
    def concave(self) -> bool | None:
        return True if all(term.concave for term in self.terms) else None

    def _plus(self, other: Reward) -> Reward:
        if isinstance(other, Sum):
            total: Reward = self
            for term in other.terms:
                total = total + term
            return total + other.offset
        for i, term in enumerate(self.terms):
            merged = merge(term, other)
            if merged is not None:
                return Sum((*self.terms[:i], merged, *self.terms[i + 1 :]), self.offset)
        return Sum((*self.terms, other), self.offset)

    def _times(self, scale: float | Tensor) -> Reward:
        return Sum([term * scale for term in self.terms], self.offset * scale)

    def _shifted(self, offset: float | Tensor) -> Reward:
        for i, term in enumerate(self.terms):
            shifted = term._shifted(offset)
            if shifted is not None:
                return Sum((*self.terms[:i], shifted, *self.terms[i + 1 :]), self.offset)
        return Sum(self.terms, self.offset + offset)

    def __repr__(self) -> str:
        parts = [repr(term) for term in self.terms]
        if isinstance(self.offset, Tensor) or self.offset:
            parts.append(show(self.offset))
        return " + ".join(parts)


def _add_bounds(bounds: list[float], offset: float, unknown: float) -> float:
    # An infinite term decides, also where another is infinite with the other sign.
    return unknown if unknown in bounds else sum(bounds) + offset


def scaled_flag(scale: float | Tensor, same: bool | None, mirrored: bool | None) -> bool | None:
    """
    The convexity of a multiple.

    :param same: the flag of the reward itself, which a positive scale keeps.
    :param mirrored: its opposite flag, which a negative scale turns into the wanted one.
    """
    low, high = scale_signs(scale)
    if low == 0 and high == 0:
        return True
    if low >= 0:
        return same
    if high <= 0:
        return mirrored
    return True if same and mirrored else None


def merge(left: Reward, right: Reward) -> Reward | None:
    """The structured sum of two rewards, asked of both, ``None`` where neither knows one."""
    merged = left._plus(right)
    return right._plus(left) if merged is None else merged


def add(left: Reward, right: Reward | RewardFn | float | Tensor) -> Reward:
    """The sum of a reward and a reward, callable, number or tensor of the batch shape."""
    if isinstance(right, numbers.Real | Tensor):
        offset = as_constant(right, "offset")
        if not isinstance(offset, Tensor) and offset == 0:
            return left
        shifted = left._shifted(offset)
        return Sum([left], offset) if shifted is None else shifted
    if not callable(right):
        return NotImplemented
    other = as_reward(right)
    merged = merge(left, other)
    return Sum([left, other]) if merged is None else merged


def multiply(reward: Reward, scale: float | Tensor) -> Reward:
    """The multiple of a reward by a number or a tensor of the batch shape."""
    if not isinstance(scale, numbers.Real | Tensor):
        return NotImplemented
    constant = as_constant(scale, "scale")
    scaled = reward._times(constant)
    return Scaled(reward, constant) if scaled is None else scaled


def negate(other: Reward | RewardFn | float | Tensor) -> Reward | float | Tensor:
    """What must be added to subtract a reward, callable, number or tensor."""
    if isinstance(other, numbers.Real | Tensor):
        return -other
    return -as_reward(other)  # type: ignore[arg-type]
