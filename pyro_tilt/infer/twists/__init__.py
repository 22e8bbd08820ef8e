# SPDX-License-Identifier: Apache-2.0
"""Estimates of what is still to come, for samplers over steps."""

from pyro_tilt.infer.twists.exact import ExactTwist
from pyro_tilt.infer.twists.features import carry_features
from pyro_tilt.infer.twists.learn import learn_twists
from pyro_tilt.infer.twists.learned import LearnedTwist, TwistReport, load_twist
from pyro_tilt.infer.twists.linex import linex_loss
from pyro_tilt.infer.twists.networks import SharedNetwork, StepHeads
from pyro_tilt.infer.twists.posterior_mean import PosteriorMeanTwist
from pyro_tilt.infer.twists.rollout import RolloutTwist
from pyro_tilt.infer.twists.step_keys import StepKeys
from pyro_tilt.infer.twists.tempered import Tempered
from pyro_tilt.infer.twists.twist import Twist

__all__ = [
    "ExactTwist",
    "LearnedTwist",
    "PosteriorMeanTwist",
    "RolloutTwist",
    "SharedNetwork",
    "StepHeads",
    "StepKeys",
    "Tempered",
    "Twist",
    "TwistReport",
    "carry_features",
    "learn_twists",
    "linex_loss",
    "load_twist",
]
