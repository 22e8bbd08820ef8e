# SPDX-License-Identifier: Apache-2.0
"""What a plan says beyond its table: hardness results, and the other notion of closeness."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyro_tilt.rewards import Linear, MaxAffine, Quadratic
from pyro_tilt.tractability.entry import Entry
from pyro_tilt.tractability.hardness import (
    AUTOREGRESSIVE_LINEAR,
    HIGH_RANK,
    HIGH_RANK_POSITIVE,
    NON_CONCAVE_TRANSPORT,
    RANK_ONE_NEGATIVE,
    Hardness,
    negative_directions,
    positive_rank,
)

if TYPE_CHECKING:
    from pyro_tilt.tractability.problem import Problem

__all__ = ["hardness_of", "other_closeness"]


def hardness_of(problem: Problem, choice: Entry | None) -> tuple[Hardness, ...]:
    """
    The hardness results that a problem falls under.

    :param problem: the problem.
    :param choice: what was picked; a known tilt of a distribution is no hard case.
    """
    if problem.closeness == "wasserstein":
        unproven = choice is None or choice.law == "search"
        return (NON_CONCAVE_TRANSPORT,) if unproven and not problem.folded.concave else ()
    if problem.kind == "distribution" and choice is not None and choice.name == "Tilted":
        return ()
    found = []
    if negative_directions(problem.folded):
        found.append(RANK_ONE_NEGATIVE)
    if positive_rank(problem.folded) > HIGH_RANK:
        found.append(HIGH_RANK_POSITIVE)
    if problem.kind == "autoregressive":
        found.append(AUTOREGRESSIVE_LINEAR)
    return tuple(found)


def other_closeness(problem: Problem, choice: Entry | None) -> str:
    """
    A sentence on what the other notion of closeness would make of the reward, or nothing.

    :param problem: the problem.
    :param choice: what was picked.
    """
    reward = problem.folded
    if problem.kind == "autoregressive":
        return ""
    if problem.closeness == "kl":
        if not negative_directions(reward):
            return ""
        how = (
            "moves every draw by one line of algebra"
            if isinstance(reward, Quadratic)
            else "has a certified gap from gradients"
        )
        return f"Under closeness='wasserstein' the same reward {how} (derived here)."
    if choice is not None and choice.law in ("exact", "bounded"):
        return ""
    if reward.convex and not isinstance(reward, Linear | MaxAffine):
        return (
            "Under closeness='kl' a convex reward of few features is a mixture of linear tilts "
            "with rejection (ConvexTilt)."
        )
    return ""
