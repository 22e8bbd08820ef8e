# SPDX-License-Identifier: Apache-2.0
"""Functions of a few features, with checks of what was declared of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_tilt.rewards.checks import evaluate

__all__ = ["FeatureFunction"]


def _show(u: Tensor) -> str:
    return "(" + ", ".join(f"{x:.6g}" for x in u.tolist()[:8]) + ")"


@dataclass(frozen=True)
class FeatureFunction:
    """
    f of features, in float64, beta folded in.

    :ivar reward: maps (n, k) to (n,).
    :ivar convex: True for a convex f, False for a concave one.
    :ivar lipschitz: a Lipschitz constant, where one was declared.
    :ivar dtype: the dtype that the features have when the reward is asked.
    """

    reward: Any
    convex: bool
    lipschitz: float | None = None
    dtype: torch.dtype = torch.float64

    def __call__(self, u: Tensor) -> Tensor:
        """
        The values.

        :param u: shape (n, k).
        :raises ValueError: for values that are not finite.
        """
        values = evaluate(self.reward, u.to(self.dtype), shape=u.shape[:-1]).detach().double()
        if not bool(torch.isfinite(values).all()):
            where = _show(u[int((~torch.isfinite(values)).nonzero()[0])])
            raise ValueError(f"the reward is -inf at the features {where}, where it must be finite")
        return values

    def tangent(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """
        Values and (sub)gradients, by automatic differentiation where the reward allows it.

        :param u: shape (n, k).
        """
        with torch.enable_grad():
            inner = u.detach().to(self.dtype).requires_grad_()
            values = self.reward(inner)
            if values.requires_grad:
                slopes = torch.autograd.grad(values.sum(), inner)[0].double()
                return self(u), slopes
        return self(u), self._differences(u)

    def _differences(self, u: Tensor) -> Tensor:
        step = 1e-6 if self.dtype == torch.float64 else 1e-3
        columns = []
        for i in range(u.shape[-1]):
            shift = torch.zeros_like(u)
            shift[:, i] = step * u[:, i].abs().clamp(min=1.0)
            columns.append((self(u + shift) - self(u - shift)) / (2.0 * shift[:, i]))
        return torch.stack(columns, -1)

    def check_middle(self, cells: Tensor, centre: Tensor, corners: Tensor) -> None:
        """
        Refuses a function that is not convex: its centre lies above the mean of the corners.

        :param cells: centres, shape (n, k).
        :param centre: values there, shape (n,).
        :param corners: values at the corners, shape (n, 2^k).
        """
        self._refuse(centre - corners.mean(-1), corners.abs().amax(-1), cells)

    def check_pairs(self, u: Tensor) -> None:
        """
        Checks what was declared on pairs of points.

        :param u: features, shape (n, k); neighbours in the list, and points further apart, pair.
        :raises ValueError: with the witness.
        """
        if len(u) < 2:
            return
        values = self(u)
        for gap in {1, len(u) // 2, len(u) // 3} - {0}:
            other, there = u.roll(gap, 0), values.roll(gap, 0)
            middle = 0.5 * (u + other)
            over = self(middle) - 0.5 * (values + there)
            size = torch.maximum(values.abs(), there.abs())
            self._refuse(over if self.convex else -over, size, middle)
            self._check_steep(u, other, values, there)

    def _check_steep(self, u: Tensor, other: Tensor, values: Tensor, there: Tensor) -> None:
        if self.lipschitz is None:
            return
        size = torch.maximum(values.abs(), there.abs()) + 1.0
        allowed = self.lipschitz * (1 + 1e-6) * (u - other).norm(dim=-1) + self._slack * size
        over = (values - there).abs() - allowed
        worst = int(over.argmax())
        if float(over[worst]) > 0.0:
            steep = float((values - there).abs()[worst] / (u - other).norm(dim=-1)[worst])
            raise ValueError(
                f"the reward is not Lipschitz as declared: between the features {_show(u[worst])} "
                f"and {_show(other[worst])} it changes by {steep:.6g} per unit, above "
                f"{self.lipschitz:.6g} (beta folded in)"
            )

    @property
    def _slack(self) -> float:
        return 1e-9 if self.dtype == torch.float64 else 1e-4

    def _refuse(self, over: Tensor, size: Tensor, where: Tensor) -> None:
        over = over - self._slack * (1.0 + size)
        worst = int(over.argmax())
        if float(over[worst]) > 0.0:
            word, side = ("convex", "above") if self.convex else ("concave", "below")
            raise ValueError(
                f"the reward is declared {word}, but at the features {_show(where[worst])} it lies "
                f"{float(over[worst]):.3g} {side} the mean of its values at points around them"
            )

    def steepest(self, low: Tensor, high: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """
        The range of the gradients over a grid of a box.

        :param low: lower ends.
        :param high: upper ends.
        :param count: points per feature.
        :returns: the least and the largest of each component, shape (k,) each.
        """
        _, slopes = self.tangent(box_grid(low, high, count))
        return slopes.amin(0), slopes.amax(0)


def box_grid(low: Tensor, high: Tensor, count: int) -> Tensor:
    """
    A grid of a box, ends included.

    :param low: lower ends, shape (k,).
    :param high: upper ends.
    :param count: points per feature.

    >>> box_grid(torch.zeros(2), torch.ones(2), 2).tolist()
    [[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]
    """
    share = torch.linspace(0.0, 1.0, count, dtype=torch.float64).to(low)
    axes = [a + share * (b - a) for a, b in zip(low, high)]
    return torch.cartesian_prod(*axes).reshape(-1, len(low))


def finite(value: float) -> bool:
    """Whether a number is finite and not absurdly large."""
    return math.isfinite(value) and abs(value) < 1e12
