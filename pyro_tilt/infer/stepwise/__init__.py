# SPDX-License-Identifier: Apache-2.0
"""Rejection with Chernoff baselines, step by step."""

from pyro_tilt.infer.stepwise.learn import learn_baselines
from pyro_tilt.infer.stepwise.learned import BaselineReport, LearnedBaselines, load_baselines
from pyro_tilt.infer.stepwise.stepwise_lcb import StepwiseLCB

__all__ = [
    "BaselineReport",
    "LearnedBaselines",
    "StepwiseLCB",
    "learn_baselines",
    "load_baselines",
]
