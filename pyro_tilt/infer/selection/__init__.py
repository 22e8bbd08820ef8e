# SPDX-License-Identifier: Apache-2.0
"""Selection of the best, or of a random good one, of several runs of every step."""

from pyro_tilt.infer.selection.block_best_of_n import BlockBestOfN
from pyro_tilt.infer.selection.soft_best_of_m import SoftBestOfM

__all__ = ["BlockBestOfN", "SoftBestOfM"]
