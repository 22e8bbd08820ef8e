# SPDX-License-Identifier: Apache-2.0
"""Certified suprema over a box, by branch and bound over its cells."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_tilt.infer.tilts.convex_feature import FeatureFunction

__all__ = ["Envelope", "Supremum", "excess", "supremum"]

# Cells that may be looked at before the bound that was reached is returned.
MAX_CELLS = 400_000
_START = {1: 512, 2: 48, 3: 16}


@dataclass(frozen=True)
class Envelope:
    r"""
    :math:`E(u) = \sum_j c_j e^{\langle v_j, u\rangle}`.

    :ivar slopes: :math:`v_j`, shape (J, k), in float64.
    :ivar log_coefficients: :math:`\log c_j`, shape (J,).
    """

    slopes: Tensor
    log_coefficients: Tensor

    def log_value(self, u: Tensor) -> Tensor:
        """
        :math:`\\log E`.

        :param u: features, shape (n, k).
        """
        return self._scores(u).logsumexp(-1)

    def tangent(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """
        :math:`\\log E` and its gradient.

        :param u: features, shape (n, k).
        """
        scores = self._scores(u)
        return scores.logsumexp(-1), scores.softmax(-1) @ self.slopes

    def largest(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """
        The largest term, in logarithms, and its slope: what lies below :math:`\\log E`.

        :param u: features, shape (n, k).
        """
        found = self._scores(u).max(-1)
        return found.values, self.slopes[found.indices]

    def scaled(self, log_scale: float) -> Envelope:
        """
        The envelope times a number.

        :param log_scale: its logarithm.
        """
        return Envelope(self.slopes, self.log_coefficients + log_scale)

    def _scores(self, u: Tensor) -> Tensor:
        return u @ self.slopes.T + self.log_coefficients


@dataclass(frozen=True)
class Supremum:
    """
    What branch and bound found.

    :ivar upper: no value in the box is larger.
    :ivar lower: the largest value that was seen.
    :ivar place: where, shape (k,).
    """

    upper: float
    lower: float
    place: Tensor


CellBound = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def supremum(bound: CellBound, low: Tensor, high: Tensor, *, tolerance: float) -> Supremum:
    """
    The supremum of a function over a box.

    :param bound: gives, from centres (n, k) and half widths (k,) of cells, an upper bound over
        each and the value at its centre.
    :param low: lower ends of the box, shape (k,).
    :param high: upper ends.
    :param tolerance: difference of the bounds at which to stop.
    :returns: bounds, whose gap is larger than ``tolerance`` where too many cells were looked at.
    """
    k = len(low)
    count = _START.get(k, 8)
    half = (high - low) / (2 * count)
    axes = [low[i] + half[i] * (2 * torch.arange(count).to(low) + 1) for i in range(k)]
    cells = torch.cartesian_prod(*axes).reshape(-1, k)
    shifts = torch.tensor(list(itertools.product((-0.5, 0.5), repeat=k))).to(low)
    seen, done, best, place = 0, -math.inf, -math.inf, cells[0]
    while True:
        upper, value = bound(cells, half)
        seen += len(cells)
        top = int(value.argmax())
        if float(value[top]) > best:
            best, place = float(value[top]), cells[top]
        limit = best + tolerance
        open_ = upper > limit
        closed = upper[~open_]
        done = max(done, float(closed.max()) if len(closed) else -math.inf)
        if not bool(open_.any()):
            return Supremum(max(done, best), best, place)
        if seen + 2**k * int(open_.sum()) > MAX_CELLS:
            return Supremum(max(done, float(upper.max())), best, place)
        half = half / 2
        cells = (cells[open_].unsqueeze(1) + 2 * shifts * half).reshape(-1, k)


def excess(
    f: FeatureFunction,
    envelope: Envelope,
    low: Tensor,
    high: Tensor,
    *,
    tolerance: float,
    tangents: bool = False,
) -> Supremum:
    r"""
    The supremum of :math:`f - \log E` over a box, certified.

    Over a cell a convex f is at most its largest interpolation from the corners and a concave one
    at most its tangent plane at the centre, while :math:`\log E` is at least its tangent plane at
    the centre; the difference is largest at a corner. With a Lipschitz constant L the value at the
    centre plus :math:`(L + \max |v_j|)` times the half diagonal bounds it too.

    :param f: convex or concave.
    :param envelope: E.
    :param low: lower ends of the box.
    :param high: upper ends.
    :param tolerance: see :func:`supremum`.
    :param tangents: the largest term of E in its place.
    :raises ValueError: for an f that is seen not to be as declared, with a witness.
    """
    corners = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=len(low)))).to(low)
    steepest = float(envelope.slopes.norm(dim=-1).max())
    below = envelope.largest if tangents else envelope.tangent

    def bound(cells: Tensor, half: Tensor) -> tuple[Tensor, Tensor]:
        values, slopes = below(cells)
        ends = corners * half
        centre = f(cells)
        if f.convex:
            at = f((cells.unsqueeze(1) + ends).reshape(-1, len(low))).view(len(cells), -1)
            f.check_middle(cells, centre, at)
        else:
            centre, gradient = f.tangent(cells)
            at = centre.unsqueeze(-1) + gradient @ ends.T
        upper = (at - values.unsqueeze(-1) - slopes @ ends.T).amax(-1)
        if f.lipschitz is not None:
            reach = (f.lipschitz + steepest) * float(half.norm())
            upper = torch.minimum(upper, centre - values + reach)
        return upper, centre - values

    return supremum(bound, low, high, tolerance=tolerance)
