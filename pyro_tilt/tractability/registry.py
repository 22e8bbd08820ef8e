# SPDX-License-Identifier: Apache-2.0
"""The primitives that a plan asks, in their order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pyro_tilt.tractability.entry import Entry

if TYPE_CHECKING:
    from pyro_tilt.tractability.problem import Problem

__all__ = ["CLOSENESS", "Primitive", "primitives", "register_primitive"]

CLOSENESS = ("kl", "wasserstein")
Rule = Callable[["Problem"], Entry]

_PRIMITIVES: dict[tuple[str, str], Primitive] = {}


@dataclass(frozen=True)
class Primitive:
    """
    A way to align, and the rule that says when it applies.

    :ivar name: its name in plans.
    :ivar closeness: ``"kl"`` or ``"wasserstein"``.
    :ivar order: place in the plan; of those that apply and are affordable the first is picked.
    :ivar rule: maps a :class:`Problem` to an :class:`Entry`.
    """

    name: str
    closeness: str
    order: float
    rule: Rule

    def ask(self, problem: Problem) -> Entry:
        """
        What the rule says of a problem, under the name of the primitive.

        :param problem: the problem.
        """
        return replace(self.rule(problem), name=self.name)


def register_primitive(name: str, *, closeness: str = "kl", order: float) -> Callable[[Rule], Rule]:
    """
    Decorate ``rule(problem) -> Entry`` as a primitive of the plans.

    The rule answers by :func:`applies` or :func:`declines`. A primitive of the same name and
    closeness replaces the one before. Those of this package have orders from 10 to 90.

    :param name: the name of the primitive.
    :param closeness: ``"kl"`` or ``"wasserstein"``.
    :param order: place in the plan; lower ones are preferred. A rule that reads
        ``problem.pilot`` gets one only where nothing before it was picked, or one was asked for.
    :raises ValueError: for another closeness.

    >>> from pyro_tilt.tractability import declines
    >>> @register_primitive("Crystal ball", order=99)
    ... def crystal_ball(problem):
    ...     return declines(f"it is cloudy for a {problem.kind}")
    >>> from pyro_tilt import plan
    >>> import pyro.distributions as dist
    >>> plan(dist.Normal(0.0, 1.0), lambda x: -x.abs()).entry("Crystal ball").reason
    'it is cloudy for a distribution'
    >>> del _PRIMITIVES["kl", "Crystal ball"]
    """
    if closeness not in CLOSENESS:
        raise ValueError(f"closeness must be one of {', '.join(CLOSENESS)}; got {closeness!r}")

    def decorator(rule: Rule) -> Rule:
        _PRIMITIVES[closeness, name] = Primitive(name, closeness, float(order), rule)
        return rule

    return decorator


def primitives(closeness: str) -> list[Primitive]:
    """
    The primitives of one closeness, in the order in which they are preferred.

    :param closeness: ``"kl"`` or ``"wasserstein"``.

    >>> [primitive.name for primitive in primitives("kl")][:2]
    ['Tilted', 'LinearTilt']
    """
    found = [p for (kind, _), p in _PRIMITIVES.items() if kind == closeness]
    return sorted(found, key=lambda primitive: primitive.order)
