# SPDX-License-Identifier: Apache-2.0
"""The one tilt that proposes for a concave reward."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_tilt.infer.tilts.convex_bounds import Envelope, Supremum, excess
from pyro_tilt.infer.tilts.convex_family import TiltFamily
from pyro_tilt.infer.tilts.convex_feature import FeatureFunction, box_grid

__all__ = ["optimal_tangent"]

_GRID = {1: 801, 2: 49, 3: 15}
_ZOOMS = 12


def optimal_tangent(f: FeatureFunction, family: TiltFamily, low: Tensor, high: Tensor) -> Envelope:
    r"""
    The envelope :math:`e^{f(u)} \le e^{\langle v, u \rangle + s(v)}` with the fewest trials.

    .. math::

        \min_v \Lambda(A^\top v) + s(v), \qquad s(v) = \sup_u f(u) - \langle v, u \rangle,

    is convex in v, and its optimum touches f at the mean of the features under the tilt (derived
    here). The supremum is that over a grid, smoothed, zoomed in on where it is attained; of the
    slope that comes out it is then certified, so that an inexact optimum costs trials only.

    :param f: a concave function.
    :param family: the tilts.
    :param low: lower ends of the box of the features under the base.
    :param high: upper ends.
    :raises ValueError: where the supremum is not attained within reach.
    """
    k = len(low)
    inside = low, high
    slope = f.tangent(0.5 * (low + high)[None])[1][0]
    width = high - low
    for zoom in range(_ZOOMS):
        points = box_grid(*inside, _GRID[k])
        slope = _slope(family, points, f(points), slope)
        top = points[int((f(points) - points @ slope).argmax())]
        edge = bool(((top <= inside[0]) | (top >= inside[1])).any())
        if not edge:
            width = width / 4.0
        elif zoom == 0:
            width = 4.0 * width
        inside = top - 0.5 * width, top + 0.5 * width
    flat = Envelope(slope[None], torch.zeros(1).to(slope))
    return flat.scaled(_height(f, flat, top, high - low).upper)


def _height(f: FeatureFunction, flat: Envelope, top: Tensor, width: Tensor) -> Supremum:
    """The supremum of f over a plane; concave, so that a maximum inside a box is that of all."""
    reach = width
    for _ in range(20):
        found = excess(f, flat, top - reach, top + reach, tolerance=1e-3)
        edges = box_grid(top - reach, top + reach, 3)
        outer = edges[((edges - top).abs() >= 0.99 * reach).any(-1)]
        if bool((f(outer) - flat.log_value(outer) < found.lower).all()):
            return found
        reach = 4.0 * reach
    raise ValueError(
        "the reward is declared concave, but no plane above it with the slope that it has among "
        f"the draws was found: it still rises at the features {(top + reach).tolist()}"
    )


def _slope(family: TiltFamily, points: Tensor, values: Tensor, start: Tensor) -> Tensor:
    """The slope with the least mass, the supremum being over the points."""
    from scipy.optimize import minimize

    slack = 0.02

    def objective(v: Tensor) -> tuple[float, Tensor]:
        scores = (values - points @ v) / slack
        step = 1e-4 / family.features.norm(dim=-1).clamp(min=1e-12)
        moves = torch.cat([torch.zeros(1, len(v)).to(v), torch.diag(step), -torch.diag(step)])
        logs = family.log_normalizer(v + moves)[0]
        mean = (logs[1 : 1 + len(v)] - logs[1 + len(v) :]) / (2 * step)
        touch = scores.softmax(-1) @ points
        return float(logs[0] + slack * scores.logsumexp(-1)), mean - touch

    def both(x: list[float]) -> tuple[float, list[float]]:
        value, slope = objective(torch.tensor(x, dtype=torch.float64).to(start))
        return value, slope.tolist()

    return torch.as_tensor(minimize(both, start.tolist(), jac=True, method="L-BFGS-B").x).to(start)
