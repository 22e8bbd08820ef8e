# SPDX-License-Identifier: Apache-2.0
"""Tilts of diffusion models."""

from pyro_tilt.infer.tilts.convex import ConvexTilt
from pyro_tilt.infer.tilts.convex_plan import ConvexPlan
from pyro_tilt.infer.tilts.isotropic import isotropic_draws
from pyro_tilt.infer.tilts.linear import LinearTilt
from pyro_tilt.infer.tilts.linear_draws import linear_tilt_draws
from pyro_tilt.infer.tilts.low_rank_lattice import Lattice, lattice_spacing
from pyro_tilt.infer.tilts.normalizers import (
    Normalizer,
    line_normalizer,
    telescoping_normalizer,
    telescoping_size,
    thermodynamic_normalizer,
)
from pyro_tilt.infer.tilts.normalizers_shared import SharedNormalizers, shared_normalizers
from pyro_tilt.infer.tilts.protocols import DiffusionModel
from pyro_tilt.infer.tilts.quadratic import QuadraticTilt

__all__ = [
    "ConvexPlan",
    "ConvexTilt",
    "DiffusionModel",
    "Lattice",
    "LinearTilt",
    "Normalizer",
    "QuadraticTilt",
    "SharedNormalizers",
    "isotropic_draws",
    "lattice_spacing",
    "line_normalizer",
    "linear_tilt_draws",
    "shared_normalizers",
    "telescoping_normalizer",
    "telescoping_size",
    "thermodynamic_normalizer",
]
