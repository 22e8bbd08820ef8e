# SPDX-License-Identifier: Apache-2.0
"""A diffusion of real handwritten digits, aligned to two rewards: ``make demo``."""

from pyro_tilt.examples.digits.classifier import load_classifier
from pyro_tilt.examples.digits.data import load_digits, split_indices
from pyro_tilt.examples.digits.model import load_denoiser
from pyro_tilt.examples.digits.program import DiffusionSampler, digits_program
from pyro_tilt.examples.digits.rewards import ink_reward, reads_as

__all__ = [
    "DiffusionSampler",
    "digits_program",
    "ink_reward",
    "load_classifier",
    "load_denoiser",
    "load_digits",
    "reads_as",
    "split_indices",
]
