# SPDX-License-Identifier: Apache-2.0
"""Search by importance sampling on the inputs of a model's last layer."""

from pyro_tilt.infer.aisp.aisp import AISP
from pyro_tilt.infer.aisp.gaussian import PrelogitGaussian

__all__ = ["AISP", "PrelogitGaussian"]
