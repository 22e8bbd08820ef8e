# SPDX-License-Identifier: Apache-2.0
"""Which proximal maps are known: rules by the types of reward and cost, as torch finds a KL."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from pyro_tilt.ops.proximal import ProximalStep, TransportCost
from pyro_tilt.rewards import Reward

__all__ = ["ProximalOracle", "ProximalProblem", "find_proximal", "register_proximal"]


@dataclass(frozen=True)
class ProximalProblem:
    r"""
    What a rule is asked: to maximise :math:`r(y) - \lambda c(x, y)` for points of one shape.

    :ivar reward: the reward, beta folded in.
    :ivar cost: the transport cost.
    :ivar event_shape: shape of one value; rules see values flattened to vectors.
    :ivar curvature: a bound :math:`\ell` on the Hessian, :math:`\nabla^2 r \preceq \ell M`, where
        the user gave one.
    :ivar tolerance: the gap of one point at which an iterative search may stop.
    :ivar max_steps: most steps of such a search.
    """

    reward: Reward
    cost: TransportCost
    event_shape: torch.Size
    curvature: float | None = None
    tolerance: float = 1e-8
    max_steps: int = 2000

    def evaluate(self, points: Tensor) -> Tensor:
        """
        The reward of flattened values.

        :param points: shape (n, d).
        """
        return self.reward(points.reshape(len(points), *self.event_shape))

    def step(self, x: Tensor, points: Tensor) -> ProximalStep:
        """
        The outcome of a closed form: points known to be optimal.

        :param x: where from, (n, d).
        :param points: where to, (n, d).
        """
        reward = self.evaluate(points)
        cost = self.cost(x, points).to(reward)
        return ProximalStep(points, reward, cost, torch.zeros_like(cost), calls=len(points))

    def of(self, reward: Reward) -> ProximalProblem:
        """
        The same question for another reward.

        :param reward: the other reward.
        """
        return replace(self, reward=reward)


class Solve(Protocol):
    """A proximal step: points (n, d), the penalty, and optionally points to start from."""

    def __call__(self, x: Tensor, penalty: float, start: Tensor | None, /) -> ProximalStep: ...


@dataclass(frozen=True)
class ProximalOracle:
    """
    How the proximal steps of one problem are found.

    :ivar solve: maps points (n, d), a penalty and points to start from (or None) to a
        :class:`~pyro_tilt.ops.ProximalStep`.
    :ivar method: in words, such as ``"closed form"``.
    :ivar law: ``"exact"`` (slack is zero), ``"bounded"`` (slack is proven) or ``"search"``.
    :ivar growth: what a penalty must exceed.
    :ivar spend: moves points on by a given mean cost at a penalty of ``growth``, where each move
        gains what it costs.
    :ivar assumes: what was said about the reward and can only be tested, in words; the
        certificate leaves it out by name.
    """

    solve: Solve
    method: str
    law: str = "exact"
    growth: float = 0.0
    spend: Callable[[Tensor, ProximalStep, float], ProximalStep] | None = None
    assumes: str = ""


Rule = Callable[[ProximalProblem], ProximalOracle | None]
RuleT = TypeVar("RuleT", bound=Rule)

_RULES: dict[tuple[type, type], list[Rule]] = {}


def register_proximal(reward: type[Any], cost: type[Any]) -> Callable[[RuleT], RuleT]:
    """
    Decorate ``rule(problem) -> ProximalOracle | None`` as the proximal map of a reward type.

    A rule returns None to decline, and the next match is tried; it raises ``ValueError`` where
    there is no proximal map. The rule whose reward type is nearest is asked first, then that whose
    cost type is nearest, then that registered last.

    :param reward: a reward type.
    :param cost: a type of transport cost.
    :raises TypeError: if either is not such a type.

    >>> from pyro_tilt import ops, rewards
    >>> class Ceiling(rewards.Reward):  # -inf above 1, for points on a line
    ...     def __call__(self, value):
    ...         return torch.zeros_like(value).masked_fill(value > 1.0, -torch.inf)
    >>> @register_proximal(Ceiling, ops.SquaredEuclidean)
    ... def ceiling(problem):
    ...     return ProximalOracle(
    ...         lambda x, penalty, start: problem.step(x, x.clamp(max=1.0)), "projection"
    ...     )
    >>> problem = ProximalProblem(Ceiling(), ops.SquaredEuclidean(), torch.Size([]))
    >>> find_proximal(problem).solve(torch.tensor([[3.0], [0.5]]), 1.0, None).cost
    tensor([2., 0.])
    """
    if not (isinstance(reward, type) and issubclass(reward, Reward)):
        raise TypeError(f"register_proximal: reward must be a Reward type, got {reward!r}")
    if not (isinstance(cost, type) and issubclass(cost, TransportCost)):
        raise TypeError(f"register_proximal: cost must be a TransportCost type, got {cost!r}")

    def decorator(rule: RuleT) -> RuleT:
        _RULES.setdefault((reward, cost), []).insert(0, rule)
        return rule

    return decorator


def find_proximal(problem: ProximalProblem) -> ProximalOracle:
    """
    The proximal map of a problem.

    :param problem: reward, cost and shape.
    :raises NotImplementedError: where no rule knows one.
    :raises ValueError: where there is none, from the rule that knows.

    >>> from pyro_tilt import ops, rewards
    >>> linear = rewards.Linear(torch.ones(2))
    >>> find_proximal(ProximalProblem(linear, ops.SquaredEuclidean(), torch.Size([2]))).method
    'closed form'
    """
    rewards, costs = type(problem.reward).__mro__, type(problem.cost).__mro__
    pairs = [(r, c) for r, c in _RULES if r in rewards and c in costs]
    pairs.sort(key=lambda pair: (rewards.index(pair[0]), costs.index(pair[1])))
    for pair in pairs:
        for rule in _RULES[pair]:
            found = rule(problem)
            if found is not None:
                return found
    raise NotImplementedError(
        f"no proximal map is known for {problem.reward!r} under {problem.cost!r}. Give support=, a "
        "finite set of values that points may move to; use cost='squared_euclidean' with a "
        "differentiable reward; or register a rule by register_proximal"
    )
