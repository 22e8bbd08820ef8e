# SPDX-License-Identifier: Apache-2.0
"""Rejection with Chernoff baselines, step by step."""

from pyro_tilt.infer.stepwise.stepwise_lcb import StepwiseLCB

__all__ = ["StepwiseLCB"]
