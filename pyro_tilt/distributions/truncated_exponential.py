# SPDX-License-Identifier: Apache-2.0
"""The exponential law, growing or decaying, on a bounded interval."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.utils import broadcast_all

# Coefficients of log(sinh(u) / u) in u^2, u^4, ...
_SERIES = (1 / 6, -1 / 180, 1 / 2835, -1 / 37800, 1 / 467775, -691 / 3831077250)


class TruncatedExponential(TorchDistribution):
    r"""
    The tilt of a uniform law.

    .. math::

        p(x) \propto e^{\theta x}\, 1[\text{low} \le x \le \text{high}]

    Accurate for any sign and size of :math:`\theta`, zero included.

    :param tilt: :math:`\theta`, of the batch shape.
    :param low: lower end, finite.
    :param high: upper end, finite.
    :raises ValueError: if ``low`` is not below ``high``.

    >>> TruncatedExponential(torch.tensor([0.0, 1000.0]), 0.0, 1.0).mean
    tensor([0.5000, 0.9990])
    """

    arg_constraints = {
        "tilt": constraints.real,
        "low": constraints.dependent,
        "high": constraints.dependent,
    }
    has_rsample = True

    def __init__(
        self,
        tilt: Tensor | float,
        low: Tensor | float = 0.0,
        high: Tensor | float = 1.0,
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.tilt, self.low, self.high = broadcast_all(tilt, low, high)
        if not bool((self.low < self.high).all()):
            raise ValueError(f"low must be below high, got low={low} and high={high}")
        super().__init__(self.tilt.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> TruncatedExponential:
        new = self._get_checked_instance(TruncatedExponential, _instance)
        batch_shape = torch.Size(batch_shape)
        for name in ("tilt", "low", "high"):
            setattr(new, name, getattr(self, name).expand(batch_shape))
        super(TruncatedExponential, new).__init__(batch_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> constraints.Constraint:
        return constraints.interval(self.low, self.high)

    @property
    def _half(self) -> tuple[Tensor, Tensor, Tensor]:
        """Centre, half width, and half the change of the log density across the interval."""
        half = (self.high - self.low) / 2
        return (self.low + self.high) / 2, half, self.tilt * half

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        centre, half, u = self._half
        log_density = self.tilt * (value - centre) - log_sinhc(u) - (2 * half).log()
        inside = (value >= self.low) & (value <= self.high)
        return torch.where(inside, log_density, -math.inf)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        shape = self._extended_shape(sample_shape)
        return self.icdf(torch.rand(shape, dtype=self.tilt.dtype, device=self.tilt.device))

    def icdf(self, value: Tensor) -> Tensor:
        width = self.high - self.low
        t = self.tilt * width
        rising = t > 0
        flat = t.abs() < 1e-3
        decay = torch.where(flat, -1.0, -t.abs())
        share = torch.where(rising, 1 - value, value)
        distance = width * torch.log1p(share * torch.expm1(decay)) / decay
        steep = torch.where(rising, self.high - distance, self.low + distance)
        bend = value * (1 - value) * t
        series = value + bend / 2 + bend * t * (1 - 2 * value) / 6
        series = series + bend * t**2 * (1 - 6 * value * (1 - value)) / 24
        value = torch.where(flat, self.low + width * series, steep)
        return torch.minimum(torch.maximum(value, self.low), self.high)

    def cdf(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        width = self.high - self.low
        t = self.tilt * width
        rising = t > 0
        flat = t.abs() < 1e-6
        decay = torch.where(flat, -1.0, -t.abs())
        below = ((value - self.low) / width).clamp(0.0, 1.0)
        above = ((self.high - value) / width).clamp(0.0, 1.0)
        steep = torch.expm1(decay * torch.where(rising, above, below)) / torch.expm1(decay)
        steep = torch.where(rising, 1 - steep, steep)
        return torch.where(flat, below * (1 - t * above / 2), steep)

    @property
    def mean(self) -> Tensor:
        centre, half, u = self._half
        return centre + half * _slope(u)

    @property
    def variance(self) -> Tensor:
        _, half, u = self._half
        return half**2 * _curvature(u)


def log_sinhc(u: Tensor) -> Tensor:
    r"""
    :math:`\log(\sinh(u) / u)`, even in :math:`u`, with accurate derivatives at zero.

    >>> log_sinhc(torch.tensor([0.0, 1000.0]))
    tensor([  0.0000, 992.3991])
    """
    near = u.abs() < 0.3
    square = torch.where(near, u, 0.0).square()
    series = torch.zeros_like(square)
    for coefficient in reversed(_SERIES):
        series = (series + coefficient) * square
    size = torch.where(near, 1.0, u.abs())
    far = size + torch.log(-torch.expm1(-2 * size)) - (2 * size).log()
    return torch.where(near, series, far)


def _slope(u: Tensor) -> Tensor:
    near = u.abs() < 0.3
    small, large = torch.where(near, u, 0.0), torch.where(near, 1.0, u)
    series = torch.zeros_like(small)
    for order, coefficient in reversed(tuple(enumerate(_SERIES, start=1))):
        series = series * small**2 + 2 * order * coefficient
    return torch.where(near, series * small, 1 / torch.tanh(large) - 1 / large)


def _curvature(u: Tensor) -> Tensor:
    near = u.abs() < 0.3
    small, large = torch.where(near, u, 0.0), torch.where(near, 1.0, u.abs())
    series = torch.zeros_like(small)
    for order, coefficient in reversed(tuple(enumerate(_SERIES, start=1))):
        series = series * small**2 + 2 * order * (2 * order - 1) * coefficient
    decay = torch.exp(-2 * large)
    return torch.where(near, series, 1 / large**2 - 4 * decay / (1 - decay) ** 2)
