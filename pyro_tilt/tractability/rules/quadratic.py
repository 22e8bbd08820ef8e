# SPDX-License-Identifier: Apache-2.0
"""Quadratic tilts of a diffusion, by the routes of QuadraticTilt."""

from typing import Any

from pyro_tilt.infer.tilts import QuadraticTilt
from pyro_tilt.infer.tilts.diffusion_tilt import TARGET
from pyro_tilt.rewards import Quadratic
from pyro_tilt.tractability.entry import Entry, applies, declines
from pyro_tilt.tractability.problem import Problem
from pyro_tilt.tractability.registry import register_primitive

__all__: list[str] = []

PAPER = "Moitra, Risteski and Rohatgi 2026, arXiv 2602.16570"
# What each route of QuadraticTilt is, and where it is from.
ROUTES = {
    "LinearRoute": ("nothing is quadratic: a linear tilt", f"{PAPER}, Theorem 3.2"),
    "IsotropicRoute": (
        "a negative multiple of the identity is the law of the data given a noisy value; one run "
        "of the unmodified sampler from it",
        "derived here",
    ),
    "LowRankRoute": (
        "a positive quadratic of low rank is a mixture of linear tilts, here on a lattice",
        f"{PAPER}, Theorem 5.2; the lattice is derived here",
    ),
    "LogConcaveRoute": (
        "the mixing law of linear tilts is log-concave, so that a Markov chain finds it at any "
        "rank",
        "derived here",
    ),
}


@register_primitive("QuadraticTilt", order=30)
def quadratic(problem: Problem) -> Entry:
    """The sampler is asked for its route, or for the reason why there is none."""
    if problem.kind != "diffusion":
        return declines(f"for diffusion models, and the base is of the kind {problem.kind}")
    base, reward = problem.base.given, problem.reward
    if not isinstance(reward, Quadratic):
        return declines(f"for Quadratic rewards, and this one is {type(reward).__name__}")

    def make(**options: Any) -> QuadraticTilt:
        return QuadraticTilt(base, reward, beta=problem.beta, **options)

    try:
        route = type(make(num_samples=1).route).__name__
    except NotImplementedError as error:
        return declines(str(error))
    words, source = ROUTES.get(route, (f"by {route}", ""))
    return applies(
        words,
        make,
        "consistent",
        TARGET,
        acceptance=1.0,
        cost=problem.base.rows_per_draw,
        cost_unit=problem.cost_unit,
        source=source,
    )
