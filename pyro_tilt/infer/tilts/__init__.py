# SPDX-License-Identifier: Apache-2.0
"""Tilts of diffusion models."""

from pyro_tilt.infer.tilts.linear_draws import linear_tilt_draws
from pyro_tilt.infer.tilts.protocols import DiffusionModel

__all__ = ["DiffusionModel", "linear_tilt_draws"]
