# SPDX-License-Identifier: Apache-2.0
"""Exact tilts by base family; importing the package registers them."""

from pyro_tilt.distributions.exact import (
    composite,
    discrete,
    gamma,
    heavy_tails,
    location,
    mixtures,
    normal,
    quadratic,
)

__all__ = [
    "composite",
    "discrete",
    "gamma",
    "heavy_tails",
    "location",
    "mixtures",
    "normal",
    "quadratic",
]
