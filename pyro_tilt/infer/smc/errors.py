# SPDX-License-Identifier: Apache-2.0
"""What can go wrong between two steps."""

from __future__ import annotations

from pyro_tilt.infer.errors import SamplingError

__all__ = ["LineageError", "ResumeError", "StepError", "TwistError"]


class StepError(SamplingError):
    """The program raised at some step; its own error is the cause, the particles are kept.

    :ivar partial: the particles after the last whole step, weighted for what came before it.
    """


class TwistError(SamplingError):
    """A twist that is NaN, ``+inf`` or of a wrong shape, or that contradicts itself."""


class LineageError(ValueError):
    """A variable that does not move with its particle; raised before the run."""


class ResumeError(ValueError):
    """A saved run that does not belong to the program or the sampler that is to go on with it."""
