# SPDX-License-Identifier: Apache-2.0
"""Quadratic rewards."""

from __future__ import annotations

import math
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
    value_tensor,
)


class Quadratic(Reward):
    r"""
    A quadratic function of a vector, or of a scalar.

    .. math::

        r(x) = x^\top A x + b^\top x + c

    :param A: of shape batch + (d, d), of any signature; only its symmetric part counts and is
        kept. A 0-dim ``A`` stands for scalar values (event_dim 0).
    :param b: of shape batch + (d,), or batch for scalar values; zero by default.
    :param c: of the batch shape; zero by default.
    :param event_dim: 1 for vectors, 0 for scalars (then ``A`` has the batch shape). The default
        is 1 where ``A`` has at least two dimensions.
    :raises ValueError: if the shapes do not fit together, or if a parameter is not finite.

    >>> import torch
    >>> reward = Quadratic(torch.tensor([[-1.0, 0.0], [0.0, -2.0]]), torch.tensor([2.0, 0.0]))
    >>> reward(torch.tensor([[1.0, 1.0], [0.0, 2.0]]))
    tensor([-1., -8.])
    >>> reward.upper_bound
    1.0
    """

    event_dim: int

    def __init__(
        self,
        A: Tensor | float,
        b: Tensor | float | None = None,
        c: Tensor | float | None = None,
        *,
        event_dim: int | None = None,
    ) -> None:
        given = {"A": A, "b": 0.0 if b is None else b, "c": 0.0 if c is None else c}
        self.A, self.b, self.c = as_parameters(**given)
        self.event_dim = int(self.A.dim() >= 2) if event_dim is None else event_dim
        if self.event_dim not in (0, 1):
            raise ValueError(f"event_dim of a Quadratic must be 0 or 1, got {event_dim}")
        if self.event_dim == 1:
            if self.A.dim() < 2 or self.A.shape[-1] != self.A.shape[-2]:
                raise ValueError(f"A must be square, got shape {tuple(self.A.shape)}")
            self.A = (self.A + self.A.mT) / 2
            if b is None:
                self.b = self.A.new_zeros(self.A.shape[-1:])
            if self.b.shape[-1:] != self.A.shape[-1:]:
                raise ValueError(
                    f"b must be of shape batch + ({self.A.shape[-1]},), as A is of shape "
                    f"{tuple(self.A.shape)}; got shape {tuple(self.b.shape)}"
                )

    @classmethod
    def from_hessian(
        cls,
        Q: Tensor | float,
        b: Tensor | float | None = None,
        c: Tensor | float | None = None,
        *,
        event_dim: int | None = None,
    ) -> Quadratic:
        r"""
        The reward :math:`\tfrac12 x^\top Q x + b^\top x + c`.

        :param Q: the Hessian, of the shape of ``A``.

        >>> Quadratic.from_hessian(-1.0)
        Quadratic(A=tensor(-0.5), b=tensor(0.0), c=tensor(0.0), event_dim=0)
        """
        return cls(Q / 2, b, c, event_dim=event_dim)

    @property
    def event_shape(self) -> torch.Size:
        """The event shape of a value."""
        return self.A.shape[self.A.dim() - self.event_dim :]

    @property
    def batch_shape(self) -> torch.Size:
        """The batch shape of the parameters."""
        k = self.event_dim
        matrix, vector = self.A.shape[: self.A.dim() - 2 * k], self.b.shape[: self.b.dim() - k]
        return torch.broadcast_shapes(matrix, vector, self.c.shape)

    def __call__(self, value: Any) -> Tensor:
        x = value_tensor(value, self.event_shape, self.A.dtype, "Quadratic")
        A, b = self.A.to(x.dtype), self.b.to(x.dtype)
        if self.event_dim == 0:
            return (A * x + b) * x + self.c
        product = x @ A if A.dim() == 2 else (A @ x.unsqueeze(-1)).squeeze(-1)
        return ((product + b) * x).sum(-1) + self.c

    @property
    def lower_bound(self) -> float:
        return -largest(self._peak(-1.0))

    @property
    def upper_bound(self) -> float:
        return largest(self._peak(1.0))

    @property
    def convex(self) -> bool:
        values, _ = self._spectrum()
        return bool((values >= -self._tolerance(values)).all())

    @property
    def concave(self) -> bool:
        values, _ = self._spectrum()
        return bool((values <= self._tolerance(values)).all())

    def _spectrum(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues of A and b in their basis, both batch + (d,), in float64 on the CPU."""
        A, b = (part.detach().to("cpu", torch.float64) for part in (self.A, self.b))
        if self.event_dim == 0:
            return A.unsqueeze(-1), b.unsqueeze(-1)
        values, vectors = torch.linalg.eigh(A)
        return values, (vectors.mT @ b.unsqueeze(-1)).squeeze(-1)

    def _tolerance(self, values: Tensor) -> Tensor:
        """What rounding alone can make of a zero eigenvalue."""
        if values.shape[-1] <= 1:
            return torch.zeros_like(values)
        scale = torch.finfo(self.A.dtype).eps * values.shape[-1]
        return scale * values.abs().amax(-1, keepdim=True)

    def _peak(self, sign: float) -> Tensor:
        """The supremum of ``sign * r``, of the batch shape, infinite where there is none."""
        values, slopes = self._spectrum()
        values, slopes = torch.broadcast_tensors(sign * values, sign * slopes)
        flat = values.abs() <= self._tolerance(values)
        sloped = slopes.abs() > torch.finfo(self.A.dtype).eps * values.shape[
            -1
        ] * torch.linalg.norm(slopes, dim=-1, keepdim=True)
        unbounded = torch.where(flat, sloped, values > 0).any(-1)
        curvature = torch.where(flat, -torch.ones_like(values), values)
        gain = torch.where(flat, torch.zeros_like(values), -slopes.square() / (4 * curvature))
        peak = gain.sum(-1) + sign * self.c.detach().to("cpu", torch.float64)
        return torch.where(unbounded, math.inf, peak)

    def _plus(self, other: Reward) -> Reward | None:
        if not isinstance(other, Linear | Quadratic):
            return None
        check_same_event(self, other)
        if isinstance(other, Linear):
            parts = (self.A, self.b + other.theta, self.c + other.offset)
        else:
            parts = (self.A + other.A, self.b + other.b, self.c + other.c)
        return Quadratic(*parts, event_dim=self.event_dim)

    def _times(self, scale: float | Tensor) -> Quadratic:
        k = self.event_dim
        A, b = scale_parameter(self.A, scale, 2 * k), scale_parameter(self.b, scale, k)
        return Quadratic(A, b, scale_parameter(self.c, scale, 0), event_dim=k)

    def _shifted(self, offset: float | Tensor) -> Quadratic:
        return Quadratic(self.A, self.b, self.c + offset, event_dim=self.event_dim)

    def __repr__(self) -> str:
        parts = f"A={show(self.A)}, b={show(self.b)}, c={show(self.c)}"
        return f"Quadratic({parts}, event_dim={self.event_dim})"
