# SPDX-License-Identifier: Apache-2.0
"""Transport under Wasserstein closeness: one primitive for every kind of proximal map."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pyro_tilt.infer import ProximalTransport, SamplerWarning
from pyro_tilt.rewards import LowDim
from pyro_tilt.tractability.entry import Entry, applies, declines
from pyro_tilt.tractability.problem import Problem
from pyro_tilt.tractability.registry import register_primitive

__all__: list[str] = []

TARGET = "transport optimum"
PAPER = "Moitra, Risteski and Rohatgi 2026, arXiv 2605.11361, claims tractability"
# An iterative map is timed on so many points, enough for its steps and cheap at any dimension.
MOST_PILOTED = 32


@dataclass(frozen=True)
class Family:
    """
    A kind of proximal map.

    :ivar name: of the primitive.
    :ivar order: in the plan.
    :ivar applies: why, in words.
    :ivar declines: why not, in words.
    :ivar source: where it is from.
    """

    name: str
    order: float
    applies: str
    declines: str
    source: str


CLOSED, SUPPORT, CONCAVE, FEATURES, SMOOTH, LOCAL = FAMILIES = (
    Family(
        "ProximalTransport (closed form)",
        10,
        "the proximal map is known in closed form",
        "for Linear, Quadratic, MaxAffine, TokenScores and MaxOf rewards under the costs that "
        "fit them, and maps that were registered",
        "derived here",
    ),
    Family(
        "ProximalTransport (finite support)",
        20,
        "the best of finitely many values is found by trying all",
        "needs support=, the values that draws may move to",
        "derived here",
    ),
    Family(
        "ProximalTransport (concave)",
        30,
        "the problem of each draw is strongly concave, so that a gradient bounds its gap",
        "needs a reward that is known to be concave, and a squared norm as cost",
        f"{PAPER}; the gap is derived here",
    ),
    Family(
        "ProximalTransport (few features)",
        40,
        "branch and bound over the features, with a certified tolerance",
        "needs a LowDim reward with lipschitz= that is not concave",
        f"{PAPER}; the search is derived here",
    ),
    Family(
        "ProximalTransport (one-sided smooth)",
        50,
        "the price exceeds the stated curvature, so that a gradient bounds the gap",
        "needs curvature=, a bound on the Hessian of the reward, that the price exceeds",
        "derived here",
    ),
    Family(
        "ProximalTransport (local ascent)",
        90,
        "moves draws to local maxima; nothing says how far those are from the best",
        "not needed where a certified map is known, and needs a gradient and a squared norm as "
        "cost",
        "",
    ),
)


def _family(problem: Problem) -> Family:
    """The family of the map that a run would use; NotImplementedError where there is none."""
    if problem.support is not None:
        return SUPPORT
    oracle = problem.oracle
    if oracle.law == "exact" or oracle.method.startswith("best of the pieces"):
        return CLOSED
    if oracle.method == "branch and bound":
        return FEATURES
    if oracle.law == "search":
        return LOCAL
    if problem.folded.concave:
        return CONCAVE
    beaten = problem.penalty is not None and problem.penalty <= _curvature(problem)
    return LOCAL if beaten else SMOOTH


def _curvature(problem: Problem) -> float:
    return -math.inf if problem.curvature is None else problem.beta * problem.curvature


def _law(problem: Problem) -> str:
    """The word of the certificate; only a price on a closed form leaves no gap at all."""
    if problem.support is not None:
        return "exact" if problem.radius is None else "bounded"
    if _family(problem) is LOCAL:
        return "bounded" if math.isfinite(problem.folded.upper_bound) else "search"
    law = problem.oracle.law
    return "bounded" if law == "exact" and problem.radius is not None else law


def _register(family: Family) -> None:
    @register_primitive(family.name, closeness="wasserstein", order=family.order)
    def rule(problem: Problem) -> Entry:
        if problem.base.sites.observed:
            return declines(
                "transport moves draws of the base, which observations and factors "
                f"({', '.join(problem.base.sites.observed[:4])}) would weigh; draw first"
            )
        try:
            used = _family(problem)
        except NotImplementedError as error:
            return declines(f"{family.declines}. {error}" if family is LOCAL else family.declines)
        if used is not family:
            return declines(_why_not(problem, family, used))
        _check_growth(problem)
        return _entry(problem, family)


def _why_not(problem: Problem, family: Family, used: Family) -> str:
    if family is SMOOTH and problem.curvature is not None and used is LOCAL:
        return (
            f"the price {problem.penalty:g} does not exceed the curvature "
            f"{_curvature(problem):g} (beta folded in)"
        )
    if family.order > used.order and family is not LOCAL and _would_fit(problem, family):
        return f"not needed: {used.name} applies"
    return family.declines


def _would_fit(problem: Problem, family: Family) -> bool:
    reward = problem.folded
    if family is FEATURES:
        return isinstance(reward, LowDim) and reward.lipschitz is not None
    return family is CONCAVE and bool(reward.concave)


def _check_growth(problem: Problem) -> None:
    growth = 0.0 if problem.support is not None else problem.oracle.growth
    if problem.penalty is not None and problem.penalty <= growth and growth > 0.0:
        raise ValueError(
            f"plan: the price {problem.penalty:g} of transport is at most {growth:g}, how fast the "
            "reward (beta folded in) grows against the cost: draws would run to infinity. Raise "
            "penalty=, lower beta, or bound the cost by radius="
        )


def _entry(problem: Problem, family: Family) -> Entry:
    make = _maker(problem)
    reason, numbers = family.applies, {}
    if family in (CLOSED, SUPPORT):
        if problem.support is None and problem.oracle.method != "closed form":
            reason += f" ({problem.oracle.method})"
        numbers = {"cost": 1.0, "cost_unit": problem.cost_unit}
        if problem.kind == "diffusion":
            numbers["cost"] = problem.base.rows_per_draw
    else:
        reason, numbers = _timed(problem, make, reason)
    return applies(reason, make, _law(problem), TARGET, source=family.source, **numbers)


def _maker(problem: Problem) -> Callable[..., ProximalTransport]:
    where: dict[str, Any] = (
        {"penalty": problem.penalty} if problem.radius is None else {"radius": problem.radius}
    )
    base = problem.base.given if problem.kind == "distribution" else problem.base.program

    def make(**options: Any) -> ProximalTransport:
        return ProximalTransport(
            base,
            problem.reward,
            problem.beta,
            cost=problem.cost,
            of=problem.of,
            curvature=problem.curvature,
            support=problem.support,
            **where,
            **options,
        )

    return make


def _timed(
    problem: Problem, make: Callable[..., ProximalTransport], reason: str
) -> tuple[str, dict[str, Any]]:
    """Runs a map that iterates on a few draws of the base, for its cost and its gap."""
    size = MOST_PILOTED if problem.num_pilot is None else min(MOST_PILOTED, problem.num_pilot)
    if size == 0 or (problem.num_pilot is None and not problem.needs_pilot):
        return f"{reason}; no pilot, so its cost is not predicted", {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SamplerWarning)
        sampler = make(num_samples=size, seed=problem.seed, progress=False)
        result = sampler.run(*problem.base.args, **problem.base.kwargs)
    calls = result.cost.reward_calls
    gap = result.certificate.gap
    shown = "none" if gap is None or not math.isfinite(gap) else f"{gap:.1e}"
    reason += f"; on a pilot of {size} draws the certified gap is {shown}"
    return reason, {
        "cost": None if calls is None else calls / size,
        "cost_unit": "reward calls",
    }


for _member in FAMILIES:
    _register(_member)
