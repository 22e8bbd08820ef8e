# SPDX-License-Identifier: Apache-2.0
"""Lattices that stand for the Gaussian of the Hubbard-Stratonovich identity."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Lattice", "lattice_spacing"]

MAX_POINTS = 100_000


def lattice_spacing(rank: int, epsilon: float) -> tuple[float, float]:
    r"""
    Spacing h and margin t of a lattice whose error is about :math:`\epsilon`.

    .. math::

        h = \pi \sqrt{2 / \log(4r / \epsilon)}, \qquad t = \sqrt{2 \log(2r / \epsilon)},

    derived here from Poisson's summation formula.

    :param rank: r.
    :param epsilon: the error.

    >>> [round(x, 3) for x in lattice_spacing(1, 1e-4)]
    [1.365, 4.451]
    """
    h = math.pi * math.sqrt(2.0 / math.log(4.0 * rank / epsilon))
    return h, math.sqrt(2.0 * math.log(2.0 * rank / epsilon))


@dataclass(frozen=True)
class Lattice:
    r"""
    A product of evenly spaced points that stands for the standard normal of the
    Hubbard-Stratonovich identity :math:`e^{|u|^2/2} = E\, e^{\langle u, z\rangle}`.

    With :math:`s(u) = \sum_z h^r (2\pi)^{-r/2} e^{-|z - u|^2/2}` over its points, the mixture of
    tilts is off by the factor s(u), and ``error`` bounds :math:`|s(u) - 1|` over the box, by
    Poisson's summation formula for the spacing and by the sums themselves for the ends.

    :ivar axes: the points of each coordinate.
    :ivar spacing: h.
    :ivar error: :math:`\eta`.
    """

    axes: tuple[Tensor, ...]
    spacing: float
    error: float

    @classmethod
    def over(cls, low: Tensor, high: Tensor, epsilon: float) -> Lattice:
        r"""
        The lattice for features in a box, with an error of at most :math:`\epsilon`.

        :param low: lower ends, shape (r,), in float64.
        :param high: upper ends, shape (r,).
        :param epsilon: between 0 and 1.
        :raises NotImplementedError: where it would take too many points.

        >>> reach = torch.full((2,), 5.0, dtype=torch.float64)
        >>> lattice = Lattice.over(-reach, reach, 1e-4)
        >>> len(lattice), lattice.error < 1e-4
        (196, True)
        """
        inner = 4.0 * epsilon
        while True:
            made = cls._make(low, high, *lattice_spacing(len(low), inner))
            if made.error <= epsilon:
                break
            inner *= 0.9
        if len(made) > MAX_POINTS:
            raise NotImplementedError(
                f"its lattice would take {len(made):,} points, above {MAX_POINTS:,}"
            )
        return made

    @classmethod
    def _make(cls, low: Tensor, high: Tensor, h: float, margin: float) -> Lattice:
        wave = 2.0 * sum(math.exp(-2.0 * (math.pi * m / h) ** 2) for m in range(1, 20))
        axes, off = [], 0.0
        for a, b in zip(low.tolist(), high.tolist()):
            count = max(1, math.ceil((b - a + 2.0 * margin) / h))
            place = torch.arange(count).to(low) - 0.5 * (count - 1)
            axes.append(0.5 * (a + b) + h * place)
            # The points left out weigh most for features at the ends of the range.
            beyond = torch.arange(1, 60).to(low) * h
            right, left = axes[-1][-1] + beyond - b, a - axes[-1][0] + beyond
            tail = (torch.cat([right, left]).square() / -2.0).exp().sum() * h
            one = wave + float(tail) / math.sqrt(2.0 * math.pi)
            off = off + one + off * one
        return cls(tuple(axes), h, off)

    def __len__(self) -> int:
        return math.prod(len(axis) for axis in self.axes)

    @property
    def points(self) -> Tensor:
        """All points, shape (len, r)."""
        return torch.cartesian_prod(*self.axes).reshape(len(self), len(self.axes))

    @property
    def log_coefficients(self) -> Tensor:
        r""":math:`\log h^r (2\pi)^{-r/2} e^{-|z|^2/2}` of each point."""
        rank = len(self.axes)
        constant = rank * (math.log(self.spacing) - 0.5 * math.log(2.0 * math.pi))
        return constant - 0.5 * self.points.square().sum(-1)

    def log_factor(self, u: Tensor) -> Tensor:
        r"""
        :math:`\log s(u)`, which is near zero inside the box.

        :param u: features, shape (n, r).
        :returns: shape (n,).
        """
        total = torch.zeros(len(u)).to(u)
        for i, axis in enumerate(self.axes):
            scores = -0.5 * (u[:, i, None] - axis).square()
            total += scores.logsumexp(-1) + math.log(self.spacing / math.sqrt(2.0 * math.pi))
        return total

    @property
    def total_variation(self) -> float:
        r"""The bound :math:`\eta / (1 - \eta)` on the distance of the mixture from the tilt."""
        return min(1.0, self.error / (1.0 - self.error)) if self.error < 1.0 else 1.0
