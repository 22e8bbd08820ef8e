# SPDX-License-Identifier: Apache-2.0
"""Proximal maps in closed form, by the structure of the reward."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_tilt.infer.transport.oracle import (
    ProximalOracle,
    ProximalProblem,
    find_proximal,
    register_proximal,
)
from pyro_tilt.infer.transport.pieces import MaxOf, TokenScores
from pyro_tilt.ops.proximal import (
    Hamming,
    NormPower,
    ProximalStep,
    QuadraticCost,
    TransportCost,
    prox_linear,
    prox_max_affine,
    prox_quadratic,
    prox_support,
    prox_tokens,
)
from pyro_tilt.ops.proximal.closed_forms import quadratic_spectrum
from pyro_tilt.rewards import Linear, MaxAffine, Quadratic

__all__: list[str] = []

CLOSED = "closed form"


def _unbatched(problem: ProximalProblem) -> None:
    shape = getattr(problem.reward, "batch_shape", torch.Size())
    if len(shape):
        raise ValueError(
            f"the parameters of {type(problem.reward).__name__} have batch shape {tuple(shape)}; "
            "transport moves whole values by one reward: make all dims of a value event dims"
        )


@register_proximal(Linear, QuadraticCost)
@register_proximal(Linear, NormPower)
def linear(problem: ProximalProblem) -> ProximalOracle:
    """One move for all points; under the distance itself nothing moves."""
    _unbatched(problem)
    assert isinstance(problem.reward, Linear)
    slope = problem.reward.theta.detach().reshape(-1)

    def solve(x: Tensor, penalty: float, _: Tensor | None) -> ProximalStep:
        return problem.step(x, prox_linear(x, slope, penalty, problem.cost))

    def spend(x: Tensor, step: ProximalStep, extra: float) -> ProximalStep:
        # Along the steepest direction of the distance a move gains what it costs.
        assert isinstance(problem.cost, NormPower)
        if problem.cost.elementwise:
            move = torch.zeros_like(slope)
            place = int(slope.abs().argmax())
            move[place] = slope[place].sign()
        else:
            move = slope / torch.linalg.vector_norm(slope)
        return problem.step(x, step.points + extra * move.to(x))

    growth = problem.cost.linear_growth(slope)
    return ProximalOracle(solve, CLOSED, growth=growth, spend=spend if growth > 0.0 else None)


@register_proximal(Quadratic, QuadraticCost)
def quadratic(problem: ProximalProblem) -> ProximalOracle:
    """A linear system; the penalty must exceed the curvature."""
    _unbatched(problem)
    reward, cost = problem.reward, problem.cost
    assert isinstance(reward, Quadratic) and isinstance(cost, QuadraticCost)
    size = reward.b.numel()
    hessian = (2.0 * reward.A.detach()).reshape(size, size)
    slope = reward.b.detach().reshape(-1)
    values, vectors = quadratic_spectrum(hessian, cost)
    growth = max(float(values.amax()), 0.0)

    def solve(x: Tensor, penalty: float, _: Tensor | None) -> ProximalStep:
        return problem.step(x, prox_quadratic(x, hessian, slope, penalty, cost))

    def spend(x: Tensor, step: ProximalStep, extra: float) -> ProximalStep:
        # Points with no pull along the steepest direction may move along it either way.
        return problem.step(x, step.points + (2.0 * extra) ** 0.5 * vectors[:, -1].to(x))

    return ProximalOracle(solve, CLOSED, growth=growth, spend=spend if growth > 0.0 else None)


@register_proximal(MaxAffine, QuadraticCost)
@register_proximal(MaxAffine, NormPower)
def max_affine(problem: ProximalProblem) -> ProximalOracle:
    """The piece whose envelope is largest, and its move."""
    _unbatched(problem)
    assert isinstance(problem.reward, MaxAffine)
    intercepts = problem.reward.intercepts.detach()
    slopes = problem.reward.slopes.detach().reshape(len(intercepts), -1)

    def solve(x: Tensor, penalty: float, _: Tensor | None) -> ProximalStep:
        points = prox_max_affine(x, slopes, intercepts, penalty, problem.cost)
        return problem.step(x, points)

    return ProximalOracle(solve, CLOSED, growth=problem.cost.linear_growth(slopes))


@register_proximal(TokenScores, Hamming)
def tokens(problem: ProximalProblem) -> ProximalOracle:
    """Each token on its own."""
    assert isinstance(problem.reward, TokenScores)
    scores = problem.reward.scores

    def solve(x: Tensor, penalty: float, _: Tensor | None) -> ProximalStep:
        return problem.step(x, prox_tokens(x, scores.to(x.device), penalty))

    return ProximalOracle(solve, CLOSED)


@register_proximal(MaxOf, TransportCost)
def max_of(problem: ProximalProblem) -> ProximalOracle:
    """The best of the pieces' maps, for maxima change places."""
    assert isinstance(problem.reward, MaxOf)
    oracles = [find_proximal(problem.of(piece)) for piece in problem.reward.pieces]

    def solve(x: Tensor, penalty: float, start: Tensor | None) -> ProximalStep:
        steps = [oracle.solve(x, penalty, start) for oracle in oracles]
        values = torch.stack([step.value(penalty) for step in steps])
        upper = torch.stack([step.value(penalty) + step.slack for step in steps]).amax(0)
        choice = values.argmax(0)
        points = torch.stack([step.points for step in steps])
        points = points[choice, torch.arange(len(x), device=x.device)]
        reward = problem.evaluate(points)
        cost = problem.cost(x, points).to(reward)
        slack = (upper - (reward - penalty * cost)).clamp(min=0.0)
        if all(oracle.law == "exact" for oracle in oracles):
            slack = torch.zeros_like(slack)
        calls = len(x) + sum(step.calls for step in steps)
        return ProximalStep(points, reward, cost, slack, calls=calls)

    laws = ("exact", "bounded", "search")
    return ProximalOracle(
        solve,
        "best of the pieces: " + ", ".join(dict.fromkeys(o.method for o in oracles)),
        law=max((oracle.law for oracle in oracles), key=laws.index),
        growth=max(oracle.growth for oracle in oracles),
        assumes="; ".join(dict.fromkeys(o.assumes for o in oracles if o.assumes)),
    )


def on_support(problem: ProximalProblem, support: Tensor) -> ProximalOracle:
    """
    Moves restricted to finitely many values, found by trying them all.

    :param problem: any reward and cost.
    :param support: the values, (m,) + event shape.
    """
    flat = support.reshape(len(support), -1)
    rewards = problem.evaluate(flat).detach()
    block = max(1, 2**22 // max(1, flat.numel()))

    def solve(x: Tensor, penalty: float, _: Tensor | None) -> ProximalStep:
        index = torch.cat(
            [prox_support(part, flat, rewards, penalty, problem.cost) for part in x.split(block)]
        )
        points = flat[index].to(x)
        cost = problem.cost(x, points).to(rewards)
        return ProximalStep(points, rewards[index], cost, torch.zeros_like(cost))

    return ProximalOracle(solve, f"enumeration of {len(support)} values")
