# SPDX-License-Identifier: Apache-2.0
"""Linear rewards on laws with exponential tails, and on bounded and circular ones."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
import torch.distributions as td
from torch import Tensor

from pyro_tilt.distributions.exact.common import (
    closed_form,
    coefficients_of,
    require,
    slope_of,
)
from pyro_tilt.distributions.generalized_logistic import (
    GeneralizedGumbel,
    GeneralizedLogistic,
    log_beta,
)
from pyro_tilt.distributions.registry import ExactTilt, register_tilt
from pyro_tilt.distributions.truncated_exponential import TruncatedExponential, log_sinhc
from pyro_tilt.rewards import Linear, LinearIn


@register_tilt(td.Laplace, Linear)
def laplace_linear(base: Any, reward: Linear) -> ExactTilt | None:
    """The two tails decay at rates 1/b - theta and 1/b + theta: an asymmetric Laplace law."""
    return _laplace_tilt(base, base.scale, base.scale, reward)


@register_tilt(dist.AsymmetricLaplace, Linear)
def asymmetric_laplace_linear(base: Any, reward: Linear) -> ExactTilt | None:
    """The rate of the right tail falls by theta, that of the left one grows by it."""
    return _laplace_tilt(base, base.left_scale, base.right_scale, reward)


def _laplace_tilt(base: Any, left: Tensor, right: Tensor, reward: Linear) -> ExactTilt | None:
    slope = slope_of(base, reward)
    if slope is None:
        return None
    theta = slope.theta
    rising, falling = 1 - theta * right, 1 + theta * left
    require(rising > 0, base, "theta < 1 / right scale", theta=theta, bound=1 / right)
    require(falling > 0, base, "theta > -1 / left scale", theta=theta, bound=-1 / left)
    left_moved, right_moved = left / falling, right / rising
    law = dist.AsymmetricLaplace(
        base.loc, (left_moved * right_moved).sqrt(), (left_moved / right_moved).sqrt()
    )
    log_z = theta * base.loc - torch.log1p(-theta * right) - torch.log1p(theta * left)
    return closed_form(base, law, log_z + slope.offset)


@register_tilt(dist.Logistic, Linear)
def logistic_linear(base: Any, reward: Linear) -> ExactTilt | None:
    """A logistic variable is the logit of a uniform one; its tilt is that of a beta one."""
    one = torch.ones_like(base.scale)
    return _logistic_tilt(base, base.scale, one, one, reward)


@register_tilt(dist.SkewLogistic, Linear)
def skew_logistic_linear(base: Any, reward: Linear) -> ExactTilt | None:
    """The logit of a Beta(asymmetry, 1) variable."""
    return _logistic_tilt(base, base.scale, base.asymmetry, torch.ones_like(base.scale), reward)


@register_tilt(dist.SoftLaplace, Linear)
def soft_laplace_linear(base: Any, reward: Linear) -> ExactTilt | None:
    """Half the logit of a Beta(1/2, 1/2) variable."""
    half = torch.full_like(base.scale, 0.5)
    return _logistic_tilt(base, base.scale / 2, half, half, reward)


@register_tilt(GeneralizedLogistic, Linear)
def generalized_logistic_linear(base: GeneralizedLogistic, reward: Linear) -> ExactTilt | None:
    """The parameters of the beta law become a + s theta and b - s theta."""
    return _logistic_tilt(base, base.scale, base.a, base.b, reward)


def _logistic_tilt(
    base: Any, scale: Tensor, a: Tensor, b: Tensor, reward: Linear
) -> ExactTilt | None:
    slope = slope_of(base, reward)
    if slope is None:
        return None
    theta, move = slope.theta, scale * slope.theta
    require(b - move > 0, base, "theta < rate of the right tail", theta=theta, rate=b / scale)
    require(a + move > 0, base, "theta > -rate of the left tail", theta=theta, rate=a / scale)
    law = GeneralizedLogistic(base.loc, scale, a + move, b - move)
    log_z = theta * base.loc + log_beta(a + move, b - move) - log_beta(a, b) + slope.offset
    return closed_form(base, law, log_z)


@register_tilt(td.Gumbel, Linear)
def gumbel_linear(base: Any, reward: Linear) -> ExactTilt | None:
    """The Gumbel law is that of minus the logarithm of an exponential variable."""
    return _gumbel_tilt(base, torch.ones_like(base.scale), reward)


@register_tilt(GeneralizedGumbel, Linear)
def generalized_gumbel_linear(base: GeneralizedGumbel, reward: Linear) -> ExactTilt | None:
    """The shape of the gamma law becomes a - s theta."""
    return _gumbel_tilt(base, base.a, reward)


def _gumbel_tilt(base: Any, a: Tensor, reward: Linear) -> ExactTilt | None:
    slope = slope_of(base, reward)
    if slope is None:
        return None
    theta, scale = slope.theta, base.scale
    moved = a - scale * theta
    require(moved > 0, base, "theta < rate of the right tail", theta=theta, rate=a / scale)
    log_z = theta * base.loc + moved.lgamma() - a.lgamma() + slope.offset
    return closed_form(base, GeneralizedGumbel(base.loc, scale, moved), log_z)


@register_tilt(td.Uniform, Linear)
def uniform_linear(base: Any, reward: Linear) -> ExactTilt | None:
    """A uniform law becomes a truncated exponential one."""
    flat = torch.zeros_like(base.low)
    return _interval_tilt(base, flat, base.low, base.high, reward)


@register_tilt(TruncatedExponential, Linear)
def truncated_exponential_linear(base: TruncatedExponential, reward: Linear) -> ExactTilt | None:
    """The exponents add."""
    return _interval_tilt(base, base.tilt, base.low, base.high, reward)


@register_tilt(td.ContinuousBernoulli, Linear)
def continuous_bernoulli_linear(base: Any, reward: Linear) -> ExactTilt | None:
    """The density is an exponential on the unit interval, with the logits in the exponent."""
    logits = base.logits
    return _interval_tilt(base, logits, torch.zeros_like(logits), torch.ones_like(logits), reward)


def _interval_tilt(
    base: Any, tilt: Tensor, low: Tensor, high: Tensor, reward: Linear
) -> ExactTilt | None:
    slope = slope_of(base, reward)
    if slope is None:
        return None
    half, moved = (high - low) / 2, tilt + slope.theta
    log_z = slope.theta * (low + high) / 2 + log_sinhc(moved * half) - log_sinhc(tilt * half)
    return closed_form(base, TruncatedExponential(moved, low, high), log_z + slope.offset)


# Bound on the error of a difference of two polynomial approximations of log I0 (Abramowitz and
# Stegun 9.8.1 and 9.8.2), by which torch normalises the von Mises law.
_BESSEL_ERROR = 1e-6


@register_tilt(td.VonMises, LinearIn)
def von_mises_cosine(base: Any, reward: LinearIn) -> ExactTilt | None:
    """
    The reward a cos x + b sin x adds (a, b) to the mean direction times the concentration.

    The normaliser is a difference of torch's own, so that the two densities agree exactly.
    """
    found = coefficients_of(base, reward, "cos", "sin")
    if found is None:
        return None
    across = base.concentration * base.loc.cos() + found[0]
    up = base.concentration * base.loc.sin() + found[1]
    size = torch.finfo(across.dtype).tiny
    square = across**2 + up**2
    still = square <= size
    concentration = torch.where(still, size, torch.where(still, 1.0, square).sqrt())
    law = dist.VonMises(torch.atan2(up, torch.where(still, 1.0, across)), concentration)
    log_z = _log_bessel(law) - _log_bessel(base) + reward.offset
    return closed_form(base, law, log_z, error=_BESSEL_ERROR)


def _log_bessel(law: Any) -> Tensor:
    """The logarithm of I0 of the concentration, as the law itself computes it."""
    peak = td.VonMises(law.loc, law.concentration, validate_args=False).log_prob(law.loc)
    return law.concentration - peak - math.log(2 * math.pi)
