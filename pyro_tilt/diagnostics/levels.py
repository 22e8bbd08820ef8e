# SPDX-License-Identifier: Apache-2.0
"""Base draws gathered by their weight, so that laws of a choice among them can be tabulated."""

from __future__ import annotations

import math

import torch
from torch import Tensor

GROUPS = 10
"""Groups of base draws that are left out in turn for a standard error."""

# Levels that weights without ties are gathered in, and how many of them for each draw of a choice.
_LEVELS, _LEVELS_PER_DRAW = 1000, 20


def levels(weights: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """
    The different log weights and the place of each draw, neighbours together if too many.

    :param weights: log weights, ``(M,)``.
    :param n: draws of a choice, which needs the more levels the more there are.

    >>> found, place = levels(torch.tensor([1.0, 0.0, 1.0]), 2)
    >>> found.tolist(), place.tolist()
    ([0.0, 1.0], [1, 0, 1])
    """
    most = max(_LEVELS, _LEVELS_PER_DRAW * n)
    found, place = weights.unique(return_inverse=True)
    if len(found) <= most:
        return found, place
    none = int((found == -math.inf).sum())
    bins = none + (torch.arange(len(found) - none, device=found.device) * (most - none)) // (
        len(found) - none
    )
    place = torch.cat([torch.arange(none, device=found.device), bins])[place]
    top = weights.max()
    counts = torch.zeros(most, dtype=weights.dtype, device=weights.device)
    mass = counts.index_add(0, place, (weights - top).exp())
    return (mass / counts.index_add(0, place, torch.ones_like(weights))).log() + top, place


def jackknife(values: Tensor) -> float:
    """
    The standard error of a number from its values with each group left out.

    :param values: one per group.
    """
    spread = float((values - values.mean()).square().sum())
    return math.sqrt(spread * (len(values) - 1) / len(values))
