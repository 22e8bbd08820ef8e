# SPDX-License-Identifier: Apache-2.0
"""Distributions whose tilt is known."""

from pyro_tilt.tractability.entry import Entry, applies, declines
from pyro_tilt.tractability.exact_law import KnownTilt
from pyro_tilt.tractability.problem import Problem
from pyro_tilt.tractability.registry import register_primitive

__all__: list[str] = []


@register_primitive("Tilted", order=10)
def tilted(problem: Problem) -> Entry:
    """The registry of exact tilts knows the law."""
    if problem.kind != "distribution":
        return declines(f"for distributions, and the base is of the kind {problem.kind}")
    law = problem.tilted
    known = law.tractability
    found = law.exact_tilt()
    if found is None or found.law is None:
        return declines(known.reason)
    return applies(
        known.reason,
        lambda **options: KnownTilt(
            found, problem.reward, problem.beta, problem.base.program, **options
        ),
        "bounded" if found.method == "quadrature" else "exact",
        problem.target,
        acceptance=1.0,
        cost=1.0,
        cost_unit="draws",
        source="derived here for each family",
    )
