# SPDX-License-Identifier: Apache-2.0
"""Laws known by their values and weights on a grid."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Self

import torch
from pyro.distributions.torch_distribution import (
    ExpandedDistribution,
    TorchDistribution,
    TorchDistributionMixin,
)
from torch import Tensor
from torch.distributions import Distribution, constraints

from pyro_tilt.rewards import Reward, evaluate


class GridLaw(TorchDistribution):
    r"""
    The tilt of a base, :math:`p(x) e^{r(x)} / Z`, with a weighted grid that sums over it.

    :param base: the base law.
    :param reward: the reward, beta folded in.
    :param log_normalizer: of the batch shape.
    :param values: the grid, shape ``(n,) + batch_shape + event_shape``.
    :param log_weights: the mass of each grid value, shape ``(n,) + batch_shape``.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}

    def __init__(
        self,
        base: TorchDistributionMixin,
        reward: Reward,
        log_normalizer: Tensor,
        values: Tensor,
        log_weights: Tensor,
    ) -> None:
        self.base, self.reward, self.log_normalizer = base, reward, log_normalizer
        self.values, self.log_weights = values, log_weights
        self._source: GridLaw | None = None
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Self:
        new = self._get_checked_instance(type(self), _instance)
        batch_shape = torch.Size(batch_shape)
        vars(new).update(vars(self))
        new.base = self.base.expand(batch_shape)
        new.log_normalizer = self.log_normalizer.expand(batch_shape)
        new.values = self._stretch(self.values, batch_shape + self.event_shape)
        new.log_weights = self._stretch(self.log_weights, batch_shape)
        new._source = self._source or self
        new._batch_shape = batch_shape
        return new

    @staticmethod
    def _stretch(grid: Tensor, shape: torch.Size) -> Tensor:
        ones = (1,) * (len(shape) + 1 - grid.dim())
        return grid.reshape(len(grid), *ones, *grid.shape[1:]).expand(len(grid), *shape)

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        return self.base.support

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        sample_shape = torch.Size(sample_shape)
        with torch.no_grad():
            if self._source is None:
                return self._draw(sample_shape)
            # Only the law before expansion has a table, which stays as small as it was.
            return ExpandedDistribution(self._source, self.batch_shape).sample(sample_shape)

    @abstractmethod
    def _draw(self, sample_shape: torch.Size) -> Tensor:
        """Draws of the law as it was before it was expanded."""

    def log_prob(self, value: Tensor) -> Tensor:
        base = self.base.log_prob(value)
        value = value.expand(base.shape + self.event_shape)
        rewards = evaluate(self.reward, value, shape=base.shape, name="Tilted")
        return base + rewards - self.log_normalizer

    def expectation(self, fn: Callable[[Tensor], Tensor]) -> Tensor:
        """
        The mean of a function of the value, of the batch shape (and whatever fn appends).

        :param fn: maps the grid to ``(n,) + batch_shape + ...``.
        """
        numbers = fn(self.values)
        weights = self.log_weights.exp()
        weights = weights.reshape(weights.shape + (1,) * (numbers.dim() - weights.dim()))
        # A weight of zero silences whatever infinity stands beside it.
        total = (weights * numbers.masked_fill(weights == 0, 0.0)).sum(0)
        return total.to(self.log_normalizer.dtype)

    def log_density(self) -> Tensor:
        """The log density at the grid values, shape ``(n,) + batch_shape``."""
        return self.log_prob(self.values)

    def entropy(self) -> Tensor:
        return self.expectation(lambda _: -self.log_density())

    def divergence(self, other: Distribution) -> Tensor:
        """The KL divergence to another law, of the batch shape."""
        return self.expectation(lambda x: self.log_density() - other.log_prob(x))
