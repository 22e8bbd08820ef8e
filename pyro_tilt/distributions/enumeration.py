# SPDX-License-Identifier: Apache-2.0
"""Tilts of bases whose support can be enumerated."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import MaskedDistribution
from torch import Tensor
from torch.distributions import Distribution

from pyro_tilt.distributions.grid_law import GridLaw
from pyro_tilt.distributions.registry import ExactTilt, register_tilt
from pyro_tilt.rewards import Reward, evaluate


class EnumeratedLaw(GridLaw):
    r"""
    The tilt of a base with a finite support, :math:`q(x_k) = w_k`.

    See :class:`~pyro_tilt.distributions.grid_law.GridLaw` for the parameters.

    >>> from pyro_tilt import rewards
    >>> law = enumerate_tilt(dist.Bernoulli(0.5), rewards.Linear(torch.tensor(3.0).log())).law
    >>> law.mean
    tensor(0.7500)
    """

    @property
    def has_enumerate_support(self) -> bool:  # type: ignore[override]
        return True

    def enumerate_support(self, expand: bool = True) -> Tensor:
        return self.base.enumerate_support(expand=expand)

    def _draw(self, sample_shape: torch.Size) -> Tensor:
        logits = self.log_weights.movedim(0, -1)
        index = dist.Categorical(logits=logits, validate_args=False).sample(sample_shape)
        batch = self.batch_shape.numel()
        table = self.values.reshape(len(self.values) * batch, *self.event_shape)
        column = torch.arange(batch, device=index.device).reshape(self.batch_shape)
        return table[index * batch + column]

    def log_density(self) -> Tensor:
        return self.log_weights

    @property
    def mean(self) -> Tensor:
        return self.expectation(lambda x: x.to(self.log_weights.dtype))

    @property
    def variance(self) -> Tensor:
        mean = self.mean
        return self.expectation(lambda x: (x.to(mean.dtype) - mean).square())


def enumerated_support(base: Distribution) -> Tensor | None:
    """The support of a base, shape ``(n,) + batch_shape + event_shape``, None without one."""
    if isinstance(base, MaskedDistribution) or not getattr(base, "has_enumerate_support", False):
        return None
    try:
        return base.enumerate_support(expand=True)
    except NotImplementedError:
        return None


@register_tilt(Distribution, Reward)
def enumerate_tilt(base: Any, reward: Reward) -> ExactTilt | None:
    r"""
    The tilt of any enumerable base by any reward, :math:`Z = \sum_k p(x_k) e^{r(x_k)}`.

    :param base: the base law.
    :param reward: the reward, beta folded in.
    :raises ValueError: if no point of the support has positive weight.
    """
    values = enumerated_support(base)
    if values is None:
        return None
    log_probs = base.log_prob(values)
    scores = log_probs + evaluate(reward, values, shape=log_probs.shape, name="Tilted")
    log_z = scores.logsumexp(0)
    empty = int((log_z == -math.inf).sum())
    if empty:
        raise ValueError(
            f"Tilted: the reward is -inf on the whole support of {type(base).__name__} "
            f"in {empty} batch elements: the tilt has no mass there"
        )
    law = EnumeratedLaw(base, reward, log_z, values, scores - log_z)
    return ExactTilt(law, log_z, "enumeration")
