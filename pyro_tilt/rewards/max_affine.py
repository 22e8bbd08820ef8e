# SPDX-License-Identifier: Apache-2.0
"""Rewards that are the largest of several affine functions."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pyro_tilt.rewards.base import Reward
from pyro_tilt.rewards.linear import Linear, check_same_event
from pyro_tilt.rewards.tensors import (
    align_batch,
    as_parameters,
    largest,
    scale_parameter,
    scale_signs,
    show,
    smallest,
    value_tensor,
)


class MaxAffine(Reward):
    r"""
    The largest of finitely many affine functions of a vector, or of a scalar.

    .. math::

        r(x) = \max_j \langle v_j, x \rangle + c_j

    :param slopes: of shape batch + (pieces, d); for scalar values batch + (pieces,).
    :param intercepts: of shape batch + (pieces,).
    :param event_dim: 1 for vectors, 0 for scalars. The default is 1 where ``slopes`` has at
        least two dimensions.
    :raises ValueError: if the shapes do not fit together, or if a parameter is not finite.

    >>> import torch
    >>> reward = MaxAffine(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([0.0, -1.0]))
    >>> reward(torch.tensor([[3.0, 1.0], [0.0, 4.0]]))
    tensor([3., 7.])
    """

    event_dim: int

    def __init__(self, slopes: Tensor, intercepts: Tensor, *, event_dim: int | None = None) -> None:
        self.slopes, self.intercepts = as_parameters(slopes=slopes, intercepts=intercepts)
        self.event_dim = int(self.slopes.dim() >= 2) if event_dim is None else event_dim
        if self.event_dim not in (0, 1):
            raise ValueError(f"event_dim of a MaxAffine must be 0 or 1, got {event_dim}")
        pieces = self.slopes.shape[: self.slopes.dim() - self.event_dim][-1:]
        if not pieces or self.intercepts.shape[-1:] != pieces or pieces[0] == 0:
            raise ValueError(
                "MaxAffine needs one slope and one intercept per piece, got slopes of shape "
                f"{tuple(self.slopes.shape)} and intercepts of shape "
                f"{tuple(self.intercepts.shape)} with event_dim={self.event_dim}"
            )

    @property
    def event_shape(self) -> torch.Size:
        """The event shape of a value."""
        return self.slopes.shape[self.slopes.dim() - self.event_dim :]

    @property
    def batch_shape(self) -> torch.Size:
        """The batch shape of the parameters."""
        slopes = self.slopes.shape[: self.slopes.dim() - self.event_dim]
        return torch.broadcast_shapes(slopes, self.intercepts.shape)[:-1]

    def __call__(self, value: Any) -> Tensor:
        x = value_tensor(value, self.event_shape, self.slopes.dtype, "MaxAffine")
        slopes = self.slopes.to(x.dtype)
        if self.event_dim == 0:
            product = slopes * x.unsqueeze(-1)
        elif slopes.dim() == 2:
            product = x @ slopes.mT
        else:
            product = (slopes @ x.unsqueeze(-1)).squeeze(-1)
        return (product + self.intercepts).amax(-1)

    @property
    def lower_bound(self) -> float:
        # A flat piece holds the maximum up; others could do so together, which stays unknown.
        level = torch.where(self._flat(), self.intercepts.detach(), -math.inf)
        return smallest(level.amax(-1))

    @property
    def upper_bound(self) -> float:
        return largest(self.intercepts) if bool(self._flat().all()) else math.inf

    def _flat(self) -> Tensor:
        return (self.slopes == 0).all(-1) if self.event_dim else self.slopes == 0

    @property
    def convex(self) -> bool:
        return True

    @property
    def concave(self) -> bool | None:
        return True if self.intercepts.shape[-1] == 1 else None

    def _plus(self, other: Reward) -> Reward | None:
        if not isinstance(other, Linear):
            return None
        check_same_event(self, other)
        slopes = self.slopes + other.theta.unsqueeze(-1 - self.event_dim)
        intercepts = self.intercepts + align_batch(other.offset, 1)
        return MaxAffine(slopes, intercepts, event_dim=self.event_dim)

    def _times(self, scale: float | Tensor) -> Reward | None:
        if scale_signs(scale)[0] < 0:
            return None
        slopes = scale_parameter(self.slopes, scale, self.event_dim + 1)
        intercepts = scale_parameter(self.intercepts, scale, 1)
        return MaxAffine(slopes, intercepts, event_dim=self.event_dim)

    def _shifted(self, offset: float | Tensor) -> MaxAffine:
        if isinstance(offset, Tensor):
            offset = align_batch(offset, 1)
        return MaxAffine(self.slopes, self.intercepts + offset, event_dim=self.event_dim)

    def __repr__(self) -> str:
        parts = f"slopes={show(self.slopes)}, intercepts={show(self.intercepts)}"
        return f"MaxAffine({parts}, event_dim={self.event_dim})"
