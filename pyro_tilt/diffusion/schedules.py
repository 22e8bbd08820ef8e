# SPDX-License-Identifier: Apache-2.0
"""Noise schedules: which levels a sampler visits, from noise to data."""

from __future__ import annotations

import bisect
import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TypeVar

from pyro_tilt.diffusion.levels import Level

__all__ = ["VE", "VP", "RectifiedFlow", "Schedule", "TableSchedule"]

S = TypeVar("S", bound="Schedule")
_COSINE_OFFSET = 0.008


class Schedule(ABC):
    r"""
    The levels :math:`(a_k, s_k)` of a sampler in :math:`x_k = a_k x_0 + s_k \epsilon`.

    The first level is the one of the start, the last that of clean data, :math:`(1, 0)`.

    :param times: decreasing times of the levels, as :meth:`level` takes them.
    :raises ValueError: if a level that is visited has a = 0 (no signal is left there, so that
        neither a prediction of the data nor a tilt is defined), if the noise ratio does not
        decrease, or if the last level has noise.
    """

    def __init__(self, times: Sequence[float]) -> None:
        self._set(times)

    def _set(self, times: Sequence[float]) -> None:
        self.times = tuple(float(time) for time in times)
        self.levels = tuple(self.level(time) for time in self.times)
        _check_levels(type(self).__name__, self.levels)

    @property
    def steps(self) -> int:
        """Number of steps from the first level to clean data."""
        return len(self.levels) - 1

    @property
    def start(self) -> Level:
        """The noisiest level."""
        return self.levels[0]

    @abstractmethod
    def level(self, time: float) -> Level:
        """
        The level of a time.

        :param time: between that of clean data and that of pure noise.
        """

    @abstractmethod
    def time_at(self, ratio: float) -> float:
        """
        The time at which s / a is ``ratio``.

        :param ratio: a positive number.
        :raises ValueError: where the schedule never has that ratio.
        """

    def starting_at(self: S, ratio: float, steps: int | None = None) -> S:
        r"""
        The same schedule from the level :math:`s / a = \text{ratio}` down.

        :param ratio: noise ratio of the new first level.
        :param steps: number of steps on a new grid; by default the levels below ``ratio`` stay.
        :raises ValueError: where the schedule never has that ratio.
        """
        if not 0.0 < ratio < math.inf:
            raise ValueError(f"the noise ratio s / a must be positive and finite, got {ratio}")
        first = self.time_at(ratio)
        if steps is None:
            below = (t for t, lv in zip(self.times, self.levels) if lv.ratio < ratio * (1 - 1e-9))
            times: Sequence[float] = [first, *below]
        else:
            times = self._grid(first, _check_steps(steps))
        other = copy.copy(self)
        other._set(times)
        return other

    def with_steps(self: S, steps: int) -> S:
        """
        The same end points with another number of steps.

        :param steps: at least 1.
        """
        other = copy.copy(self)
        other._set(self._grid(self.times[0], _check_steps(steps)))
        return other

    def _grid(self, first: float, steps: int) -> list[float]:
        return [first * (steps - k) / steps for k in range(steps + 1)]

    def __repr__(self) -> str:
        first = self.start
        return f"{type(self).__name__}(steps={self.steps}, a_T={first.a:.4g}, s_T={first.s:.4g})"


