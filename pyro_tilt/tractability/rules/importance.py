# SPDX-License-Identifier: Apache-2.0
"""Importance sampling from the base."""

import math
from typing import Any

from pyro_tilt.infer import ImportanceSampler
from pyro_tilt.tractability.entry import Entry, applies
from pyro_tilt.tractability.problem import Problem
from pyro_tilt.tractability.registry import register_primitive

__all__: list[str] = []


@register_primitive("ImportanceSampler", order=60)
def importance(problem: Problem) -> Entry:
    """It always runs; the pilot says how many of its draws count."""

    def make(**options: Any) -> ImportanceSampler:
        return ImportanceSampler(problem.aligned(), **options)

    reason = "weights base draws; applies to any reward"
    numbers: dict[str, Any] = {}
    pilot = problem.pilot
    if pilot is None:
        reason += "; no pilot, so the share of effective draws is not predicted"
    else:
        share = pilot.effective_share
        numbers = {"acceptance": share, "acceptance_error": pilot.effective_share_error}
        numbers["cost"] = problem.cost_of(1.0 / share if share > 0.0 else math.inf)
        reason += f"; share of effective draws from a pilot of {len(pilot)} base draws"
        if pilot.doubt:
            numbers["trusted"] = False
            reason += f", {pilot.doubt}"
    return applies(
        reason, make, "consistent", problem.target, cost_unit=problem.cost_unit, **numbers
    )
