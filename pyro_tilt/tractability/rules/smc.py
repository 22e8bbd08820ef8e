# SPDX-License-Identifier: Apache-2.0
"""Sequential Monte Carlo over the steps of a base."""

from typing import Any

from pyro_tilt.infer import SMC
from pyro_tilt.infer.twists import PosteriorMeanTwist
from pyro_tilt.tractability.entry import Entry, applies, declines
from pyro_tilt.tractability.problem import Problem
from pyro_tilt.tractability.registry import register_primitive

__all__: list[str] = []


@register_primitive("SMC", order=70)
def smc(problem: Problem) -> Entry:
    """Resamples along the steps; of a diffusion with the reward of the denoised estimate."""
    program = problem.base.steps_program
    if program is None:
        return declines("needs a program with steps (scan or checkpoint), and this base has none")
    twist, rows = None, problem.base.rows_per_draw
    numbers: dict[str, Any] = {}
    if problem.kind == "diffusion" and problem.of is None:
        twist, rows = _denoised(problem), 2.0 * rows
        reason = "resamples along the levels, steered by the reward of the denoised estimate"
    else:
        reason = "resamples along the steps"
        if not problem.base.sites.has_twists and not problem.base.sites.observed:
            reason += (
                ", but no step states a twist, so that it learns of the reward at the last one "
                "alone and is no better than weighing draws; give twist="
            )
            if problem.pilot is not None:
                numbers["acceptance"] = problem.pilot.effective_share
                numbers["acceptance_error"] = problem.pilot.effective_share_error
                numbers["trusted"] = not problem.pilot.doubt

    def make(**options: Any) -> SMC:
        chosen = {"twist": twist, **options} if twist is not None else options
        return SMC(problem.aligned(program), **chosen)

    return applies(
        reason if numbers else f"{reason}. No rate is predicted",
        make,
        "consistent",
        problem.target,
        cost=rows,
        cost_unit=problem.cost_unit,
        **numbers,
    )


def _denoised(problem: Problem) -> PosteriorMeanTwist:
    base = problem.base.given
    levels = base.schedule.levels

    def estimate(x: Any, k: int) -> Any:
        return base.denoise(x, levels[len(levels) - 1 - k])

    return PosteriorMeanTwist(estimate, problem.reward, problem.beta)
