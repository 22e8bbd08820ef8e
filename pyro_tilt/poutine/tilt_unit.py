# SPDX-License-Identifier: Apache-2.0
"""The distribution of a tilt factor."""

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_tilt.rewards import log_tilt


class Unit(dist.Unit):
    """
    A factor ``beta * reward`` that is multiplied out where it is asked for.

    Samplers that read reward and beta apart never ask. The class has the name of its parent, by
    which Pyro knows a factor.

    :param reward: the reward, checked, shape ``batch_shape``.
    :param beta: a number that is not negative, so that no reward of ``-inf`` is in its way.

    >>> Unit(torch.tensor([-1.0, 0.5]), 2.0).log_prob(torch.empty(2, 0))
    tensor([-2.,  1.])
    """

    def __init__(self, reward: Tensor, beta: float) -> None:
        self._reward, self._beta = reward, beta
        dist.TorchDistribution.__init__(
            self, reward.shape, event_shape=torch.Size((0,)), validate_args=False
        )

    # Kept nowhere: what is multiplied out under no_grad has no gradient.
    @property
    def log_factor(self) -> Tensor:
        """The log factor, shape ``batch_shape``."""
        return log_tilt(self._reward, self._beta)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> dist.Unit:
        """
        Pyro's unit of a larger batch shape.

        :param batch_shape: what the batch shape is to be.
        """
        return dist.Unit(self.log_factor, validate_args=False).expand(torch.Size(batch_shape))

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """
        The only value, which is empty.

        :param sample_shape: goes in front of the batch shape.
        """
        return self._reward.new_empty(torch.Size(sample_shape) + self.shape())

    rsample = sample
