# SPDX-License-Identifier: Apache-2.0
"""What a sampler raises or warns when it cannot vouch for its draws.

The errors are :class:`ValueError` because they speak of the problem posed, and each carries the
best partial result, so that an hour of proposals is not lost with the traceback.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyro_tilt.infer.weighted_samples import WeightedSamples

__all__ = ["AcceptanceTooLow", "SamplerWarning", "SamplingError", "ZeroWeights"]


class SamplerWarning(UserWarning):
    """The draws are usable, but a diagnostic says how far; never silent above a threshold."""


class SamplingError(ValueError):
    """A run that could not finish.

    :ivar partial: the draws obtained so far, or None if there are none.
    """

    def __init__(self, message: str, partial: WeightedSamples | None = None) -> None:
        super().__init__(message)
        self.partial = partial


class ZeroWeights(SamplingError):
    """Every proposal has weight zero: the reward, or the observations, excluded all of them."""


class AcceptanceTooLow(SamplingError):
    """A rejection sampler accepts too rarely to finish in reasonable work."""
