# SPDX-License-Identifier: Apache-2.0
"""Rejection under a learned baseline."""

import math
from dataclasses import replace
from typing import Any

from pyro_tilt.infer import LCB
from pyro_tilt.ops import chernoff_baseline
from pyro_tilt.tractability.entry import Entry, applies
from pyro_tilt.tractability.problem import Problem
from pyro_tilt.tractability.registry import register_primitive

__all__: list[str] = []

EPSILON = 0.05
SOURCE = "after Madhow, Liang, Shroff, Liang and Wang 2026, arXiv 2602.07738"


@register_primitive("LCB", order=90)
def lcb(problem: Problem) -> Entry:
    """Independent draws from any reward, at the price of a clipped mass."""

    def make(**options: Any) -> LCB:
        return LCB(problem.aligned(), **options)

    bounded = math.isfinite(problem.proposal.log_bound)
    reason = (
        "independent draws under a learned baseline, which clips a mass of the target of about "
        f"{EPSILON:g}" + ("" if bounded else "; without a bound on the weight it is estimated only")
    )
    numbers: dict[str, Any] = {}
    pilot = problem.pilot
    if pilot is not None and bool((pilot.log_weights > -math.inf).any()):
        # The sampler takes no baseline above the largest weight that it has seen either.
        ceiling = min(pilot.log_bound, float(pilot.log_weights.max()))
        found = chernoff_baseline(pilot.log_weights, EPSILON, upper_bound=ceiling)
        if not found.trusted:
            found = replace(found, value=max(found.log_z, ceiling), clipped_mass=0.0)
        rate = 1.0 / found.expected_proposals
        numbers = {"acceptance": rate, "cost": problem.cost_of(1.0 / rate)}
        reason += f"; acceptance from a pilot of {len(pilot)} base draws"
        if not found.trusted:
            numbers["trusted"] = False
            reason += ", too few to trust"
    return applies(
        reason,
        make,
        "bounded" if bounded else "consistent",
        problem.target,
        cost_unit=problem.cost_unit,
        source=SOURCE,
        **numbers,
    )
