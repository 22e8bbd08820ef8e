# SPDX-License-Identifier: Apache-2.0
"""Rewards that are linear in elementwise statistics."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_tilt.rewards.base import Reward
from pyro_tilt.rewards.linear import Linear, check_same_event
from pyro_tilt.rewards.tensors import (
    as_parameters,
    largest,
    scale_parameter,
    show,
    smallest,
    value_tensor,
)

STATISTICS: dict[str, Callable[[Tensor], Tensor]] = {
    "x": lambda x: x,
    "log": torch.log,
    "log1m": lambda x: torch.log1p(-x),
    "reciprocal": torch.reciprocal,
    "cos": torch.cos,
    "sin": torch.sin,
}
SINGULAR = frozenset({"log", "log1m", "reciprocal"})
INSIDE = 0.5


class LinearIn(Reward):
    r"""
    A linear function of elementwise statistics of the value.

    .. math::

        r(x) = \sum_k \langle c_k, T_k(x) \rangle + \text{offset}

    where T is the value itself (``x``), its logarithm (``log``), :math:`\log(1 - x)`
    (``log1m``), :math:`1 / x` (``reciprocal``), ``cos`` or ``sin``. These are the sufficient
    statistics under which the usual exponential families keep their form when tilted.
    A zero coefficient leaves its statistic out also where that is infinite.

    :param event_dim: the number of rightmost dimensions of a value that are event dimensions.
    :param offset: a constant of the batch shape.
    :param coefficients: tensors of shape batch + event by the name of their statistic.
    :raises ValueError: for an unknown statistic, no statistic at all, or coefficients whose
        event shapes differ.

    >>> import torch
    >>> reward = LinearIn(x=-2.0, log=3.0)
    >>> reward
    LinearIn(event_dim=0, x=tensor(-2.0), log=tensor(3.0))
    >>> reward(torch.ones(2))
    tensor([-2., -2.])
    """

    event_dim: int

    def __init__(
        self, event_dim: int = 0, *, offset: Tensor | float = 0.0, **coefficients: Tensor | float
    ) -> None:
        unknown = sorted(set(coefficients) - set(STATISTICS))
        if unknown or not coefficients:
            raise ValueError(
                f"LinearIn takes coefficients of {', '.join(STATISTICS)}; "
                f"got {', '.join(unknown) or 'none'}"
            )
        *made, self.offset = as_parameters(**coefficients, offset=offset)
        self.coefficients = dict(zip(coefficients, made))
        self.event_dim = event_dim
        shapes = set()
        for name, tensor in self.coefficients.items():
            if not 0 <= event_dim <= tensor.dim():
                raise ValueError(
                    f"event_dim must lie between 0 and the dimensions of each coefficient, got "
                    f"event_dim={event_dim} with {name} of shape {tuple(tensor.shape)}"
                )
            shapes.add(tuple(tensor.shape[tensor.dim() - event_dim :]))
        if len(shapes) > 1:
            shown = " and ".join(str(shape) for shape in sorted(shapes))
            raise ValueError(f"the coefficients of LinearIn need one event shape, got {shown}")
        self._event_shape = torch.Size(shapes.pop())

    @property
    def event_shape(self) -> torch.Size:
        """The event shape of a value."""
        return self._event_shape

    @property
    def batch_shape(self) -> torch.Size:
        """The batch shape of the parameters."""
        tensors = self.coefficients.values()
        batches = [tensor.shape[: tensor.dim() - self.event_dim] for tensor in tensors]
        return torch.broadcast_shapes(self.offset.shape, *batches)

    def __call__(self, value: Any) -> Tensor:
        x = value_tensor(value, self.event_shape, self.offset.dtype, "LinearIn")
        terms = [
            _term(STATISTICS[name], coefficient.to(x.dtype), x, name in SINGULAR)
            for name, coefficient in self.coefficients.items()
        ]
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        if self.event_dim:
            total = total.flatten(-self.event_dim).sum(-1)
        return total + self.offset

    @property
    def lower_bound(self) -> float:
        return smallest(self.offset - self._reach())

    @property
    def upper_bound(self) -> float:
        return largest(self.offset + self._reach())

    def _reach(self) -> Tensor:
        """How far the statistics can take the reward from its offset, of the batch shape."""
        parts = {name: part.detach() for name, part in self.coefficients.items()}
        zero = next(iter(parts.values())).new_zeros(self.event_shape)
        waves = torch.hypot(parts.pop("cos", zero), parts.pop("sin", zero))
        reach = waves.flatten(-self.event_dim).sum(-1) if self.event_dim else waves
        free = any(bool(part.any()) for part in parts.values())
        return torch.full_like(reach, math.inf) if free else reach

    def _plus(self, other: Reward) -> Reward | None:
        if not isinstance(other, Linear | LinearIn):
            return None
        check_same_event(self, other)
        added = {"x": other.theta} if isinstance(other, Linear) else other.coefficients
        total = dict(self.coefficients)
        for name, coefficient in added.items():
            total[name] = total[name] + coefficient if name in total else coefficient
        return LinearIn(self.event_dim, offset=self.offset + other.offset, **total)

    def _times(self, scale: float | Tensor) -> LinearIn:
        scaled = {
            name: scale_parameter(coefficient, scale, self.event_dim)
            for name, coefficient in self.coefficients.items()
        }
        offset = scale_parameter(self.offset, scale, 0)
        return LinearIn(self.event_dim, offset=offset, **scaled)

    def _shifted(self, offset: float | Tensor) -> LinearIn:
        return LinearIn(self.event_dim, offset=self.offset + offset, **self.coefficients)

    def __repr__(self) -> str:
        parts = [f"{name}={show(tensor)}" for name, tensor in self.coefficients.items()]
        if bool(self.offset.any()):
            parts.append(f"offset={show(self.offset)}")
        return f"LinearIn(event_dim={self.event_dim}, {', '.join(parts)})"


def _term(
    statistic: Callable[[Tensor], Tensor], coefficient: Tensor, x: Tensor, singular: bool
) -> Tensor:
    if not singular:
        return coefficient * statistic(x)
    # The statistic is taken at an inner point where it does not count, so that neither the
    # value nor its gradient is zero times infinity.
    unused = (coefficient == 0) & ~torch.isfinite(statistic(x.detach()))
    inner = statistic(torch.where(unused, torch.full_like(x, INSIDE), x))
    return torch.where(unused, torch.zeros_like(inner), coefficient * inner)
