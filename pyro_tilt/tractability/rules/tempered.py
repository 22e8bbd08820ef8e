# SPDX-License-Identifier: Apache-2.0
"""Tempering of programs without steps."""

from typing import Any

from pyro_tilt.infer import TemperedSMC
from pyro_tilt.tractability.entry import Entry, applies, declines
from pyro_tilt.tractability.problem import Problem
from pyro_tilt.tractability.registry import register_primitive

__all__: list[str] = []


@register_primitive("TemperedSMC", order=80)
def tempered(problem: Problem) -> Entry:
    """Continuous sites with densities can be moved through temperatures."""
    if problem.kind == "diffusion":
        return declines("its moves would run the whole sampler anew; SMC goes level by level")
    sites = problem.base.sites
    options: dict[str, Any] = {}
    numbers: dict[str, Any] = {}
    reason = "moves the draws through a path of temperatures by random walks"
    if sites.discrete:
        options["kernel"] = "independent"
        reason = (
            f"sites {', '.join(sites.discrete[:4])} are discrete, which only draws afresh from the "
            "base can move (kernel 'independent'): no better than weighing them"
        )
        if problem.pilot is not None:
            numbers["acceptance"] = problem.pilot.effective_share
            numbers["acceptance_error"] = problem.pilot.effective_share_error
            numbers["trusted"] = not problem.pilot.doubt
    elif sites.unscored:
        return declines(f"the law of site {sites.unscored[0]!r} has no density to move along")

    def make(**more: Any) -> TemperedSMC:
        return TemperedSMC(problem.aligned(), **{**options, **more})

    return applies(
        reason if numbers else f"{reason}. No rate is predicted",
        make,
        "consistent",
        problem.target,
        cost_unit=problem.cost_unit,
        **numbers,
    )
