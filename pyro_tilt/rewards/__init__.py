# SPDX-License-Identifier: Apache-2.0
"""Rewards, and the structure that tractability depends on."""

from pyro_tilt.rewards.base import Reward
from pyro_tilt.rewards.black_box import BlackBox, as_reward
from pyro_tilt.rewards.bounded import Bounded
from pyro_tilt.rewards.calibrated import Calibrated
from pyro_tilt.rewards.checks import evaluate, log_tilt
from pyro_tilt.rewards.combine import Scaled, Sum
from pyro_tilt.rewards.concave import Concave
from pyro_tilt.rewards.constraint import Constraint
from pyro_tilt.rewards.linear import Linear
from pyro_tilt.rewards.linear_in import LinearIn
from pyro_tilt.rewards.low_dim import LowDim
from pyro_tilt.rewards.max_affine import MaxAffine
from pyro_tilt.rewards.quadratic import Quadratic

__all__ = [
    "BlackBox",
    "Bounded",
    "Calibrated",
    "Concave",
    "Constraint",
    "Linear",
    "LinearIn",
    "LowDim",
    "MaxAffine",
    "Quadratic",
    "Reward",
    "Scaled",
    "Sum",
    "as_reward",
    "evaluate",
    "log_tilt",
]
