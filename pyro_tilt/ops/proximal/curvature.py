# SPDX-License-Identifier: Apache-2.0
"""Whether a reward curves upwards no more than was said: midpoints of segments as witnesses."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .costs import QuadraticCost

__all__ = ["check_curvature"]


def check_curvature(
    reward: Callable[[Tensor], Tensor],
    cost: QuadraticCost,
    x: Tensor,
    y: Tensor,
    curvature: float,
    *,
    heights: tuple[Tensor | None, Tensor | None] = (None, None),
    name: str = "the reward",
) -> None:
    r"""
    Compares midpoints with the ends of segments.

    Where :math:`\nabla^2 r \preceq \ell M`, the midpoint of two points of cost c is no lower than
    the mean of the ends less :math:`\ell c / 4`.

    :param reward: maps (n, d) to (n,).
    :param cost: half the squared norm of M.
    :param x: one end of each segment, (n, d).
    :param y: the other end, (n, d).
    :param curvature: :math:`\ell`, as claimed; zero claims that the reward is concave.
    :param heights: rewards of the two ends, each (n,), where they are known.
    :param name: of what was claimed to curve so.
    :raises ValueError: with a segment whose midpoint lies lower, where there is one.

    >>> from pyro_tilt.ops.proximal import SquaredEuclidean
    >>> x, y = torch.tensor([[0.0]]), torch.tensor([[2.0]])
    >>> check_curvature(lambda x: -x.square().sum(-1), SquaredEuclidean(), x, y, 0.0)
    >>> check_curvature(lambda x: x.square().sum(-1), SquaredEuclidean(), x, y, 2.0)
    """
    with torch.no_grad():
        middle = reward(0.5 * x + 0.5 * y)
        left, right = (reward(end) if high is None else high for end, high in zip((x, y), heights))
    mean = 0.5 * left + 0.5 * right
    short = mean - 0.25 * curvature * cost(x, y).to(mean) - middle
    size = torch.maximum(left.abs(), right.abs())
    allowed = 64.0 * torch.finfo(middle.dtype).eps * (1.0 + size)
    wrong = torch.isfinite(mean) & (short > allowed)
    if not bool(wrong.any()):
        return
    # Of the segments that are plainly wrong the shortest says most.
    ratio = torch.where(wrong, short / (1.0 + size), 0.0)
    row = int(torch.where(ratio >= 0.5 * ratio.amax(), cost(x, y), math.inf).argmin())
    word = "concave" if curvature <= 0.0 else f"of curvature at most {curvature:g}"
    raise ValueError(
        f"{name} is not {word}, as was said: between {_show(x[row])} and {_show(y[row])} its "
        f"midpoint lies {float(short[row]):.3g} too low, so that no certificate would hold. Give "
        "curvature=, or drop the claim"
    )


def _show(point: Tensor) -> str:
    shown = ", ".join(f"{value:.3g}" for value in point[:4].tolist())
    return f"[{shown}{', ...' if len(point) > 4 else ''}]"
