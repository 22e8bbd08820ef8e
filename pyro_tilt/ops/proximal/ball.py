# SPDX-License-Identifier: Apache-2.0
"""Transport within a ball: the penalty that spends a given mean cost, and the plan at a kink."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .step import ProximalStep

__all__ = ["BallPlan", "ball_plan"]

Solve = Callable[[float], ProximalStep]
Spend = Callable[[ProximalStep, float], ProximalStep]


@dataclass(frozen=True, eq=False)
class BallPlan:
    r"""
    A plan of mean cost at most :math:`\rho`: the map ``far`` with probability ``mixing``, ``near``
    with the rest.

    :ivar far: the step at the lower penalty, which costs more.
    :ivar near: the step at the higher penalty, which costs less.
    :ivar mixing: probability of ``far``, the same for every point.
    :ivar penalty: the multiplier :math:`\lambda` of the bound.
    :ivar reward: mean reward of the plan.
    :ivar cost: its mean cost.
    :ivar dual: an upper bound on the mean reward of every plan within the ball.
    :ivar dual_penalty: the penalty of the step that gives it.
    """

    far: ProximalStep
    near: ProximalStep
    mixing: float
    penalty: float
    reward: float
    cost: float
    dual: float
    dual_penalty: float

    @property
    def gap(self) -> float:
        """What the best plan exceeds this one by, at most."""
        return max(self.dual - self.reward, 0.0)


def ball_plan(
    solve: Solve,
    radius: float,
    *,
    weights: Tensor | None = None,
    growth: float = 0.0,
    tolerance: float = 1e-9,
    max_evaluations: int = 120,
    spend: Spend | None = None,
) -> BallPlan:
    r"""
    Maximises the mean reward over plans of mean cost at most :math:`\rho`.

    .. math:: \max_{q :\, W_c(q, p) \le \rho} \mathbb E_q r
        = \min_{\lambda \ge 0}\; \lambda \rho + \mathbb E_p\, r^\lambda

    (Blanchet and Murthy 2019, arXiv 1604.01446; Gao and Kleywegt, arXiv 1604.02199). The dual is
    convex in :math:`\lambda` with slope :math:`\rho - \mathbb E c(x, T_\lambda x)`: a bracket of
    the zero of the slope is narrowed by tangents, secants and bisection. Where the mean cost jumps
    across :math:`\rho`, the two ends of the bracket are mixed, each point by the same odds, which
    meets the bound exactly and is optimal.

    :param solve: the proximal step of the sample at a penalty.
    :param radius: :math:`\rho`, the bound on the mean cost.
    :param weights: of the points, (n,), summing to one; equal by default.
    :param growth: the penalty below which there is no proximal step.
    :param tolerance: what a narrower bracket could still add to the mean reward, relative to its
        size, at which to stop.
    :param max_evaluations: most penalties tried.
    :param spend: moves points on, by a given mean cost, where the penalty equals ``growth``
        and every further move gains just what it costs.
    :returns: the plan, with its duality gap.

    >>> x = torch.tensor([0.0, 1.0])
    >>> def solve(penalty):  # reward 2 at 1 and 0 at 0; cost 1 for moving between them
    ...     y = torch.where((x == 0) & (penalty < 2.0), 1.0, x)
    ...     return ProximalStep(y[:, None], 2.0 * y, (x != y).float(), torch.zeros(2))
    >>> plan = ball_plan(solve, 0.2)
    >>> round(plan.mixing, 6), round(plan.reward, 6), plan.gap < 1e-6
    (0.4, 1.4, True)
    """
    bracket = _Bracket(solve, radius, weights)
    lowest = growth * (1.0 + 1e-9) + torch.finfo(torch.float64).tiny
    _enclose(bracket, growth, lowest)
    plan = bracket.plan()
    turn = 0
    while bracket.open and bracket.evaluations < max_evaluations:
        if bracket.left_to_gain <= tolerance * max(abs(plan.reward), radius * plan.penalty):
            break
        turn += 1
        if not bracket.narrow(turn):
            break
        plan = bracket.plan()
    if spend is not None and bracket.far is None and plan.cost < radius:
        plan = bracket.finish(spend, growth)
    return plan


def _enclose(bracket: _Bracket, growth: float, lowest: float) -> None:
    """Penalties whose mean costs lie on both sides of the radius, where there are such."""
    penalty = max(1.0, 2.0 * growth)
    while bracket.near is None and penalty < 1e15:
        bracket.add(penalty)
        penalty = growth + 8.0 * (penalty - growth)
    if bracket.near is None:
        raise ValueError(
            f"no penalty up to {penalty:.0e} keeps the mean cost within radius = "
            f"{bracket.radius:.3g}; is the reward finite and the radius positive?"
        )
    step = (bracket.near.penalty - growth) / 8.0
    while bracket.far is None and step > max(1e-13 * max(growth, 1e-3), lowest - growth):
        bracket.add(growth + step)
        step /= 8.0
    if bracket.far is None and growth > 0.0:
        bracket.add(lowest)


@dataclass(frozen=True, eq=False)
class _End:
    penalty: float
    step: ProximalStep
    reward: float
    cost: float
    dual: float


class _Bracket:
    """Two penalties with the mean cost above and within the radius."""

    def __init__(self, solve: Solve, radius: float, weights: Tensor | None) -> None:
        self.solve, self.radius, self.weights = solve, radius, weights
        self.near: _End | None = None
        self.far: _End | None = None
        self.evaluations = 0
        self.best_dual = (math.inf, math.nan)

    @property
    def open(self) -> bool:
        return self.far is not None and self.near is not None

    @property
    def left_to_gain(self) -> float:
        """What a narrower bracket could still add to the reward of the plan, at most."""
        assert self.near is not None and self.far is not None
        return (self.near.penalty - self.far.penalty) * (self.radius - self.near.cost)

    def add(self, penalty: float) -> None:
        self.evaluations += 1
        end = self.end(penalty, self.solve(penalty))
        if end.dual < self.best_dual[0]:
            self.best_dual = (end.dual, penalty)
        if end.cost > self.radius:
            self.far = end
        else:
            self.near = end

    def end(self, penalty: float, step: ProximalStep) -> _End:
        reward, cost = self.mean(step.reward), self.mean(step.cost)
        slack = self.mean(step.slack)
        return _End(penalty, step, reward, cost, penalty * (self.radius - cost) + reward + slack)

    def mean(self, values: Tensor) -> float:
        wide = values.double()
        return float(wide.mean() if self.weights is None else wide @ self.weights.double())

    def narrow(self, turn: int) -> bool:
        """One more penalty inside the bracket; False where rounding leaves none."""
        assert self.near is not None and self.far is not None
        low, high = self.far.penalty, self.near.penalty
        slope_low, slope_high = self.radius - self.far.cost, self.radius - self.near.cost
        if turn % 3 == 0 or not math.isfinite(self.far.dual - self.near.dual):
            middle = math.sqrt(low * high) if high > 4.0 * low > 0.0 else (low + high) / 2
        elif turn % 3 == 1:
            # The dual lies above its tangents, which cross at a kink: a cutting plane.
            rise = self.far.dual - self.near.dual + slope_high * high - slope_low * low
            middle = rise / (slope_high - slope_low)
        else:
            middle = low + (high - low) * slope_low / (slope_low - slope_high)
        edge = 1e-4 * (high - low)
        middle = min(max(middle, low + edge), high - edge)
        if not low < middle < high:
            return False
        self.add(middle)
        return True

    def plan(self) -> BallPlan:
        near, far = self.near, self.far
        assert near is not None
        dual, dual_penalty = self.best_dual
        if far is None:
            return BallPlan(
                near.step, near.step, 0.0, near.penalty, near.reward, near.cost, dual, dual_penalty
            )
        mixing = (self.radius - near.cost) / (far.cost - near.cost)
        reward = mixing * far.reward + (1.0 - mixing) * near.reward
        return BallPlan(
            far.step, near.step, mixing, near.penalty, reward, self.radius, dual, dual_penalty
        )

    def finish(self, spend: Spend, growth: float) -> BallPlan:
        """Spends the rest of the radius at the lowest penalty."""
        assert self.near is not None
        step = spend(self.near.step, self.radius - self.near.cost)
        end = self.end(self.near.penalty, step)
        plan = self.plan()
        if end.cost > self.radius * (1.0 + 1e-9) or end.reward <= plan.reward:
            return plan
        return BallPlan(step, step, 1.0, growth, end.reward, end.cost, plan.dual, plan.dual_penalty)