class VP(Schedule):
    r"""
    Variance preserving, :math:`a^2 + s^2 = 1`: :meth:`linear` and :meth:`cosine`.

    :param curve: gives :math:`B(t) = -2 \log a(t)`, its derivative and its inverse.
    :param times: see :class:`Schedule`.
    """

    def __init__(self, curve: _LinearRate | _Cosine, times: Sequence[float]) -> None:
        self.curve = curve
        super().__init__(times)

    @classmethod
    def linear(cls, steps: int, *, beta_min: float = 0.1, beta_max: float = 20.0) -> VP:
        r"""
        :math:`a(t) = \exp(-\tfrac12 \int_0^t \beta)` with
        :math:`\beta(t) = \beta_{\min} + t (\beta_{\max} - \beta_{\min})`, t from 1 to 0 evenly.

        Song et al. 2021, arXiv 2011.13456. With the defaults the start has a = 0.0066 and
        s / a = 152.

        :param steps: number of steps.
        :param beta_min: the rate at the data.
        :param beta_max: the rate at the start.
        :raises ValueError: for rates that are not positive and increasing.

        >>> VP.linear(400)
        VP(steps=400, a_T=0.006572, s_T=1)
        """
        if not 0.0 < beta_min <= beta_max < math.inf:
            raise ValueError(
                f"0 < beta_min <= beta_max is needed, got beta_min={beta_min}, beta_max={beta_max}"
            )
        return cls(_LinearRate(beta_min, beta_max), _even(1.0, steps))

    @classmethod
    def cosine(cls, steps: int, *, end: float = 0.995) -> VP:
        r"""
        :math:`a(t) = \cos(\tfrac\pi2 \tfrac{t + \delta}{1 + \delta}) / \cos(\tfrac\pi2
        \tfrac{\delta}{1 + \delta})` with :math:`\delta = 0.008`, t from ``end`` to 0 evenly.

        Nichol and Dhariwal 2021, arXiv 2102.09672. At t = 1 no signal would be left.

        :param steps: number of steps.
        :param end: the time of the start, below 1.

        >>> VP.cosine(100)
        VP(steps=100, a_T=0.007792, s_T=1)
        """
        if not 0.0 < end <= 1.0:
            raise ValueError(f"end must lie in (0, 1), got {end}")
        return cls(_Cosine(), _even(end, steps))

    def level(self, time: float) -> Level:
        total = self.curve.total(time)
        a, s = math.exp(-0.5 * total), math.sqrt(-math.expm1(-total))
        rate = self.curve.rate(time)
        return Level(a, s, time, -0.5 * rate * a, 0.5 * rate * a * a / s if s else math.inf)

    def time_at(self, ratio: float) -> float:
        return self.curve.time(math.log1p(ratio * ratio))


class _LinearRate:
    def __init__(self, low: float, high: float) -> None:
        self.low, self.gain = low, high - low

    def total(self, t: float) -> float:
        return self.low * t + 0.5 * self.gain * t * t

    def rate(self, t: float) -> float:
        return self.low + self.gain * t

    def time(self, total: float) -> float:
        return 2.0 * total / (self.low + math.sqrt(self.low**2 + 2.0 * self.gain * total))


class _Cosine:
    scale = 0.5 * math.pi / (1.0 + _COSINE_OFFSET)
    first = scale * _COSINE_OFFSET

    def total(self, t: float) -> float:
        if t == 0.0:
            return 0.0
        signal = math.cos(self.first + self.scale * t)
        if signal < 1e-12:
            return math.inf
        return -2.0 * math.log(signal / math.cos(self.first))

    def rate(self, t: float) -> float:
        return 2.0 * self.scale * math.tan(self.first + self.scale * t)

    def time(self, total: float) -> float:
        return (math.acos(math.exp(-0.5 * total) * math.cos(self.first)) - self.first) / self.scale


class VE(Schedule):
    r"""
    Variance exploding, :math:`a = 1` and :math:`s = \sigma`, which is also the time.

    :param sigmas: decreasing noise levels, the last of them 0.
    """

    @classmethod
    def geometric(cls, steps: int, sigma_max: float, *, sigma_min: float = 0.01) -> VE:
        r"""
        Levels :math:`\sigma` in geometric progression from ``sigma_max`` to ``sigma_min``, then 0.

        :param steps: number of steps, the last of them from ``sigma_min`` to 0.
        :param sigma_max: the start, well above the spread of the data.
        :param sigma_min: well below what the data resolve.
        :raises ValueError: if they are not positive and increasing.

        >>> [round(level.s, 6) for level in VE.geometric(3, 100.0, sigma_min=0.01).levels]
        [100.0, 1.0, 0.01, 0.0]
        """
        if not 0.0 < sigma_min < sigma_max < math.inf:
            raise ValueError(
                f"0 < sigma_min < sigma_max is needed, got {sigma_min} and {sigma_max}"
            )
        return cls(_geometric(sigma_max, sigma_min, _check_steps(steps)))

    def level(self, time: float) -> Level:
        return Level(1.0, time, time, 0.0, 1.0)

    def time_at(self, ratio: float) -> float:
        return ratio

    def _grid(self, first: float, steps: int) -> list[float]:
        return _geometric(first, min(self.times[-2], first), steps)


class RectifiedFlow(Schedule):
    r"""
    Straight paths, :math:`a = 1 - t` and :math:`s = t`: t = 0 is data, t from ``end`` to 0 evenly.

    Liu, Gong and Liu 2023, arXiv 2209.03003, with the time turned round.

    :param steps: number of steps.
    :param end: the time of the start. At 1 no signal is left, which is refused.
    :raises ValueError: for an ``end`` outside (0, 1).

    >>> RectifiedFlow(100)
    RectifiedFlow(steps=100, a_T=0.001, s_T=0.999)
    """

    def __init__(self, steps: int, *, end: float = 0.999) -> None:
        super().__init__(_even(end, steps))

    def level(self, time: float) -> Level:
        return Level(1.0 - time, time, time, -1.0, 1.0)

    def time_at(self, ratio: float) -> float:
        return ratio / (1.0 + ratio)


