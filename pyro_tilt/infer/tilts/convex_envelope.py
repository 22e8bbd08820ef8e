# SPDX-License-Identifier: Apache-2.0
"""Envelopes of an exponentiated convex function by sums of exponentials."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_tilt.infer.tilts.convex_bounds import Envelope, Supremum, excess
from pyro_tilt.infer.tilts.convex_family import TiltFamily
from pyro_tilt.infer.tilts.convex_feature import FeatureFunction, box_grid

__all__ = ["linear_programme", "tangent_envelope"]

_SLOPES = {1: 97, 2: 15, 3: 6}
_GRADIENTS = {1: 801, 2: 49, 3: 15}
# The programme starts from a coarse grid; points of the fine one enter where it fails.
_COARSE = {1: 201, 2: 25, 3: 9}
_FINE = {1: 4001, 2: 145, 3: 37}
_TOLERANCE = {1: 1e-3, 2: 5e-3, 3: 2e-2}
_ROUNDS, _ADDED, _LIFTS = 4, 250, 60


def slope_grid(f: FeatureFunction, low: Tensor, high: Tensor, count: int | None = None) -> Tensor:
    """
    Slopes over the range of the gradients of f.

    :param f: the function.
    :param low: lower ends of the box.
    :param high: upper ends.
    :param count: slopes per feature.
    :returns: shape (J, k), without doubles.
    """
    k = len(low)
    least, most = f.steepest(low, high, _GRADIENTS[k])
    return box_grid(least, most, count or _SLOPES[k]).unique(dim=0)


def linear_programme(
    f: FeatureFunction,
    family: TiltFamily,
    low: Tensor,
    high: Tensor,
    *,
    slopes: Tensor | None = None,
) -> tuple[Envelope, float]:
    r"""
    The envelope with the fewest expected trials among those with the given slopes.

    .. math::

        \min_{c \ge 0} \sum_j c_j e^{\Lambda_j} \quad \text{with} \quad
        \sum_j c_j e^{\langle v_j, u \rangle - f(u)} \ge 1

    on a grid of the box, solved by HiGHS; points are added where the envelope fails. What is still
    missing between them raises the terms that matter there, and then the whole envelope by the
    certified supremum of :math:`f - \log E`. That is at most :math:`L h \sqrt k` on a grid of step
    h, and usually far less. Derived here.

    :param f: the function.
    :param family: the tilts, for their normalisers.
    :param low: lower ends of the box.
    :param high: upper ends.
    :param slopes: :math:`v_j`; by default a grid over the range of the gradients.
    :returns: the envelope, and the logarithm of the programme's own optimum before it was raised.
    """
    k = len(low)
    slopes = slope_grid(f, low, high) if slopes is None else slopes
    values, _ = family.log_normalizer(slopes)
    points, fine = box_grid(low, high, _COARSE[k]), box_grid(low, high, _FINE[k])
    targets = f(fine)
    envelope, optimum = _solve(f, slopes, values, points)
    for _ in range(_ROUNDS):
        add = _wanting(family, envelope, fine, targets, 0.2 * _TOLERANCE[k])
        if not len(add):
            break
        points = torch.cat([points, add])
        envelope, optimum = _solve(f, slopes, values, points)
    envelope = _lift(envelope, fine, targets, 0.2 * _TOLERANCE[k])
    above = excess(f, envelope, low, high, tolerance=_TOLERANCE[k])
    return envelope.scaled(above.upper), optimum


def _wanting(
    family: TiltFamily,
    envelope: Envelope,
    points: Tensor,
    targets: Tensor,
    tolerance: float,
) -> Tensor:
    """The points that lack most, each by the mass of the terms that would have to rise there."""
    gaps = targets - envelope.log_value(points)
    short = gaps > tolerance
    points, gaps = points[short], gaps[short]
    masses = envelope.log_coefficients + family.log_normalizer(envelope.slopes)[0]
    shares = (points @ envelope.slopes.T + envelope.log_coefficients).softmax(-1)
    price = gaps * (shares @ masses.softmax(-1))
    return points[price.topk(min(_ADDED, len(points))).indices]


def _lift(envelope: Envelope, points: Tensor, targets: Tensor, tolerance: float) -> Envelope:
    """
    Raises each coefficient by what is missing where its term matters.

    Far out, where hardly any proposal goes, that costs nothing; the whole envelope would.
    """
    coefficients = envelope.log_coefficients
    for _ in range(_LIFTS):
        gaps = targets - Envelope(envelope.slopes, coefficients).log_value(points)
        short = gaps > tolerance
        if not bool(short.any()):
            break
        scores = points[short] @ envelope.slopes.T + coefficients
        share = (scores - scores.amax(-1, keepdim=True)).exp()
        coefficients = coefficients + (share * gaps[short].unsqueeze(-1)).amax(0)
    return Envelope(envelope.slopes, coefficients)


def _solve(
    f: FeatureFunction, slopes: Tensor, values: Tensor, points: Tensor
) -> tuple[Envelope, float]:
    """The programme with constraints at some points."""
    from scipy.optimize import linprog

    heights = points @ slopes.T - f(points).unsqueeze(-1)
    # Tangent coefficients as units: every entry of the programme then lies in (0, 1].
    unit = -heights.amax(0)
    cost = unit + values
    shift = float(cost.max())
    found = linprog(
        (cost - shift).exp().cpu().numpy(),
        A_ub=-(heights + unit).exp().cpu().numpy(),
        b_ub=-torch.ones(len(points)).numpy(),
        bounds=(0, None),
        method="highs",
    )
    if found.status != 0:
        raise ValueError(f"the linear programme of the envelope failed: {found.message}")
    size = torch.from_numpy(found.x).to(values)
    kept = size > 0.0
    envelope = Envelope(slopes[kept], size[kept].log() + unit[kept])
    return envelope, shift + math.log(found.fun)


def tangent_envelope(
    f: FeatureFunction,
    family: TiltFamily,
    low: Tensor,
    high: Tensor,
    *,
    kind: str = "lse",
    gaps: tuple[float, ...] = (1.0, 0.3, 0.1, 0.03, 0.01),
    max_pieces: int = 150,
) -> Envelope:
    r"""
    Tangents of a convex f, one more at the worst place until the largest of them is within a gap
    of f; of several gaps the one that makes the envelope of least mass.

    With :math:`\ell_j` the tangents, :math:`e^f \le M \sum_j e^{\ell_j}` for
    :math:`M = \sup e^{f - \max_j \ell_j}` (``"tangent"``) and for the smaller
    :math:`M = \sup e^{f} / \sum_j e^{\ell_j}` (``"lse"``); both suprema are certified.

    :param f: a convex function.
    :param family: the tilts, for their normalisers.
    :param low: lower ends of the box.
    :param high: upper ends.
    :param kind: ``"tangent"`` or ``"lse"``.
    :param gaps: at which to look, decreasing.
    :param max_pieces: most tangents.
    """
    places = 0.5 * (low + high).unsqueeze(0)
    found: list[tuple[float, Envelope]] = []
    for gap in gaps:
        envelope, above, places = _cut(f, low, high, places, gap, max_pieces)
        if kind == "lse":
            above = excess(f, envelope, low, high, tolerance=_TOLERANCE[len(low)])
        made = envelope.scaled(above.upper)
        masses = made.log_coefficients + family.log_normalizer(made.slopes)[0]
        found.append((float(masses.logsumexp(-1)), made))
        if len(places) >= max_pieces:
            break
    return min(found, key=lambda pair: pair[0])[1]


def _cut(
    f: FeatureFunction, low: Tensor, high: Tensor, places: Tensor, gap: float, most: int
) -> tuple[Envelope, Supremum, Tensor]:
    """Adds tangents until the largest of them is within the gap."""
    tolerance = min(_TOLERANCE[len(low)], 0.5 * gap)
    corners = box_grid(low, high, 2)
    while True:
        values, slopes = f.tangent(places)
        envelope = Envelope(slopes, values - (slopes * places).sum(-1))
        above = excess(f, envelope, low, high, tolerance=tolerance, tangents=True)
        if above.lower <= gap or len(places) >= most:
            return envelope, above, places
        # A convex f is furthest above one tangent at a corner, which no centre of a cell is.
        heights = f(corners) - envelope.largest(corners)[0]
        at_corner = float(heights.max()) > above.lower
        worst = corners[int(heights.argmax())] if at_corner else above.place
        places = torch.cat([places, worst[None]])
