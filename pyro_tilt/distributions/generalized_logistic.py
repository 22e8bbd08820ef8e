# SPDX-License-Identifier: Apache-2.0
"""Laws of logarithms of gamma variables: tilts of the logistic and Gumbel families."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.utils import broadcast_all
from torch.nn.functional import logsigmoid


class GeneralizedLogistic(TorchDistribution):
    r"""
    Location and scale of the logit of a beta variable (the logistic law of type IV).

    .. math::

        x = \mu + s\, \mathrm{logit} B, \qquad B \sim \mathrm{Beta}(a, b)

    The right tail decays at rate ``b / s`` and the left one at rate ``a / s``.

    :param loc: location, of the batch shape.
    :param scale: scale, positive.
    :param a: first parameter of the beta law.
    :param b: second parameter of the beta law.

    >>> GeneralizedLogistic(torch.tensor(1.0), 1.0, 1.0, 1.0).mean
    tensor(1.)
    """

    arg_constraints = {
        "loc": constraints.real,
        "scale": constraints.positive,
        "a": constraints.positive,
        "b": constraints.positive,
    }
    support = constraints.real
    has_rsample = True

    def __init__(
        self,
        loc: Tensor | float,
        scale: Tensor | float,
        a: Tensor | float,
        b: Tensor | float,
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.loc, self.scale, self.a, self.b = broadcast_all(loc, scale, a, b)
        super().__init__(self.loc.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> GeneralizedLogistic:
        new = self._get_checked_instance(GeneralizedLogistic, _instance)
        batch_shape = torch.Size(batch_shape)
        for name in ("loc", "scale", "a", "b"):
            setattr(new, name, getattr(self, name).expand(batch_shape))
        super(GeneralizedLogistic, new).__init__(batch_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        z = (value - self.loc) / self.scale
        tails = self.a * logsigmoid(z) + self.b * logsigmoid(-z)
        return tails - log_beta(self.a, self.b) - self.scale.log()

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        shape = self._extended_shape(sample_shape)
        logit = log_gamma_rsample(self.a.expand(shape)) - log_gamma_rsample(self.b.expand(shape))
        return self.loc + self.scale * logit

    @property
    def mean(self) -> Tensor:
        return self.loc + self.scale * (self.a.digamma() - self.b.digamma())

    @property
    def variance(self) -> Tensor:
        return self.scale**2 * (self.a.polygamma(1) + self.b.polygamma(1))


class GeneralizedGumbel(TorchDistribution):
    r"""
    Location and scale of minus the logarithm of a gamma variable.

    .. math::

        x = \mu - s \log G, \qquad G \sim \mathrm{Gamma}(a, 1)

    The Gumbel law is that of ``a = 1``; the right tail decays at rate ``a / s``.

    :param loc: location, of the batch shape.
    :param scale: scale, positive.
    :param a: shape of the gamma law.

    >>> GeneralizedGumbel(torch.tensor(0.0), 1.0, 1.0).mean
    tensor(0.5772)
    """

    arg_constraints = {
        "loc": constraints.real,
        "scale": constraints.positive,
        "a": constraints.positive,
    }
    support = constraints.real
    has_rsample = True

    def __init__(
        self,
        loc: Tensor | float,
        scale: Tensor | float,
        a: Tensor | float,
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.loc, self.scale, self.a = broadcast_all(loc, scale, a)
        super().__init__(self.loc.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> GeneralizedGumbel:
        new = self._get_checked_instance(GeneralizedGumbel, _instance)
        batch_shape = torch.Size(batch_shape)
        for name in ("loc", "scale", "a"):
            setattr(new, name, getattr(self, name).expand(batch_shape))
        super(GeneralizedGumbel, new).__init__(batch_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        z = (value - self.loc) / self.scale
        return -self.a * z - torch.exp(-z) - self.a.lgamma() - self.scale.log()

    def cdf(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        z = (value - self.loc) / self.scale
        a, gamma = torch.broadcast_tensors(self.a, torch.exp(-z))
        return torch.special.gammaincc(a, gamma)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        shape = self._extended_shape(sample_shape)
        return self.loc - self.scale * log_gamma_rsample(self.a.expand(shape))

    @property
    def mean(self) -> Tensor:
        return self.loc - self.scale * self.a.digamma()

    @property
    def variance(self) -> Tensor:
        return self.scale**2 * self.a.polygamma(1)


def log_beta(a: Tensor, b: Tensor) -> Tensor:
    """
    The logarithm of the beta function.

    >>> log_beta(torch.tensor(1.0), torch.tensor(2.0))
    tensor(-0.6931)
    """
    return a.lgamma() + b.lgamma() - (a + b).lgamma()


def log_gamma_rsample(concentration: Tensor) -> Tensor:
    """
    The logarithm of gamma variables of unit rate, which does not underflow at small shapes:
    a gamma variable of shape a is one of shape a + 1 times the a-th root of a uniform one.

    :param concentration: the shapes, one draw for each.

    >>> bool(log_gamma_rsample(torch.full((100,), 1e-4)).isfinite().all())
    True
    """
    tiny = torch.finfo(concentration.dtype).tiny
    draw = torch._standard_gamma(concentration + 1).clamp(min=tiny)
    return draw.log() - torch.empty_like(draw).exponential_() / concentration