class TableSchedule(Schedule):
    """
    Levels that a model was trained at, such as those of a diffusers scheduler.

    Between two of them time is interpolated linearly in log s / a.

    :param table: all levels that the model knows, in any order, none of them clean.
    :param times: decreasing times of the levels to visit; clean data is added as the last.
    :raises ValueError: for a table whose noise does not increase with time.
    """

    def __init__(self, table: Sequence[Level], times: Sequence[float]) -> None:
        self.table = tuple(sorted(table, key=lambda level: level.time))
        _check_levels(type(self).__name__, [*reversed(self.table), Level(1.0, 0.0, -1.0)])
        self._clean = self.table[0].time - 1.0
        super().__init__([*times, self._clean])

    def level(self, time: float) -> Level:
        if time == self._clean:
            return Level(1.0, 0.0, time)
        low, high, share = self._between([level.time for level in self.table], time)
        if share == 0.0:
            return low
        ratio = low.ratio ** (1 - share) * high.ratio**share
        # Variance preserving models keep a^2 + s^2 = 1, straight paths a + s = 1.
        straight = math.isclose(low.a + low.s, 1.0) and math.isclose(high.a + high.s, 1.0)
        a = 1.0 / (1.0 + ratio) if straight else 1.0 / math.sqrt(1.0 + ratio * ratio)
        return Level(a, a * ratio, time, low.a_rate, low.s_rate)

    def time_at(self, ratio: float) -> float:
        logs = [math.log(level.ratio) for level in self.table]
        low, high, share = self._between(logs, math.log(ratio))
        return low.time + share * (high.time - low.time)

    def _between(self, keys: list[float], key: float) -> tuple[Level, Level, float]:
        slack = 1e-6 * max(1.0, abs(key))
        if not keys[0] - slack <= key <= keys[-1] + slack:
            low, high = self.table[0], self.table[-1]
            raise ValueError(
                f"the model was trained at noise ratios s / a from {low.ratio:.4g} to "
                f"{high.ratio:.4g} (times {low.time:g} to {high.time:g}); a level outside is asked"
            )
        place = min(bisect.bisect_left(keys, key), len(keys) - 1)
        if place == 0 or key >= keys[place]:
            return self.table[place], self.table[place], 0.0
        share = (key - keys[place - 1]) / (keys[place] - keys[place - 1])
        return self.table[place - 1], self.table[place], share

    def _grid(self, first: float, steps: int) -> list[float]:
        raise ValueError(
            "a table of trained levels has no grid of its own: set the steps of the scheduler"
        )


def _check_levels(name: str, levels: Sequence[Level]) -> None:
    for level in levels:
        if not level.a > 0.0:
            raise ValueError(
                f"{name}: a = 0 at time {level.time:g}, which is visited. No signal is left "
                "there and neither the prediction of the data nor its tilt is defined; start at "
                "an earlier time (end=), or without rescaling to zero terminal signal"
            )
        if not (math.isfinite(level.a) and math.isfinite(level.s) and level.s >= 0.0):
            raise ValueError(f"{name}: the level a={level.a}, s={level.s} is not a noise level")
    ratios = [level.ratio for level in levels]
    if len(levels) < 2 or any(later >= now for now, later in zip(ratios, ratios[1:])):
        raise ValueError(f"{name}: the noise ratio s / a must decrease from level to level")
    if levels[-1].s != 0.0:
        raise ValueError(f"{name}: the last level must be clean, got s = {levels[-1].s}")


def _check_steps(steps: int) -> int:
    if isinstance(steps, bool) or int(steps) != steps or steps < 1:
        raise ValueError(f"steps must be an integer of at least 1, got {steps!r}")
    return int(steps)


def _even(end: float, steps: int) -> list[float]:
    steps = _check_steps(steps)
    return [end * (steps - k) / steps for k in range(steps + 1)]


def _geometric(high: float, low: float, steps: int) -> list[float]:
    if steps == 1:
        return [high, 0.0]
    if low >= high:
        low = 0.1 * high
    return [high * (low / high) ** (k / (steps - 1)) for k in range(steps)] + [0.0]
