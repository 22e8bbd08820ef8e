# SPDX-License-Identifier: Apache-2.0
"""Diffusion models: noise schedules, predictions, and their samplers as Pyro programs."""

from pyro_tilt.diffusion.diffusers_model import from_diffusers
from pyro_tilt.diffusion.kernels import sampler_step
from pyro_tilt.diffusion.law import DiffusionLaw
from pyro_tilt.diffusion.levels import Level
from pyro_tilt.diffusion.mixture import MixtureDiffusion
from pyro_tilt.diffusion.model import Diffusion
from pyro_tilt.diffusion.network import NetworkDiffusion
from pyro_tilt.diffusion.predictions import from_x0, shift_prediction, shifted_state, to_x0
from pyro_tilt.diffusion.schedules import VE, VP, RectifiedFlow, Schedule, TableSchedule
from pyro_tilt.diffusion.tilted import TiltedDiffusion

__all__ = [
    "VE",
    "VP",
    "Diffusion",
    "DiffusionLaw",
    "Level",
    "MixtureDiffusion",
    "NetworkDiffusion",
    "RectifiedFlow",
    "Schedule",
    "TableSchedule",
    "TiltedDiffusion",
    "from_diffusers",
    "from_x0",
    "sampler_step",
    "shift_prediction",
    "shifted_state",
    "to_x0",
]
