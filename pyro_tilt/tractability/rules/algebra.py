# SPDX-License-Identifier: Apache-2.0
"""Diffusions whose data law is a Gaussian mixture."""

from pyro_tilt.infer.tilts.diffusion_tilt import TARGET
from pyro_tilt.tractability.advice import hardness_of
from pyro_tilt.tractability.entry import Entry, applies, declines
from pyro_tilt.tractability.exact_law import KnownTilt
from pyro_tilt.tractability.problem import Problem
from pyro_tilt.tractability.registry import register_primitive

__all__: list[str] = []


@register_primitive("Mixture algebra", order=45)
def algebra(problem: Problem) -> Entry:
    """A mixture that is known is tilted in closed form, whatever the sign of a quadratic."""
    known = getattr(problem.base.given, "tilted_law", None)
    if problem.kind != "diffusion" or known is None:
        return declines("for diffusions of a known Gaussian mixture, which this base is not")
    try:
        found = known(problem.folded)
    except NotImplementedError as error:
        return declines(str(error))
    hard = bool(hardness_of(problem, None))
    return applies(
        "the data are a mixture known in closed form, and so is its tilt; the diffusion itself is "
        "not run" + (". Hardness is about bases known by their scores alone" if hard else ""),
        lambda **options: KnownTilt(
            found,
            problem.reward,
            problem.beta,
            problem.base.program,
            site="x_0",
            target=TARGET,
            **options,
        ),
        "exact",
        TARGET,
        acceptance=1.0,
        cost=0.0,
        cost_unit=problem.cost_unit,
        source="derived here",
    )
