# SPDX-License-Identifier: Apache-2.0
"""Linear tilts of a diffusion."""

from typing import Any

from pyro_tilt.infer.tilts import LinearTilt
from pyro_tilt.infer.tilts.diffusion_tilt import TARGET
from pyro_tilt.rewards import Linear
from pyro_tilt.tractability.entry import Entry, applies, declines
from pyro_tilt.tractability.problem import Problem
from pyro_tilt.tractability.registry import register_primitive

__all__: list[str] = []

SOURCE = "Moitra, Risteski and Rohatgi 2026, arXiv 2602.16570, Theorem 3.2"


@register_primitive("LinearTilt", order=20)
def linear(problem: Problem) -> Entry:
    """A linear reward shifts the state at which a diffusion is asked."""
    if problem.kind != "diffusion":
        return declines(f"for diffusion models, and the base is of the kind {problem.kind}")
    reward = problem.reward
    if not isinstance(reward, Linear):
        return declines(f"for Linear rewards, and this one is {type(reward).__name__}")
    base = problem.base.given

    def make(**options: Any) -> LinearTilt:
        return LinearTilt(base, reward, beta=problem.beta, **options)

    make(num_samples=1)
    reason = "a linear tilt shifts the state at every noise level; one run per draw"
    z = base.schedule.levels[0].ratio * abs(problem.beta) * float(reward.theta.norm())
    if not base.exact and z > 1.0:
        reason += (
            f". At the first level the network would be shifted by z = {z:.3g} standard deviations "
            "of the noise, so the run starts lower, from reweighted base draws that are not "
            "independent"
        )
    return applies(
        reason,
        make,
        "consistent",
        TARGET,
        acceptance=1.0,
        cost=problem.base.rows_per_draw,
        cost_unit=problem.cost_unit,
        source=SOURCE,
    )
