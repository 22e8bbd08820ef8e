# SPDX-License-Identifier: Apache-2.0
"""The tractability landscape: which ways to align apply, what they are worth, which to take."""

from pyro_tilt.tractability import rules
from pyro_tilt.tractability.base import Base
from pyro_tilt.tractability.entry import Entry, applies, declines
from pyro_tilt.tractability.exact_law import KnownTilt
from pyro_tilt.tractability.hardness import Hardness
from pyro_tilt.tractability.pilot import Pilot
from pyro_tilt.tractability.planner import plan
from pyro_tilt.tractability.problem import Problem
from pyro_tilt.tractability.registry import Primitive, primitives, register_primitive
from pyro_tilt.tractability.result import Plan

# Importing the rules registers them.
_RULES = rules.RULES

__all__ = [
    "Base",
    "Entry",
    "Hardness",
    "KnownTilt",
    "Pilot",
    "Plan",
    "Primitive",
    "Problem",
    "applies",
    "declines",
    "plan",
    "primitives",
    "register_primitive",
]
