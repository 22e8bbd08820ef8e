# SPDX-License-Identifier: Apache-2.0
"""Laws on the line that are known by quadrature."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from pyro_tilt.distributions.axis import Axis, in_double
from pyro_tilt.distributions.grid_law import GridLaw
from pyro_tilt.rewards import Linear, LinearIn, MaxAffine, Quadratic, Reward, Scaled, Sum
from pyro_tilt.rewards.tensors import multiply_values


class QuadratureLaw(GridLaw):
    r"""
    The tilt of a scalar law, drawn by inversion of a piecewise quadratic distribution function.

    See :class:`~pyro_tilt.distributions.grid_law.GridLaw` for the further parameters; the grid is
    that of the quadrature rule.

    :param axis: the map from t to the support.
    :param knots: increasing t, shape ``(m,) + batch_shape``, between which the density in t is
        drawn as linear.
    :param densities: that density at the knots, up to a factor.
    :param tails: how fast the density in t falls beyond the grid below and above, ``inf`` at
        a finite end; the k-th moment exists where both exceed k.
    """

    def __init__(
        self, *args: Any, axis: Axis, knots: Tensor, densities: Tensor, tails: Tensor
    ) -> None:
        super().__init__(*args)
        self.axis, self.tails = axis, tails
        self._knots, self._densities = knots, densities

    def log_density(self) -> Tensor:
        return _log_density(self, in_double(self.base).log_prob(self.values))

    def divergence(self, other: Distribution) -> Tensor:
        log_density = self.log_density()
        return self.expectation(lambda x: log_density - in_double(other).log_prob(x))

    def _draw(self, sample_shape: torch.Size) -> Tensor:
        knots, densities = (
            part.reshape(len(part), -1).T for part in (self._knots, self._densities)
        )
        width = knots.diff(dim=-1)
        cumulative = ((densities[:, 1:] + densities[:, :-1]) / 2 * width).cumsum(-1)
        num = sample_shape.numel()
        u = torch.rand(len(knots), num, dtype=knots.dtype, device=knots.device)
        u = u * cumulative[:, -1:]
        cell = torch.searchsorted(cumulative, u, right=True).clamp(max=width.shape[1] - 1)
        before = torch.where(cell > 0, cumulative.gather(1, (cell - 1).clamp(min=0)), 0.0)
        first, last = densities.gather(1, cell), densities.gather(1, cell + 1)
        wide, rest = width.gather(1, cell), u - before
        slope = (last - first) / wide
        root = (first.square() + 2 * slope * rest).clamp(min=0).sqrt()
        step = (2 * rest / (first + root)).nan_to_num(nan=0.0).clamp(min=0).minimum(wide)
        t = (knots.gather(1, cell) + step).T.reshape(num, *self.batch_shape)
        x = self.axis.value(t).to(self.log_normalizer.dtype)
        return self._inside(x).reshape(sample_shape + self.batch_shape)

    def _inside(self, x: Tensor) -> Tensor:
        infinity = x.new_tensor(math.inf)
        low, high = self.axis.low.to(x), self.axis.high.to(x)
        return x.clamp(torch.nextafter(low, infinity), torch.nextafter(high, -infinity))

    @property
    def mean(self) -> Tensor:
        exists = self.tails.amin(0) > 1
        return self.expectation(lambda x: x).masked_fill(~exists, math.nan)

    @property
    def variance(self) -> Tensor:
        mean = self.expectation(lambda x: x)
        variance = self.expectation(lambda x: (x - mean.to(x)).square())
        fastest = self.tails.amin(0)
        variance = variance.masked_fill(fastest <= 2, math.inf)
        return variance.masked_fill(fastest <= 1, math.nan)


def _log_density(law: QuadratureLaw, log_probs: Tensor) -> Tensor:
    rewards = reward_values(law.reward, law.values, law.log_normalizer.dtype)
    return log_probs + rewards - law.log_normalizer


def in_closed_form(reward: Reward) -> bool:
    """Whether a reward has tensors only, so that it follows the dtype of its value."""
    if isinstance(reward, Scaled):
        return in_closed_form(reward.reward)
    if isinstance(reward, Sum):
        return all(in_closed_form(term) for term in reward.terms)
    return isinstance(reward, (Linear, LinearIn, Quadratic, MaxAffine))


def reward_values(reward: Reward, x: Tensor, dtype: torch.dtype) -> Tensor:
    """Rewards of points in float64; callables see the dtype of the base, which they expect."""
    if isinstance(reward, Sum):
        total = torch.zeros_like(x) + reward.offset
        for term in reward.terms:
            total = total + reward_values(term, x, dtype)
        return total
    if isinstance(reward, Scaled):
        return multiply_values(reward_values(reward.reward, x, dtype), reward.scale)
    result = reward(x if in_closed_form(reward) else x.to(dtype))
    if result.shape != x.shape:
        raise ValueError(
            "Tilted: the reward must return one number per batch element, "
            f"shape {tuple(x.shape)}, got shape {tuple(result.shape)}"
        )
    return result.to(torch.float64)
