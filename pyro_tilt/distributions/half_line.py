# SPDX-License-Identifier: Apache-2.0
"""The support of laws on an interval whose ends may be infinite."""

from __future__ import annotations

import math

from torch import Tensor
from torch.distributions import biject_to, constraints, transform_to
from torch.distributions.transforms import Transform


class AtMost(constraints.less_than):
    """Values up to a bound, the bound included; torch has only the half line without it."""

    def check(self, value: Tensor) -> Tensor:
        return value <= self.upper_bound


@biject_to.register(AtMost)
@transform_to.register(AtMost)
def _to_at_most(constraint: AtMost) -> Transform:
    return transform_to(constraints.less_than(constraint.upper_bound))


def half_line_support(low: Tensor, high: Tensor) -> constraints.Constraint:
    """
    The tightest constraint of torch that has a bijection from the real line.

    :param low: lower ends, ``-inf`` allowed.
    :param high: upper ends, ``inf`` allowed.

    >>> import torch
    >>> half_line_support(torch.tensor(0.0), torch.tensor(math.inf))
    GreaterThanEq(lower_bound=0.0)
    """
    no_low, no_high = bool((low == -math.inf).all()), bool((high == math.inf).all())
    if no_low and no_high:
        return constraints.real
    if no_high:
        return constraints.greater_than_eq(low)
    if no_low:
        return AtMost(high)
    return constraints.interval(low, high)
