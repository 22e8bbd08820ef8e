# SPDX-License-Identifier: Apache-2.0
"""Diffusion models: noise schedules, predictions, and their samplers as Pyro programs."""

from pyro_tilt.diffusion.kernels import sampler_step
from pyro_tilt.diffusion.law import DiffusionLaw
from pyro_tilt.diffusion.levels import Level
from pyro_tilt.diffusion.mixture import MixtureDiffusion
from pyro_tilt.diffusion.model import Diffusion
from pyro_tilt.diffusion.schedules import VE, VP, RectifiedFlow, Schedule, TableSchedule

__all__ = [
    "VE",
    "VP",
    "Diffusion",
    "DiffusionLaw",
    "Level",
    "MixtureDiffusion",
    "RectifiedFlow",
    "Schedule",
    "TableSchedule",
    "sampler_step",
]
