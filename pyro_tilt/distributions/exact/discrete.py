# SPDX-License-Identifier: Apache-2.0
"""Linear rewards on counts and categories."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
import torch.distributions as td
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from pyro_tilt.distributions.exact.common import closed_form, log1mexp, require, slope_of
from pyro_tilt.distributions.registry import ExactTilt, register_tilt
from pyro_tilt.rewards import Linear


@register_tilt(td.Bernoulli, Linear)
def bernoulli_linear(base: Any, reward: Linear) -> ExactTilt | None:
    """The logits move by theta."""
    slope = slope_of(base, reward)
    if slope is None:
        return None
    logits, log_z = _shifted_logits(base, slope.theta)
    return closed_form(base, dist.Bernoulli(logits=logits), log_z + slope.offset)


@register_tilt(td.Binomial, Linear)
def binomial_linear(base: Any, reward: Linear) -> ExactTilt | None:
    """As of one Bernoulli variable, a total_count of times."""
    slope = slope_of(base, reward)
    if slope is None:
        return None
    logits, log_z = _shifted_logits(base, slope.theta)
    law = dist.Binomial(base.total_count, logits=logits)
    return closed_form(base, law, base.total_count * log_z + slope.offset)


def _shifted_logits(base: Any, theta: Tensor) -> tuple[Tensor, Tensor]:
    """
    Logits moved by theta, and the normaliser of one trial.

    A probability given as exactly 0 or 1 has a finite, clamped logit in torch; it must not move.
    """
    logits = base.logits
    never, always = is_clamped(base) & (base.probs == 0), is_clamped(base) & (base.probs == 1)
    fixed = torch.where(never | always, 0.0, theta)
    log_z = softplus(logits + fixed) - softplus(logits) + torch.where(always, theta, 0.0)
    return logits + fixed, log_z


def is_clamped(base: Any) -> Tensor:
    """
    Where a probability of 0 or 1 was given as such, so that it is a true one.

    torch clamps its logit to that of the resolution of the dtype; a logit that was given, and whose
    probability rounds to 0 or 1, lies further out.
    """
    logits = base.logits
    return logits.abs() <= 0.1 - math.log(torch.finfo(logits.dtype).eps)


@register_tilt(td.Categorical, Linear)
def categorical_linear(base: Any, reward: Linear) -> ExactTilt | None:
    """The logit of category k moves by k theta."""
    slope = slope_of(base, reward)
    if slope is None:
        return None
    logits = true_logits(base)
    index = torch.arange(logits.shape[-1], dtype=logits.dtype, device=logits.device)
    moved = logits + slope.theta.unsqueeze(-1) * index
    return closed_form(base, dist.Categorical(logits=moved), _log_z(moved, logits) + slope.offset)


@register_tilt(td.OneHotCategorical, Linear)
def one_hot_linear(base: Any, reward: Linear) -> ExactTilt | None:
    """The logits move by theta."""
    slope = slope_of(base, reward)
    if slope is None:
        return None
    through = isinstance(base, td.OneHotCategoricalStraightThrough)
    family = dist.OneHotCategoricalStraightThrough if through else dist.OneHotCategorical
    logits = true_logits(base)
    moved = logits + slope.theta
    return closed_form(base, family(logits=moved), _log_z(moved, logits) + slope.offset)


@register_tilt(td.Multinomial, Linear)
def multinomial_linear(base: Any, reward: Linear) -> ExactTilt | None:
    """As of one category, a total_count of times."""
    slope = slope_of(base, reward)
    if slope is None:
        return None
    logits = true_logits(base)
    moved = logits + slope.theta
    log_z = base.total_count * _log_z(moved, logits) + slope.offset
    return closed_form(base, dist.Multinomial(base.total_count, logits=moved), log_z)


def true_logits(base: Any) -> Tensor:
    """Logits in which a probability given as exactly zero is ``-inf``, where torch clamps it."""
    categorical = getattr(base, "_categorical", base)
    never = is_clamped(categorical) & (categorical.probs == 0)
    return torch.where(never, -math.inf, categorical.logits)


def _log_z(moved: Tensor, logits: Tensor) -> Tensor:
    return moved.logsumexp(-1) - logits.logsumexp(-1)


@register_tilt(td.Poisson, Linear)
def poisson_linear(base: Any, reward: Linear) -> ExactTilt | None:
    """The rate is multiplied by e^theta."""
    slope = slope_of(base, reward)
    if slope is None:
        return None
    rate = base.rate * slope.theta.exp()
    limit = math.log(torch.finfo(rate.dtype).max) - base.rate.log()
    condition = "rate e^theta to be a floating point number, theta <= bound"
    require(rate < math.inf, base, condition, theta=slope.theta, bound=limit)
    law = dist.Poisson(rate, is_sparse=getattr(base, "is_sparse", False))
    return closed_form(base, law, base.rate * torch.expm1(slope.theta) + slope.offset)


@register_tilt(td.NegativeBinomial, Linear)
def negative_binomial_linear(base: Any, reward: Linear) -> ExactTilt | None:
    """The success probability p becomes p e^theta, for theta < -log p."""
    slope = slope_of(base, reward)
    if slope is None:
        return None
    log_p = logsigmoid(base.logits)
    logits, log_stop = _stretched(base, log_p, slope.theta)
    count = base.total_count
    log_z = count * (logsigmoid(-base.logits) - log_stop) + slope.offset
    return closed_form(base, dist.NegativeBinomial(count, logits=logits), log_z)


@register_tilt(td.Geometric, Linear)
def geometric_linear(base: Any, reward: Linear) -> ExactTilt | None:
    """The failure probability 1 - g becomes (1 - g) e^theta, for theta < -log(1 - g)."""
    slope = slope_of(base, reward)
    if slope is None:
        return None
    failure, log_stop = _stretched(base, logsigmoid(-base.logits), slope.theta)
    log_z = logsigmoid(base.logits) - log_stop + slope.offset
    return closed_form(base, dist.Geometric(logits=-failure), log_z)


def _stretched(base: Any, log_p: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of p e^theta, and log(1 - p e^theta)."""
    moved = log_p + theta
    condition = "theta < -log of the probability to go on"
    require(moved < 0, base, condition, theta=theta, bound=-log_p)
    log_stop = log1mexp(moved)
    return moved - log_stop, log_stop
