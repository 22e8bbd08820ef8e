# SPDX-License-Identifier: Apache-2.0
"""Exact rejection under a bound on the reward."""

import math
from typing import Any

from pyro_tilt.infer import Rejection
from pyro_tilt.tractability.entry import Entry, applies, declines
from pyro_tilt.tractability.problem import Problem
from pyro_tilt.tractability.registry import register_primitive

__all__: list[str] = []


@register_primitive("Rejection", order=50)
def rejection(problem: Problem) -> Entry:
    """A bound on the weight is enough; what it costs the pilot says."""
    bound = problem.proposal.log_bound
    if not math.isfinite(bound):
        names = ", ".join(problem.proposal.unbounded) or "the reward"
        return declines(
            f"needs an upper bound on the weight, and none is known of {names}: state it by "
            "rewards.Bounded(fn, low, high)"
        )

    def make(**options: Any) -> Rejection:
        return Rejection(problem.aligned(), **options)

    reason = f"the log weight is at most {bound:.4g}, so that base draws can be thinned"
    pilot, numbers = problem.pilot, {}
    if pilot is None:
        reason += "; no pilot, so the acceptance is not predicted"
    else:
        rate, error = pilot.acceptance(bound)
        numbers = {"acceptance": rate, "acceptance_error": error}
        numbers["cost"] = problem.cost_of(1.0 / rate if rate > 0.0 else math.inf)
        reason += f"; acceptance from a pilot of {len(pilot)} base draws"
    return applies(reason, make, "exact", problem.target, cost_unit=problem.cost_unit, **numbers)
