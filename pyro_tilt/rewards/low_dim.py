# SPDX-License-Identifier: Apache-2.0
"""Rewards of a low-dimensional projection."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pyro_tilt.rewards.base import Reward
from pyro_tilt.rewards.black_box import BlackBox, RewardFn
from pyro_tilt.rewards.combine import scaled_flag
from pyro_tilt.rewards.tensors import as_parameter, scale_signs, show, value_tensor


class LowDim(Reward):
    r"""
    A function of a few linear features of a vector.

    .. math::

        r(x) = f(A x)

    :param f: maps tensors of shape batch + (k,) to their batch shape.
    :param A: the features, of shape batch + (k, d).
    :param convex: whether ``f`` is convex, where that is known.
    :param lipschitz: a Lipschitz constant of ``f`` in the Euclidean norm, where one is known.
    :param concave: whether ``f`` is concave, where that is known.
    :raises ValueError: if ``A`` is no matrix or not finite, or if ``lipschitz`` is negative.

    >>> import torch
    >>> reward = LowDim(lambda u: u.abs().sum(-1), torch.tensor([[1.0, -1.0, 0.0]]), convex=True)
    >>> reward(torch.tensor([[3.0, 1.0, 9.0], [0.0, 5.0, 9.0]]))
    tensor([2., 5.])
    """

    event_dim: int = 1

    def __init__(
        self,
        f: RewardFn,
        A: Tensor,
        *,
        convex: bool | None = None,
        lipschitz: float | None = None,
        concave: bool | None = None,
    ) -> None:
        self.A = as_parameter(A, "A")
        if self.A.dim() < 2:
            raise ValueError(
                f"A must be of shape batch + (k, d), got shape {tuple(self.A.shape)}; "
                "a single feature a is written a[None]"
            )
        if lipschitz is not None and not 0 <= lipschitz < math.inf:
            raise ValueError(f"lipschitz must be a nonnegative number, got {lipschitz}")
        self.f = f
        # Keeps the check of what the callable returns in one place.
        self._inner = f if isinstance(f, Reward) else BlackBox(f, 1)
        self.lipschitz = None if lipschitz is None else float(lipschitz)
        self._convex, self._concave = convex, concave

    @property
    def event_shape(self) -> torch.Size:
        """The event shape of a value."""
        return self.A.shape[-1:]

    @property
    def batch_shape(self) -> torch.Size:
        """The batch shape of the features."""
        return self.A.shape[:-2]

    def __call__(self, value: Any) -> Tensor:
        x = value_tensor(value, self.event_shape, self.A.dtype, "LowDim")
        A = self.A.to(x.dtype)
        return self._inner(x @ A.mT if A.dim() == 2 else (A @ x.unsqueeze(-1)).squeeze(-1))

    @property
    def lower_bound(self) -> float:
        return self._inner.lower_bound

    @property
    def upper_bound(self) -> float:
        return self._inner.upper_bound

    @property
    def convex(self) -> bool | None:
        return self._inner.convex if self._convex is None else self._convex

    @property
    def concave(self) -> bool | None:
        return self._inner.concave if self._concave is None else self._concave

    def _times(self, scale: float | Tensor) -> LowDim:
        lipschitz = self.lipschitz
        if lipschitz is not None:
            lipschitz *= max(abs(end) for end in scale_signs(scale))
        return LowDim(
            self._inner * scale,
            self.A,
            convex=scaled_flag(scale, self.convex, self.concave),
            lipschitz=lipschitz,
            concave=scaled_flag(scale, self.concave, self.convex),
        )

    def _shifted(self, offset: float | Tensor) -> LowDim:
        return LowDim(
            self._inner + offset,
            self.A,
            convex=self.convex,
            lipschitz=self.lipschitz,
            concave=self.concave,
        )

    def __repr__(self) -> str:
        parts = [show(self.f), f"A={show(self.A)}"]
        for name in ("convex", "concave", "lipschitz"):
            if getattr(self, name) is not None:
                parts.append(f"{name}={getattr(self, name)}")
        return f"LowDim({', '.join(parts)})"
