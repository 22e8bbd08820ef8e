# SPDX-License-Identifier: Apache-2.0
"""Sequential Monte Carlo along temperatures."""

from pyro_tilt.infer.tempered.schedule import Schedule, Stage, Tuning
from pyro_tilt.infer.tempered.tempered import TemperedSMC

__all__ = ["Schedule", "Stage", "TemperedSMC", "Tuning"]
