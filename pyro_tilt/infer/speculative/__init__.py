# SPDX-License-Identifier: Apache-2.0
"""Samplers that let a small model propose, or drop what begins badly."""

from pyro_tilt.infer.speculative.gsi import GSI
from pyro_tilt.infer.speculative.reward_guided import RewardGuided
from pyro_tilt.infer.speculative.reward_shifted import RewardShifted
from pyro_tilt.infer.speculative.speculative_rejection import SpeculativeRejection

__all__ = ["GSI", "RewardGuided", "RewardShifted", "SpeculativeRejection"]
