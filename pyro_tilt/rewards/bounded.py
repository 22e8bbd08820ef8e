# SPDX-License-Identifier: Apache-2.0
"""Rewards with known bounds."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_tilt.rewards.base import Reward
from pyro_tilt.rewards.black_box import BlackBox, RewardFn
from pyro_tilt.rewards.tensors import scale_bounds, show

TOLERANCE = 1e-6


class Bounded(BlackBox):
    """
    A callable with known bounds, which make exact rejection possible.

    Every evaluation is checked against the bounds, up to rounding.

    :param fn: maps a value to a tensor of its batch shape.
    :param low: the lower bound, ``-math.inf`` where there is none.
    :param high: the upper bound, ``math.inf`` where there is none.
    :param event_dim: the number of rightmost dimensions of a value that one number summarises,
        where there is such a number.
    :raises ValueError: if ``low`` exceeds ``high`` or one of them is NaN; on evaluation, if a
        value lies outside.

    >>> import torch
    >>> reward = Bounded(torch.sigmoid, 0.0, 1.0)
    >>> (-2.0 * reward).lower_bound
    -2.0
    """

    def __init__(self, fn: RewardFn, low: float, high: float, event_dim: int | None = None) -> None:
        super().__init__(fn, event_dim)
        self.low, self.high = float(low), float(high)
        if not self.low <= self.high or self.low == math.inf or self.high == -math.inf:
            raise ValueError(f"the bounds of a reward need low <= high, got {low} and {high}")

    @property
    def lower_bound(self) -> float:
        return self.low

    @property
    def upper_bound(self) -> float:
        return self.high

    @property
    def convex(self) -> bool | None:
        return self._unchecked().convex

    @property
    def concave(self) -> bool | None:
        return self._unchecked().concave

    def __call__(self, value: object) -> Tensor:
        result = super().__call__(value)
        slack = self._slack(result.dtype)
        outside = (result < self.low - slack) | (result > self.high + slack)
        if bool(outside.any()):
            excess = torch.maximum(self.low - result, result - self.high)
            worst = result.detach().flatten()[int(excess.detach().flatten().argmax())]
            raise ValueError(
                f"the reward {show(self.fn)} is {float(worst):.6g} outside its bounds "
                f"[{self.low:.6g}, {self.high:.6g}] ({int(outside.sum())} of {result.numel()} "
                "values are outside); state bounds that hold everywhere"
            )
        return result

    def _slack(self, dtype: torch.dtype) -> float:
        relative = max(TOLERANCE, 4 * torch.finfo(dtype).eps)
        # Beside an infinite bound, which says nothing about the size of rewards, one is the scale.
        sizes = [abs(bound) if math.isfinite(bound) else 1.0 for bound in (self.low, self.high)]
        return relative * max(sizes)

    def _times(self, scale: float | Tensor) -> Reward:
        low, high = scale_bounds(scale, self.low, self.high)
        return Bounded(self._unchecked() * scale, low, high, self.event_dim)

    def _shifted(self, offset: float | Tensor) -> Reward | None:
        if isinstance(offset, Tensor):
            return None
        fn = self._unchecked() + offset
        return Bounded(fn, self.low + offset, self.high + offset, self.event_dim)

    def _unchecked(self) -> Reward:
        return self.fn if isinstance(self.fn, Reward) else BlackBox(self.fn, self.event_dim)

    def _options(self) -> str:
        return f", low={show(self.low)}, high={show(self.high)}"
