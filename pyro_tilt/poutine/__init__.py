# SPDX-License-Identifier: Apache-2.0
"""Effects and handlers: the joint tilt of a program, and its particles."""

from pyro_tilt.poutine.align import AlignedProgram, align
from pyro_tilt.poutine.capture_messenger import CaptureMessenger
from pyro_tilt.poutine.checkpoint import checkpoint
from pyro_tilt.poutine.joint_tilt_messenger import JointTiltMessenger, joint_tilt
from pyro_tilt.poutine.particle_plate import ParticlePlate
from pyro_tilt.poutine.scan import scan
from pyro_tilt.poutine.tilt_factor import TiltTerm, reward_factor
from pyro_tilt.poutine.tilt_reparam import TiltReparam
from pyro_tilt.poutine.twist import twist
from pyro_tilt.poutine.weight_messenger import WeightMessenger

__all__ = [
    "AlignedProgram",
    "CaptureMessenger",
    "JointTiltMessenger",
    "ParticlePlate",
    "TiltReparam",
    "TiltTerm",
    "WeightMessenger",
    "align",
    "checkpoint",
    "joint_tilt",
    "reward_factor",
    "scan",
    "twist",
]
