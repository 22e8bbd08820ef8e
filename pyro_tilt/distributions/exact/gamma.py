# SPDX-License-Identifier: Apache-2.0
"""The gamma, beta, Dirichlet and Wishart families, linear in their sufficient statistics."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
import torch.distributions as td
from pyro.distributions.inverse_gamma import InverseGamma as PyroInverseGamma
from torch import Tensor

from pyro_tilt.distributions.exact.common import (
    closed_form,
    coefficients_of,
    promoted,
    require,
    slope_of,
)
from pyro_tilt.distributions.exact.quadratic import tilted_covariance
from pyro_tilt.distributions.generalized_logistic import log_beta
from pyro_tilt.distributions.registry import ExactTilt, register_tilt
from pyro_tilt.rewards import Linear, LinearIn


@register_tilt(td.Gamma, Linear)
def gamma_linear(base: Any, reward: Linear) -> ExactTilt | None:
    """Gamma(a, b) becomes Gamma(a, b - theta) for theta < b."""
    slope = slope_of(base, reward)
    if slope is None:
        return None
    require(slope.theta < base.rate, base, "theta < rate", theta=slope.theta, rate=base.rate)
    log_z = -base.concentration * torch.log1p(-slope.theta / base.rate) + slope.offset
    return closed_form(base, dist.Gamma(base.concentration, base.rate - slope.theta), log_z)


@register_tilt(td.Exponential, Linear)
def exponential_linear(base: Any, reward: Linear) -> ExactTilt | None:
    """Exponential(b) becomes Exponential(b - theta) for theta < b."""
    slope = slope_of(base, reward)
    if slope is None:
        return None
    require(slope.theta < base.rate, base, "theta < rate", theta=slope.theta, rate=base.rate)
    log_z = -torch.log1p(-slope.theta / base.rate) + slope.offset
    return closed_form(base, dist.Exponential(base.rate - slope.theta), log_z)


@register_tilt(td.Gamma, LinearIn)
def gamma_log(base: Any, reward: LinearIn) -> ExactTilt | None:
    """The reward theta x + c log x moves both parameters."""
    return _gamma_tilt(base, base.concentration, reward)


@register_tilt(td.Exponential, LinearIn)
def exponential_log(base: Any, reward: LinearIn) -> ExactTilt | None:
    """An exponential law is a gamma law of shape one."""
    return _gamma_tilt(base, torch.ones_like(base.rate), reward)


def _gamma_tilt(base: Any, concentration: Tensor, reward: LinearIn) -> ExactTilt | None:
    found = coefficients_of(base, reward, "x", "log")
    if found is None:
        return None
    theta, power = found
    moved, rate = concentration + power, base.rate - theta
    require(rate > 0, base, "coefficient of x < rate", theta=theta, rate=base.rate)
    require(
        moved > 0,
        base,
        "coefficient of log x > -concentration",
        coefficient=power,
        concentration=concentration,
    )
    log_z = moved.lgamma() - concentration.lgamma() - power * rate.log()
    log_z = log_z - concentration * torch.log1p(-theta / base.rate) + reward.offset
    return closed_form(base, dist.Gamma(moved, rate), log_z)


@register_tilt(td.InverseGamma, LinearIn)
@register_tilt(PyroInverseGamma, LinearIn)
def inverse_gamma_reciprocal(base: Any, reward: LinearIn) -> ExactTilt | None:
    """The reward -c / x + d log x turns InverseGamma(a, b) into InverseGamma(a - d, b + c)."""
    found = coefficients_of(base, reward, "reciprocal", "log")
    if found is None:
        return None
    inverse, power = found
    concentration, rate = base.concentration - power, base.rate - inverse
    require(
        rate > 0,
        base,
        "coefficient of 1/x < rate",
        coefficient=inverse,
        rate=base.rate,
    )
    require(
        concentration > 0,
        base,
        "coefficient of log x < concentration",
        coefficient=power,
        concentration=base.concentration,
    )
    log_z = concentration.lgamma() - base.concentration.lgamma() + power * rate.log()
    log_z = log_z - base.concentration * torch.log1p(-inverse / base.rate) + reward.offset
    return closed_form(base, dist.InverseGamma(concentration, rate), log_z)


@register_tilt(td.Beta, LinearIn)
def beta_log(base: Any, reward: LinearIn) -> ExactTilt | None:
    """The reward c log x + d log(1 - x) turns Beta(a, b) into Beta(a + c, b + d)."""
    found = coefficients_of(base, reward, "log", "log1m")
    if found is None:
        return None
    a, b = base.concentration1, base.concentration0
    for name, power, shape in (("log x", found[0], a), ("log(1 - x)", found[1], b)):
        condition = f"coefficient of {name} > -concentration"
        require(power + shape > 0, base, condition, coefficient=power, concentration=shape)
    a_moved, b_moved = a + found[0], b + found[1]
    log_z = log_beta(a_moved, b_moved) - log_beta(a, b) + reward.offset
    return closed_form(base, dist.Beta(a_moved, b_moved), log_z)


@register_tilt(td.Dirichlet, LinearIn)
def dirichlet_log(base: Any, reward: LinearIn) -> ExactTilt | None:
    """The reward sum_i c_i log x_i turns Dirichlet(a) into Dirichlet(a + c)."""
    found = coefficients_of(base, reward, "log")
    if found is None:
        return None
    moved = base.concentration + found[0]
    require(
        moved > 0,
        base,
        "coefficient of log x_i > -concentration_i",
        coefficient=found[0],
        concentration=base.concentration,
    )
    log_z = _log_multivariate_beta(moved) - _log_multivariate_beta(base.concentration)
    return closed_form(base, dist.Dirichlet(moved), log_z + reward.offset)


def _log_multivariate_beta(concentration: Tensor) -> Tensor:
    return concentration.lgamma().sum(-1) - concentration.sum(-1).lgamma()


@register_tilt(td.Pareto, LinearIn)
def pareto_log(base: Any, reward: LinearIn) -> ExactTilt | None:
    """The reward c log x turns Pareto(s, a) into Pareto(s, a - c) for c < a."""
    found = coefficients_of(base, reward, "log")
    if found is None:
        return None
    power, alpha = found[0], base.alpha
    require(power < alpha, base, "coefficient of log x < alpha", coefficient=power, alpha=alpha)
    log_z = power * base.scale.log() - torch.log1p(-power / alpha) + reward.offset
    return closed_form(base, dist.Pareto(base.scale, alpha - power), log_z)


@register_tilt(td.Wishart, Linear)
def wishart_linear(base: Any, reward: Linear) -> ExactTilt | None:
    """The reward tr(BX) turns the scale matrix V into the inverse of V^{-1} - 2B."""
    slope = slope_of(base, reward)
    if slope is None:
        return None
    tril, theta, df = promoted(base.scale_tril, slope.theta, base.df)
    moved = tilted_covariance(base, tril, theta + theta.mT)
    log_z = -df / 2 * moved.log_det + slope.offset
    return closed_form(
        base, dist.Wishart(df.expand(log_z.shape), scale_tril=moved.scale_tril), log_z
    )
