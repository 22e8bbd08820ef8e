# SPDX-License-Identifier: Apache-2.0
"""Samplers and their results."""

from pyro_tilt.infer.base_draws import BaseDraws
from pyro_tilt.infer.budget import beta_for_kl
from pyro_tilt.infer.certificate import Certificate, weakest
from pyro_tilt.infer.cost import Cost, CountRows, counted
from pyro_tilt.infer.merge import merge
from pyro_tilt.infer.storage import load, save
from pyro_tilt.infer.weighted_samples import WeightedSamples

__all__ = [
    "BaseDraws",
    "Certificate",
    "Cost",
    "CountRows",
    "WeightedSamples",
    "beta_for_kl",
    "counted",
    "load",
    "merge",
    "save",
    "weakest",
]
