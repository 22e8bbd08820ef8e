# SPDX-License-Identifier: Apache-2.0
"""The shared test case for programs that run once per draw. This module needs pytest."""

from __future__ import annotations

from typing import Any, ClassVar

from pyro_tilt.testing.sampler_case import SamplerTestCase

__all__ = ["LoopedSamplerTestCase"]


class LoopedSamplerTestCase(SamplerTestCase):
    """:class:`SamplerTestCase` with ``vectorized=False``.

    The parts that take many thousands of program runs are left out; the evidence, the limits and
    the bad inputs stay.
    """

    options: ClassVar[dict[str, Any]] = {"vectorized": False}


for _part in (
    "test_law_over_states",
    "test_weights_give_the_target",
    "test_continuous_moments",
    "test_plates",
    "test_evidence_error_is_calibrated",
    "test_raising_beta_raises_the_reward",
    "test_nested_align_adds_up",
    "test_minus_inf_everywhere_raises",
):
    assert callable(getattr(SamplerTestCase, _part))
    setattr(LoopedSamplerTestCase, _part, None)
