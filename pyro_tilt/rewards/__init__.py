# SPDX-License-Identifier: Apache-2.0
"""Rewards, and the structure that tractability depends on."""

from pyro_tilt.rewards.base import Reward
from pyro_tilt.rewards.black_box import BlackBox, as_reward
from pyro_tilt.rewards.checks import evaluate, log_tilt
from pyro_tilt.rewards.combine import Scaled, Sum
from pyro_tilt.rewards.linear import Linear
from pyro_tilt.rewards.quadratic import Quadratic

__all__ = [
    "BlackBox",
    "Linear",
    "Quadratic",
    "Reward",
    "Scaled",
    "Sum",
    "as_reward",
    "evaluate",
    "log_tilt",
]
