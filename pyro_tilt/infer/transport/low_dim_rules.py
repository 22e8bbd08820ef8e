# SPDX-License-Identifier: Apache-2.0
"""Proximal maps of rewards that see a few linear features: a search in as many dimensions."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_tilt.infer.transport.gradient_rules import CURVATURE_TESTED
from pyro_tilt.infer.transport.oracle import ProximalOracle, ProximalProblem, register_proximal
from pyro_tilt.ops.proximal import (
    Mahalanobis,
    NormPower,
    ProximalStep,
    QuadraticCost,
    accelerated_ascent,
    branch_and_bound,
)
from pyro_tilt.rewards import LowDim

__all__: list[str] = []

# Rows searched together, by the number of features, so that their boxes fit into memory.
_ROWS = {1: 8192, 2: 512}
_BOXES = {1: 20_000, 2: 50_000}


class _Features:
    r"""
    The cheapest move to each feature value: :math:`y = x + S w` has features
    :math:`Ax + B w` and cost :math:`\|w\|^p / p`.
    """

    def __init__(self, A: Tensor, cost: QuadraticCost | NormPower) -> None:
        wide = A.double()
        self.power = 2.0
        if isinstance(cost, NormPower) and cost.elementwise:
            self.power, self.lift = cost.p, _elementwise_direction(wide[0], cost.p)
            self.spread = wide @ self.lift
            return
        dual = wide
        if isinstance(cost, NormPower):
            self.power = cost.p
        else:
            dual = cost.dual(wide)
        values, vectors = torch.linalg.eigh(dual @ wide.mT)
        kept = values > values.amax().clamp(min=1e-300) * 1e-12
        roots = values[kept].sqrt()
        self.spread = vectors[:, kept] * roots
        self.lift = dual.mT @ (vectors[:, kept] / roots)

    @property
    def size(self) -> int:
        return self.spread.shape[1]

    @property
    def norm(self) -> float:
        """What a Lipschitz constant in the features becomes in w."""
        return float(torch.linalg.matrix_norm(self.spread, 2)) if self.size else 0.0


def _elementwise_direction(a: Tensor, p: float) -> Tensor:
    """The move of unit p-norm that changes one feature most, (d, 1)."""
    if p == 1.0:
        move = torch.zeros_like(a)
        place = a.abs().argmax()
        move[place] = a[place].sign()
    else:
        power = a.abs().pow(1.0 / (p - 1.0))
        move = a.sign() * power / power.pow(p).sum().pow(1.0 / p)
    return move.unsqueeze(-1)


@register_proximal(LowDim, QuadraticCost)
@register_proximal(LowDim, NormPower)
def low_dim(problem: ProximalProblem) -> ProximalOracle | None:
    """Gradients in the features for a concave f, branch and bound for a Lipschitz one."""
    reward, cost = problem.reward, problem.cost
    assert isinstance(reward, LowDim) and isinstance(cost, QuadraticCost | NormPower)
    if reward.A.dim() != 2:
        raise ValueError(f"A must be of shape (k, d) for transport, got {tuple(reward.A.shape)}")
    if isinstance(cost, NormPower) and cost.elementwise and len(reward.A) != 1:
        return None
    features = _Features(reward.A.detach(), cost)
    # Inclined features leave the plain gradient to the rule for concave rewards.
    if reward.concave and isinstance(cost, QuadraticCost):
        return _concave(problem, features) if features.size == len(reward.A) else None
    if reward.lipschitz is None:
        return None
    return ProximalOracle(
        _Search(problem, features).solve,
        "branch and bound",
        law="bounded",
        assumes="whether f is Lipschitz as declared, which the points of the search tested",
    )


def _concave(problem: ProximalProblem, features: _Features) -> ProximalOracle:
    reward = problem.reward
    assert isinstance(reward, LowDim)
    metric = Mahalanobis(torch.linalg.inv(features.spread @ features.spread.mT))
    back = features.lift @ torch.linalg.inv(features.spread)

    def solve(x: Tensor, penalty: float, start: Tensor | None) -> ProximalStep:
        A = reward.A.to(x)
        step = accelerated_ascent(
            reward._inner,
            x @ A.mT,
            penalty,
            metric,
            tolerance=problem.tolerance,
            max_steps=problem.max_steps,
            start=None if start is None else start @ A.mT,
            name="f of the LowDim reward",
        )
        points = x + (step.points - x @ A.mT) @ back.mT.to(x)
        done = problem.step(x, points)
        return ProximalStep(points, done.reward, done.cost, step.slack, calls=step.calls)

    return ProximalOracle(
        solve, "accelerated gradient in the features", law="bounded", assumes=CURVATURE_TESTED
    )


class _Search:
    """Branch and bound over the features of each point."""

    def __init__(self, problem: ProximalProblem, features: _Features) -> None:
        assert isinstance(problem.reward, LowDim) and problem.reward.lipschitz is not None
        self.problem, self.features = problem, features
        self.reward = problem.reward
        self.lipschitz = problem.reward.lipschitz * features.norm

    def solve(self, x: Tensor, penalty: float, start: Tensor | None) -> ProximalStep:
        rows = _ROWS.get(self.features.size, 64)
        return ProximalStep.cat([self._part(part, penalty) for part in x.split(rows)])

    def _part(self, x: Tensor, penalty: float) -> ProximalStep:
        size, power = self.features.size, self.features.power
        radius = self._radius(penalty)
        if size == 0 or radius == 0.0:
            return self.problem.step(x, x)
        base = x @ self.reward.A.to(x).mT
        spread = self.features.spread.to(x)
        here = self.reward._inner(base).detach()

        def fn(w: Tensor, rows: Tensor) -> Tensor:
            with torch.no_grad():
                value = self.reward._inner(base[rows] + w @ spread.mT)
            self._check_lipschitz(value - here[rows], w)
            return value

        w, gap, calls = branch_and_bound(
            fn,
            here.new_full((len(x),), radius),
            here.new_full((len(x),), self.lipschitz),
            penalty,
            size=size,
            power=power,
            tolerance=self.problem.tolerance,
            max_boxes=_BOXES.get(size, 30_000),
        )
        done = self.problem.step(x, x + w @ self.features.lift.mT.to(x))
        upper = done.value(penalty) + gap
        done = self._polish(x, done, penalty, gap)
        slack = (upper.clamp(max=self.reward.upper_bound) - done.value(penalty)).clamp(min=0.0)
        return ProximalStep(
            done.points, done.reward, done.cost, slack, calls=calls + done.calls + 2 * len(x)
        )

    def _radius(self, penalty: float) -> float:
        power = self.features.power
        if power > 1.0:
            return (self.lipschitz / penalty) ** (1.0 / (power - 1.0))
        if self.lipschitz <= penalty:
            return 0.0
        raise ValueError(
            f"penalty = {penalty:.6g} is below the Lipschitz constant {self.lipschitz:.6g} of the "
            "reward under the distance itself, so that nothing bounds how far points may move. "
            "Raise the penalty (at the constant nothing moves), or take a cost with a power above 1"
        )

    def _polish(self, x: Tensor, done: ProximalStep, penalty: float, gap: Tensor) -> ProximalStep:
        """A local ascent from where the boxes ran out; the bound stays that of the boxes."""
        cost = self.problem.cost
        if not isinstance(cost, QuadraticCost) or not bool((gap > self.problem.tolerance).any()):
            return done
        probe = done.points[:1].detach().requires_grad_()
        with torch.enable_grad():
            if not self.problem.evaluate(probe).requires_grad:
                return done
        better = accelerated_ascent(
            self.problem.evaluate,
            x,
            penalty,
            cost,
            curvature=float("inf"),
            tolerance=self.problem.tolerance,
            max_steps=100,
            start=done.points,
        )
        gained = better.value(penalty) > done.value(penalty)
        return ProximalStep(
            torch.where(gained.unsqueeze(-1), better.points, done.points),
            torch.where(gained, better.reward, done.reward),
            torch.where(gained, better.cost, done.cost),
            done.slack,
            calls=done.calls + better.calls,
        )

    def _check_lipschitz(self, change: Tensor, w: Tensor) -> None:
        allowed = self.lipschitz * torch.linalg.vector_norm(w, dim=-1)
        excess = change.abs() - allowed * (1.0 + 1e-4)
        limit = 1e-5 * (1.0 + allowed)
        if bool((excess > limit).any()):
            row = int((excess - limit).argmax())
            raise ValueError(
                f"f of the LowDim reward is not Lipschitz with constant {self.reward.lipschitz:g}, "
                f"as declared: it changes by {float(change[row].abs()):.4g} over a move that "
                f"allows {float(allowed[row]):.4g}. Declare a constant that holds"
            )
