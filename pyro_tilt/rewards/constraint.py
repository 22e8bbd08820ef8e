# SPDX-License-Identifier: Apache-2.0
"""Constraints as rewards."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pyro_tilt.rewards.base import Reward
from pyro_tilt.rewards.black_box import BlackBox
from pyro_tilt.rewards.tensors import call, scale_signs, show


class Constraint(BlackBox):
    r"""
    The reward that conditions on an event: 0 where a predicate holds, :math:`-\infty` elsewhere.

    :param predicate: maps a value to a boolean tensor of its batch shape.
    :param event_dim: the number of rightmost dimensions of a value that one truth value
        summarises, where there is such a number.
    :raises TypeError: if ``predicate`` is not callable; on evaluation, if it does not return a
        boolean tensor.

    >>> import torch
    >>> reward = Constraint(lambda x: x > 0)
    >>> reward(torch.tensor([1.0, -1.0]))
    tensor([0., -inf])
    """

    def __call__(self, value: Any) -> Tensor:
        holds = call(self.fn, value)
        if holds.dtype != torch.bool:
            raise TypeError(
                f"the predicate {show(self.fn)} must return a boolean tensor, got {holds.dtype}"
            )
        floating = isinstance(value, Tensor) and value.is_floating_point()
        dtype = value.dtype if floating else torch.get_default_dtype()
        zeros = torch.zeros(holds.shape, dtype=dtype, device=holds.device)
        return zeros.masked_fill(~holds, -math.inf)

    @property
    def upper_bound(self) -> float:
        return 0.0

    def _times(self, scale: float | Tensor) -> Reward | None:
        # A scale with batch dimensions may widen the result, which the constraint alone cannot.
        widens = isinstance(scale, Tensor) and scale.dim() > 0
        return None if widens or scale_signs(scale)[0] <= 0 else self
