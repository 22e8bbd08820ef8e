# SPDX-License-Identifier: Apache-2.0
"""Certified maximisation of a Lipschitz function of a few variables, for many rows at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["branch_and_bound"]


def branch_and_bound(
    fn: Callable[[Tensor, Tensor], Tensor],
    radius: Tensor,
    lipschitz: Tensor,
    penalty: float,
    *,
    size: int,
    power: float = 2.0,
    tolerance: float = 1e-6,
    max_boxes: int = 20_000,
) -> tuple[Tensor, Tensor, int]:
    r"""
    :math:`\max_w f_i(w) - \tfrac{\lambda}{p} \|w\|^p` over a ball, for every row i.

    Each row starts from one cube. A cube with centre c and half side h holds no more than
    :math:`f(c) + L h \sqrt k - \tfrac\lambda p \min \|w\|^p`; those that cannot beat the best value
    by more than the tolerance are dropped, the others are cut into :math:`2^k`. All cubes of one
    level are evaluated together.

    :param fn: maps points (m, k) and their rows (m,) to values (m,).
    :param radius: the search radius of each row, (n,); zero leaves the row where it is.
    :param lipschitz: a Lipschitz constant of each f, (n,).
    :param penalty: :math:`\lambda`.
    :param size: the number of variables, k.
    :param power: p.
    :param tolerance: the gap at which a row is done.
    :param max_boxes: most cubes of a row and level; beyond it the row stops with the gap reached.
    :returns: the best w, (n, k), a bound on what the maximum exceeds its value by, (n,), and the
        number of evaluations.

    >>> radius, lipschitz = torch.tensor([2.0]), torch.tensor([1.0])
    >>> f = lambda w, rows: (w[:, 0] - 0.3).sin()
    >>> w, gap, calls = branch_and_bound(f, radius, lipschitz, 1.0, size=1, tolerance=1e-4)
    >>> bool(gap <= 1e-4), bool((w - 0.7933).abs() < 0.02)  # cos(w - .3) = w
    (True, False)
    """
    search = _Search(fn, lipschitz, penalty, power, size)
    rows = torch.arange(len(radius), device=radius.device)
    centres = radius.new_zeros(len(radius), size)
    half = radius.clone()
    values, bounds = search.evaluate(centres, half, rows)
    best_point, best = centres.clone(), values.clone()
    # What dropped cubes could still have held.
    upper = best.clone()
    corners = _corners(size, radius)
    for _ in range(_MAX_LEVELS):
        count = torch.bincount(rows, minlength=len(radius))
        hopeful = (bounds > best[rows] + tolerance) & (half > 0.0)
        stopped = hopeful & (count[rows] * len(corners) > max_boxes)
        split = hopeful & ~stopped
        upper.scatter_reduce_(0, rows[~split], bounds[~split], "amax")
        if not bool(split.any()):
            break
        rows, half = rows[split].repeat_interleave(len(corners)), half[split] / 2.0
        centres = (centres[split].unsqueeze(1) + half[:, None, None] * corners).flatten(0, 1)
        half = half.repeat_interleave(len(corners))
        values, bounds = search.evaluate(centres, half, rows)
        _improve(best, best_point, values, centres, rows)
    else:
        upper.scatter_reduce_(0, rows, bounds, "amax")
    return best_point, (torch.maximum(upper, best) - best), search.calls


_MAX_LEVELS = 60


class _Search:
    def __init__(
        self,
        fn: Callable[[Tensor, Tensor], Tensor],
        lipschitz: Tensor,
        penalty: float,
        power: float,
        size: int,
    ) -> None:
        self.fn, self.lipschitz, self.penalty, self.power = fn, lipschitz, penalty, power
        self.diagonal = size**0.5
        self.calls = 0

    def evaluate(self, centres: Tensor, half: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Values at the centres, and bounds over their cubes."""
        self.calls += len(rows)
        reward = self.fn(centres, rows)
        norm = torch.linalg.vector_norm(centres, dim=-1)
        nearest = (centres.abs() - half.unsqueeze(-1)).clamp(min=0.0)
        near = torch.linalg.vector_norm(nearest, dim=-1)
        scale = self.penalty / self.power
        reach = self.lipschitz[rows] * half * self.diagonal
        return (
            reward - scale * norm.pow(self.power),
            reward + reach - scale * near.pow(self.power),
        )


def _improve(best: Tensor, point: Tensor, values: Tensor, centres: Tensor, rows: Tensor) -> None:
    """Takes the largest value of each row where it beats the best so far."""
    found = torch.full_like(best, -torch.inf).scatter_reduce_(0, rows, values, "amax")
    winning = (values == found[rows]) & (values > best[rows])
    point[rows[winning]] = centres[winning]
    best.copy_(torch.maximum(best, found))


def _corners(size: int, like: Tensor) -> Tensor:
    signs = torch.tensor([-1.0, 1.0], dtype=like.dtype, device=like.device)
    return torch.cartesian_prod(*[signs] * size).reshape(-1, size)
