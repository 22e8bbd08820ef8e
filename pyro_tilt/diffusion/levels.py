# SPDX-License-Identifier: Apache-2.0
"""One noise level of a diffusion."""

from __future__ import annotations

import math
from typing import NamedTuple

__all__ = ["Level"]


class Level(NamedTuple):
    r"""
    The noise level at which :math:`x_t = a x_0 + s \epsilon`.

    :ivar a: the signal.
    :ivar s: the noise, zero for clean data.
    :ivar time: the time that a network is told.
    :ivar a_rate: :math:`\dot a`, the derivative by time; nan where time has no clock.
    :ivar s_rate: :math:`\dot s`.

    >>> Level(0.6, 0.8, 0.5).ratio.__round__(4)
    1.3333
    """

    a: float
    s: float
    time: float
    a_rate: float = math.nan
    s_rate: float = math.nan

    @property
    def ratio(self) -> float:
        """:math:`s / a`, the noise in units of the data."""
        return self.s / self.a
