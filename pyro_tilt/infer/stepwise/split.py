# SPDX-License-Identifier: Apache-2.0
"""Shares a clipped mass among steps where it saves most."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["split_by_cost"]


def split_by_cost(mass: Tensor, cost: Tensor, total: float) -> Tensor:
    r"""
    The point of each step's grid that makes the sum of costs least at a given sum of masses.

    At the best split all steps trade alike, :math:`-dn_t / d\epsilon_t = \mu`; so each step takes
    the least of cost plus :math:`\mu` times mass, with the least :math:`\mu` that keeps within the
    total.

    :param mass: clipped mass of each step at the points of its grid, shape (T, G).
    :param cost: proposals there, shape (T, G).
    :param total: largest sum of masses.
    :returns: positions in the grids, shape (T,).
    :raises ValueError: if the least masses exceed the total.

    >>> mass = torch.tensor([[0.1, 0.2], [0.1, 0.2]])
    >>> split_by_cost(mass, torch.tensor([[9.0, 3.0], [2.0, 1.0]]), 0.31).tolist()
    [1, 0]
    """
    if not float(mass.amin(1).sum()) <= total:
        raise ValueError(f"no split of {total:g} is large enough for every step")

    def choose(log_rate: float) -> Tensor:
        priced = cost + math.exp(log_rate) * mass
        return priced.argmin(1)

    low, high = -30.0, 60.0
    for _ in range(100):
        middle = 0.5 * (low + high)
        taken = mass.gather(1, choose(middle).unsqueeze(1)).sum()
        low, high = (low, middle) if float(taken) <= total else (middle, high)
    found = choose(high)
    if float(mass.gather(1, found.unsqueeze(1)).sum()) > total:
        return mass.argmin(1)
    return torch.as_tensor(found)
