# SPDX-License-Identifier: Apache-2.0
"""Linear rewards."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pyro_tilt.rewards.base import Reward
from pyro_tilt.rewards.tensors import (
    as_parameters,
    largest,
    scale_parameter,
    show,
    smallest,
    value_tensor,
)


class Linear(Reward):
    r"""
    A linear function of the value.

    .. math::

        r(x) = \langle \theta, x \rangle + \text{offset}

    Values of integer dtype (draws of a categorical or Poisson law) are cast to that of ``theta``.

    :param theta: the slope, of shape batch + event.
    :param event_dim: the number of rightmost dimensions of ``theta`` that are event dimensions;
        all of them by default.
    :param offset: a constant of the batch shape.
    :raises ValueError: if ``event_dim`` exceeds the dimensions of ``theta``, or if a parameter
        is not finite.

    >>> import torch
    >>> reward = Linear(torch.tensor([1.5, -1.0]))
    >>> reward
    Linear(theta=tensor([1.5, -1.0]), event_dim=1)
    >>> reward(torch.tensor([[2.0, 1.0], [0.0, 3.0]]))
    tensor([ 2., -3.])
    """

    event_dim: int

    def __init__(
        self,
        theta: Tensor | float,
        event_dim: int | None = None,
        *,
        offset: Tensor | float = 0.0,
    ) -> None:
        self.theta, self.offset = as_parameters(theta=theta, offset=offset)
        self.event_dim = self.theta.dim() if event_dim is None else event_dim
        if not 0 <= self.event_dim <= self.theta.dim():
            raise ValueError(
                f"event_dim must lie between 0 and the dimensions of theta, "
                f"got event_dim={event_dim} with theta of shape {tuple(self.theta.shape)}"
            )

    @property
    def event_shape(self) -> torch.Size:
        """The event shape of a value."""
        return self.theta.shape[self.theta.dim() - self.event_dim :]

    @property
    def batch_shape(self) -> torch.Size:
        """The batch shape of the parameters."""
        batch = self.theta.shape[: self.theta.dim() - self.event_dim]
        return torch.broadcast_shapes(batch, self.offset.shape)

    def __call__(self, value: Any) -> Tensor:
        x = value_tensor(value, self.event_shape, self.theta.dtype, "Linear")
        theta = self.theta.to(x.dtype)
        if self.event_dim == 0:
            product = theta * x
        elif theta.dim() == self.event_dim:
            product = x.flatten(-self.event_dim) @ theta.flatten()
        else:
            product = (theta * x).flatten(-self.event_dim).sum(-1)
        return product + self.offset

    @property
    def lower_bound(self) -> float:
        return -math.inf if bool(self.theta.any()) else smallest(self.offset)

    @property
    def upper_bound(self) -> float:
        return math.inf if bool(self.theta.any()) else largest(self.offset)

    @property
    def convex(self) -> bool:
        return True

    @property
    def concave(self) -> bool:
        return True

    def _plus(self, other: Reward) -> Reward | None:
        if not isinstance(other, Linear):
            return None
        check_same_event(self, other)
        return Linear(self.theta + other.theta, self.event_dim, offset=self.offset + other.offset)

    def _times(self, scale: float | Tensor) -> Linear:
        theta = scale_parameter(self.theta, scale, self.event_dim)
        return Linear(theta, self.event_dim, offset=scale_parameter(self.offset, scale, 0))

    def _shifted(self, offset: float | Tensor) -> Linear:
        return Linear(self.theta, self.event_dim, offset=self.offset + offset)

    def __repr__(self) -> str:
        offset = f", offset={show(self.offset)}" if bool(self.offset.any()) else ""
        return f"Linear(theta={show(self.theta)}, event_dim={self.event_dim}{offset})"


def check_same_event(left: Any, right: Any) -> None:
    """
    Refuses the sum of two structured rewards of different events.

    :raises ValueError: showing both event dimensions or event shapes.
    """
    names = f"{type(left).__name__} + {type(right).__name__}"
    if left.event_dim != right.event_dim:
        raise ValueError(f"{names} needs one event_dim, got {left.event_dim} and {right.event_dim}")
    if left.event_shape != right.event_shape:
        raise ValueError(
            f"{names} needs one event shape, "
            f"got {tuple(left.event_shape)} and {tuple(right.event_shape)}"
        )
