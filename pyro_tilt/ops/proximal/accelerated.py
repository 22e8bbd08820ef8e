# SPDX-License-Identifier: Apache-2.0
"""Accelerated gradient ascent of many proximal problems at once, each with its own certificate."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .costs import QuadraticCost
from .curvature import check_curvature
from .step import ProximalStep

__all__ = ["accelerated_ascent"]

RewardFn = Callable[[Tensor], Tensor]
# Steps without progress after which a row has reached its rounding.
_PATIENCE = 200
# Before this many steps most rows are done, and none is watched for the best of its iterates.
_UNWATCHED = 40
# Rows that are done are carried along until they are so many, as leaving them out takes copies.
_FULL = 0.9
# The assumed smoothness is forgotten slowly, for rewards that flatten out.
_RELAX = 0.98
# Pairs of rows whose midpoints test a claimed curvature.
_PAIRS = 64
# Moves, evenly among the rows, whose midpoints do so too.
_MOVES = 512


def accelerated_ascent(
    reward: RewardFn,
    x: Tensor,
    penalty: float,
    cost: QuadraticCost,
    *,
    curvature: float = 0.0,
    tolerance: float = 1e-8,
    max_steps: int = 2000,
    start: Tensor | None = None,
    name: str = "the reward",
) -> ProximalStep:
    r"""
    Maximises :math:`r(y) - \tfrac\lambda2 \|y - x\|_M^2` for every row of ``x``.

    Where :math:`\nabla^2 r \preceq \ell M` with :math:`\ell < \lambda` (a concave reward has
    :math:`\ell = 0`), the problem is :math:`(\lambda - \ell)`-strongly concave and at any
    :math:`y` with gradient :math:`g`

    .. math:: \max - \text{value} \le \frac{\|g\|_{M^{-1}}^2}{2 (\lambda - \ell)} .

    Nesterov's momentum with that modulus; the smoothness of each problem is read off successive
    gradients and values, so that nothing need be known of it, and momentum restarts where it points
    downhill.
    Rows do not touch each other: a row's answer does not depend on the batch. Rows that have
    reached the tolerance leave the computation.

    The curvature is a claim, which finitely many values can refute but never prove: it is tested at
    the midpoints between rows of ``x``, of the moves, and of the paths of rows that found no
    maximum, as an ascent that runs away does.

    :param reward: maps (n, d) to (n,), differentiably and row by row.
    :param x: points, (n, d), with finite rewards.
    :param penalty: :math:`\lambda`.
    :param cost: half a squared norm.
    :param curvature: :math:`\ell`, at least zero.
    :param tolerance: the certified gap at which a row is done.
    :param max_steps: most gradients per row.
    :param start: where to begin, ``x`` by default.
    :param name: what an error calls the reward.
    :returns: the points, with the bound above as ``slack``; ``inf`` if the penalty is not above
        the curvature, where the search is for a local maximum.
    :raises ValueError: if the reward is not differentiable, not finite at the start, or curves
        upwards more than was claimed, with the points that show it.

    >>> from pyro_tilt.ops.proximal import SquaredEuclidean
    >>> x = torch.tensor([[3.0], [-1.0]], dtype=torch.float64)
    >>> step = accelerated_ascent(lambda y: -y.square().sum(-1), x, 2.0, SquaredEuclidean())
    >>> step.points.round(decimals=3).flatten()
    tensor([ 1.5000, -0.5000], dtype=torch.float64)
    >>> bool(step.slack.max() <= 1e-8)
    True
    """
    modulus = penalty - curvature
    certified = modulus > 0.0
    floor = modulus if certified else penalty
    problem = _Problem(reward, x, penalty, cost)
    moves = torch.zeros_like(x) if start is None else problem.moves(start)
    rows = torch.arange(len(x), device=x.device)
    height, slope = problem(moves)
    first = height
    usable = torch.isfinite(height) & torch.isfinite(slope).all(-1)
    if not bool(usable.all()):
        raise ValueError(
            f"the reward or its gradient is not finite at {int((~usable).sum())} of {len(x)} "
            "points to be moved; a gradient cannot lead out of there"
        )
    climb = _Climb(moves, slope, height, penalty, floor, certified)
    best = _Best(climb)
    stale = torch.zeros_like(rows)
    alive = torch.ones_like(rows, dtype=torch.bool)
    for count in range(max_steps):
        open_ = alive & (climb.norm > 2.0 * floor * tolerance)
        if count > _UNWATCHED:
            open_ &= stale[rows] < _PATIENCE
        done = alive & ~open_
        if bool(done.any()):
            best.take(climb, rows, done & (climb.score < best.score[rows]))
            best.leave(climb, rows, done)
            alive = open_
            left = alive.nonzero().squeeze(-1)
            if len(left) <= _FULL * len(rows):
                rows, alive = rows[left], alive[left]
                climb.keep(left)
                problem.keep(left)
        if not len(rows):
            break
        trial = climb.propose()
        climb.update(trial, *problem(trial))
        if count >= _UNWATCHED:
            better = alive & (climb.score < best.score[rows])
            stale[rows] = torch.where(better, 0, stale[rows] + 1)
            best.take(climb, rows, better)
    best.take(climb, rows, alive & (climb.score < best.score[rows]))
    best.leave(climb, rows, alive)
    points = x + cost.unwhiten(best.moves)
    paid = cost(x, points)
    slack = best.norm / (2.0 * floor) if certified else torch.full_like(best.norm, torch.inf)
    if certified:
        # Where rows began at x and how high they ended are known.
        some = slice(None, None, max(1, len(x) // _MOVES))
        ends = (first[some] if start is None else None), best.height[some]
        check_curvature(reward, cost, x[some], points[some], curvature, heights=ends, name=name)
        problem.calls += (1 if start is None else 2) * len(x[some])
        open_ = (slack > tolerance).nonzero().squeeze(-1)
        last = (x + cost.unwhiten(best.last))[open_]
        left = torch.cat([x[:_PAIRS], x[open_], points[open_]])
        right = torch.cat([x[:_PAIRS].roll(1, 0), last, last])
        check_curvature(reward, cost, left, right, curvature, name=name)
        problem.calls += 3 * len(left)
    return ProximalStep(points, best.height, paid, slack.to(best.height), calls=problem.calls)


class _Problem:
    """Rewards, and gradients of the objectives where the cost is half a square."""

    def __init__(self, reward: RewardFn, x: Tensor, penalty: float, cost: QuadraticCost) -> None:
        self.reward, self.x, self.penalty, self.cost = reward, x, penalty, cost
        self.calls = 0

    def keep(self, rows: Tensor) -> None:
        self.x = self.x.index_select(0, rows)

    def __call__(self, moves: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            y = (self.x + self.cost.unwhiten(moves)).detach().requires_grad_()
            reward = self.reward(y)
            if not reward.requires_grad:
                raise ValueError(
                    "the reward has no gradient with respect to its value, which moving a point "
                    "uphill needs; write it in differentiable torch operations, or give support="
                )
            (slope,) = torch.autograd.grad(reward.sum(), y, allow_unused=True)
        self.calls += len(moves)
        slope = torch.zeros_like(y) if slope is None else slope
        slope = torch.sub(self.cost.whiten_slope(slope), moves, alpha=self.penalty)
        return reward.detach(), slope

    def moves(self, y: Tensor) -> Tensor:
        """The whitened moves that lead from x to y."""
        eye = torch.eye(y.shape[-1], dtype=torch.float64, device=y.device)
        back = torch.linalg.inv(self.cost.unwhiten(eye))
        return (y - self.x) @ back.to(y)


class _Climb:
    """
    The rows still at work.

    :ivar point: last gradient step, from which momentum is taken.
    :ivar ahead: the point of extrapolation, with its ``slope`` and the reward ``height``.
    :ivar value: the objective there.
    :ivar score: what the iterate to keep has the least of: the squared norm of the slope, or where
        the objective is not known to be concave, minus the objective.
    :ivar smooth: the smoothness assumed of each row, the inverse of its step.
    """

    _PARTS = ("point", "ahead", "slope", "height", "norm", "value", "score", "smooth")

    def __init__(
        self,
        moves: Tensor,
        slope: Tensor,
        height: Tensor,
        penalty: float,
        floor: float,
        concave: bool,
    ) -> None:
        self.penalty, self.floor, self.concave = penalty, floor, concave
        self.point, self.ahead, self.slope, self.height = moves, moves, slope, height
        self.norm = _square(slope)
        self.value = self._value(moves, height)
        self.score = self.norm if concave else -self.value
        self.smooth = torch.full_like(height, max(penalty, floor))
        self._stepped = moves

    def keep(self, rows: Tensor) -> None:
        for name in self._PARTS:
            setattr(self, name, getattr(self, name).index_select(0, rows))

    def _value(self, moves: Tensor, height: Tensor) -> Tensor:
        return height - 0.5 * self.penalty * _square(moves)

    def propose(self) -> Tensor:
        """The next point of extrapolation."""
        self._stepped = torch.addcdiv(self.ahead, self.slope, self.smooth.unsqueeze(-1))
        if not self.concave:
            return self._stepped
        root = (self.floor / self.smooth).clamp(max=1.0).sqrt()
        momentum = (1.0 - root) / (1.0 + root)
        forward = self._stepped - self.point
        # Where the last move goes against the slope, momentum has overshot.
        downhill = torch.linalg.vecdot(forward, self.slope) < 0.0
        momentum = momentum.masked_fill(downhill, 0.0).unsqueeze(-1)
        return torch.addcmul(self._stepped, momentum, forward, out=forward)

    def update(self, trial: Tensor, height: Tensor, slope: Tensor) -> None:
        """Takes a trial whose gradient agrees with the step that led there, or shortens it."""
        norm, value = _square(slope), self._value(trial, height)
        score = norm if self.concave else -value
        finite = torch.isfinite(height + norm)
        whole = bool(finite.all())
        if self.concave:
            seen = self._seen(trial, slope, None if whole else finite)
            noise = 64.0 * torch.finfo(value.dtype).eps * (value.abs() + self.value.abs())
            fell = (finite & (self.value - value > noise)).nonzero().squeeze(-1)
            if len(fell):
                seen[fell] = torch.maximum(seen[fell], self._dip(fell, trial, value))
            taken = finite & (seen <= 2.0 * self.smooth)
        else:
            rise = 0.25 * self.norm / self.smooth
            rounding = 8.0 * torch.finfo(score.dtype).eps * self.score.abs()
            taken = finite & (score <= self.score - rise + rounding)
            seen = torch.where(taken, self.floor, 2.0 * self.smooth)
        relaxed = (_RELAX if self.concave else 0.7) * self.smooth
        smooth = torch.maximum(seen, torch.where(taken, relaxed, self.smooth))
        if not whole:
            smooth = torch.where(finite, smooth, 4.0 * self.smooth)
        self.smooth = smooth.clamp(max=torch.finfo(score.dtype).max ** 0.5)
        # The reward may be a tensor that others hold, and the score may be the norm itself.
        found = (self._stepped, trial, slope, height.clone(), norm, value, score)
        if not bool(taken.all()):
            # Few rows are refused, so that these are put back rather than all rows chosen anew.
            back = (~taken).nonzero().squeeze(-1)
            known = (self.ahead, self.ahead, *(getattr(self, name) for name in self._PARTS[2:-1]))
            for new, old in zip(found, known):
                new.index_copy_(0, back, old.index_select(0, back))
        for name, new in zip(self._PARTS, found):
            setattr(self, name, new)

    def _dip(self, rows: Tensor, trial: Tensor, value: Tensor) -> Tensor:
        """
        The smoothness of rows whose objective fell, by how far it fell short of its tangent.

        A step that leaps over a sharp ridge finds alike gradients on both sides, but a low value.
        """
        step = trial.index_select(0, rows) - self.ahead.index_select(0, rows)
        rise, length = (self.slope.index_select(0, rows) * step).sum(-1), _square(step)
        fall = self.value[rows] + rise - value[rows]
        return torch.where(length > 0.0, 2.0 * fall / length, self.floor)

    def _seen(self, trial: Tensor, slope: Tensor, finite: Tensor | None) -> Tensor:
        """The smoothness that two gradients of a concave function show, by cocoercivity."""
        change = self.slope - slope
        if finite is not None:
            change = change.masked_fill(~finite.unsqueeze(-1), 0.0)
        inner, square = torch.linalg.vecdot(trial - self.ahead, change), _square(change)
        tiny = torch.finfo(square.dtype).tiny
        return torch.where(inner > tiny, square / inner.clamp(min=tiny), self.floor)


class _Best:
    """The iterate of each row to be returned, with its reward and score, and where it ended."""

    def __init__(self, climb: _Climb) -> None:
        self.last = climb.ahead.clone()
        self.moves, self.height = climb.ahead.clone(), climb.height.clone()
        self.norm, self.score = climb.norm.clone(), climb.score.clone()

    def take(self, climb: _Climb, rows: Tensor, which: Tensor) -> None:
        """Keeps the current points of some of the rows at work."""
        chosen = which.nonzero().squeeze(-1)
        found = rows[chosen]
        self.moves[found] = climb.ahead.index_select(0, chosen)
        self.height[found], self.norm[found], self.score[found] = (
            part.index_select(0, chosen) for part in (climb.height, climb.norm, climb.score)
        )

    def leave(self, climb: _Climb, rows: Tensor, which: Tensor) -> None:
        """Records where some of the rows at work stop."""
        chosen = which.nonzero().squeeze(-1)
        self.last[rows[chosen]] = climb.ahead.index_select(0, chosen)


def _square(rows: Tensor) -> Tensor:
    return torch.linalg.vector_norm(rows, dim=-1).square()
