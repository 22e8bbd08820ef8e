# SPDX-License-Identifier: Apache-2.0
"""Proximal maps by gradients: certified for concave and one-sided smooth rewards, else a search."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_tilt.infer.transport.oracle import ProximalOracle, ProximalProblem, register_proximal
from pyro_tilt.ops.proximal import ProximalStep, QuadraticCost, accelerated_ascent
from pyro_tilt.rewards import Constraint, Reward

__all__: list[str] = []

CURVATURE_TESTED = (
    "whether the reward curves upwards no more than was said, which finitely many segments tested"
)


@register_proximal(Reward, QuadraticCost)
def by_gradient(problem: ProximalProblem) -> ProximalOracle | None:
    """Accelerated gradients where the curvature is known to be below the penalty."""
    if isinstance(problem.reward, Constraint):
        return None
    curvature = 0.0 if problem.reward.concave else problem.curvature
    if curvature is None:
        return ProximalOracle(
            lambda x, penalty, start: _search(problem, x, penalty, start, math.inf),
            "local ascent",
            law="search",
        )
    known = max(curvature, 0.0)

    def solve(x: Tensor, penalty: float, start: Tensor | None) -> ProximalStep:
        if penalty <= known:
            return _search(problem, x, penalty, start, known)
        return _ascend(problem, x, penalty, known, start)

    return ProximalOracle(solve, "accelerated gradient", law="bounded", assumes=CURVATURE_TESTED)


def _ascend(
    problem: ProximalProblem, x: Tensor, penalty: float, curvature: float, start: Tensor | None
) -> ProximalStep:
    assert isinstance(problem.cost, QuadraticCost)
    return accelerated_ascent(
        problem.evaluate,
        x,
        penalty,
        problem.cost,
        curvature=curvature,
        tolerance=problem.tolerance,
        max_steps=problem.max_steps,
        start=start,
    )


def _search(
    problem: ProximalProblem, x: Tensor, penalty: float, start: Tensor | None, curvature: float
) -> ProximalStep:
    """The better of two local ascents; an upper bound of the reward is the only one there is."""
    steps = [_ascend(problem, x, penalty, curvature, None)]
    if start is not None and bool(torch.isfinite(problem.evaluate(start)).all()):
        steps.append(_ascend(problem, x, penalty, curvature, start))
    values = torch.stack([step.value(penalty) for step in steps])
    choice, rows = values.argmax(0), torch.arange(len(x), device=x.device)
    points = torch.stack([step.points for step in steps])[choice, rows]
    reward = torch.stack([step.reward for step in steps])[choice, rows]
    cost = torch.stack([step.cost for step in steps])[choice, rows]
    slack = (problem.reward.upper_bound - values.amax(0)).clamp(min=0.0)
    return ProximalStep(points, reward, cost, slack, calls=sum(step.calls for step in steps))
