# SPDX-License-Identifier: Apache-2.0
"""Effects and handlers: the joint tilt of a program, and its particles."""

from pyro_tilt.poutine.align import AlignedProgram, align
from pyro_tilt.poutine.capture_messenger import CaptureMessenger
from pyro_tilt.poutine.particle_plate import ParticlePlate
from pyro_tilt.poutine.tilt_factor import TiltTerm, reward_factor

__all__ = [
    "AlignedProgram",
    "CaptureMessenger",
    "ParticlePlate",
    "TiltTerm",
    "align",
    "reward_factor",
]
