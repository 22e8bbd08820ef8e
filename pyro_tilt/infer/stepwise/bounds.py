# SPDX-License-Identifier: Apache-2.0
"""Sure bounds on the log weight of a step, and what follows from them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from pyro_tilt.infer.pooled import check_bound

__all__ = ["Bounds"]


@dataclass
class Bounds:
    """
    Bounds of the values, and with them the least baseline.

    :ivar values: ``(low, high)``; None where none is known.
    :ivar log_bound: bound on the log weight of the rest of the program, infinite for none.
    :ivar plain: whether no step has had log factors of its own, which nothing bounds.
    :ivar sure: whether no baseline has lain below the bound of its step.
    """

    values: tuple[float, float] | None
    log_bound: float
    plain: bool = True
    sure: bool = True

    def high(self, last: bool) -> float | None:
        """A sure bound on A at this step."""
        if self.values is None or not self.plain:
            return None
        if not last:
            return self.values[1]
        return self.log_bound if math.isfinite(self.log_bound) else None

    def clamp(self, baseline: Tensor, *, last: bool) -> Tensor:
        """Baselines between the least one and the bound."""
        if self.values is None:
            return baseline
        low, high = self.values[0], self.high(last)
        return baseline.clamp(min=low, max=None if high is None else max(low, high))

    def check(self, A: Tensor, *, last: bool) -> None:
        """
        :raises ValueError: where A exceeds its bound.
        """
        high = self.high(last)
        if high is not None:
            check_bound(A.reshape(-1), high)

    def note(self, baseline: Tensor, *, last: bool) -> None:
        """Learns whether all of A lies below the baselines that were used."""
        high = self.high(last)
        self.sure = self.sure and high is not None and bool((baseline >= high).all())

    def width(self, num_values: int) -> float | None:
        """
        A sure bound on the clipping of a trajectory; None where there is none.

        :param num_values: how many steps are drawn by values, the start included where it is.
        """
        if self.sure:
            return 0.0
        high, last = self.high(False), self.high(True)
        if self.values is None or high is None or last is None:
            return None
        low = self.values[0]
        return num_values * _expm1(high - low) + _expm1(last - low)


def _expm1(x: float) -> float:
    return math.expm1(x) if x < 700.0 else math.inf
