# SPDX-License-Identifier: Apache-2.0
"""Linear rewards on normal laws, and log-linear ones on the log-normal law."""

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
    fits,
    promoted,
    require,
    slope_of,
)
from pyro_tilt.distributions.registry import ExactTilt, register_tilt
from pyro_tilt.distributions.truncated_normal import TruncatedNormal
from pyro_tilt.rewards import Linear, LinearIn, Quadratic


@register_tilt(td.Normal, Linear)
def normal_linear(base: Any, reward: Linear) -> ExactTilt | None:
    """N(m, s^2) becomes N(m + s^2 theta, s^2)."""
    slope = slope_of(base, reward)
    if slope is None:
        return None
    shift = base.scale**2 * slope.theta
    log_z = slope.theta * (base.loc + shift / 2) + slope.offset
    return closed_form(base, dist.Normal(base.loc + shift, base.scale), log_z)


@register_tilt(td.MultivariateNormal, Linear)
def multivariate_normal_linear(base: Any, reward: Linear) -> ExactTilt | None:
    """N(m, S) becomes N(m + S theta, S)."""
    slope = slope_of(base, reward)
    if slope is None:
        return None
    loc, tril, theta = promoted(base.loc, base.scale_tril, slope.theta)
    white = (tril.mT @ theta.unsqueeze(-1)).squeeze(-1)
    shift = (tril @ white.unsqueeze(-1)).squeeze(-1)
    log_z = (loc * theta).sum(-1) + white.square().sum(-1) / 2 + slope.offset
    return closed_form(base, dist.MultivariateNormal(loc + shift, scale_tril=tril), log_z)


@register_tilt(td.LowRankMultivariateNormal, Linear)
def low_rank_linear(base: Any, reward: Linear) -> ExactTilt | None:
    """The covariance keeps its low-rank form, W W' + D, as it does not change."""
    slope = slope_of(base, reward)
    if slope is None:
        return None
    loc, factor, diag, theta = promoted(base.loc, base.cov_factor, base.cov_diag, slope.theta)
    white = (factor.mT @ theta.unsqueeze(-1)).squeeze(-1)
    shift = (factor @ white.unsqueeze(-1)).squeeze(-1) + diag * theta
    log_z = (theta * (loc + shift / 2)).sum(-1) + slope.offset
    return closed_form(base, dist.LowRankMultivariateNormal(loc + shift, factor, diag), log_z)


@register_tilt(td.LogNormal, LinearIn)
def log_normal_log(base: Any, reward: LinearIn) -> ExactTilt | None:
    """The reward c log x moves the location by c s^2."""
    found = coefficients_of(base, reward, "log")
    if found is None:
        return None
    shift = base.scale**2 * found[0]
    log_z = found[0] * (base.loc + shift / 2) + reward.offset
    return closed_form(base, dist.LogNormal(base.loc + shift, base.scale), log_z)


@register_tilt(td.HalfNormal, Linear)
def half_normal_linear(base: Any, reward: Linear) -> ExactTilt | None:
    """A half-normal law becomes a normal one restricted to the positive half line."""
    return truncated_normal_linear(_from_half(base), reward)


@register_tilt(TruncatedNormal, Linear)
def truncated_normal_linear(base: TruncatedNormal, reward: Linear) -> ExactTilt | None:
    """The location moves by s^2 theta, the interval stays."""
    slope = slope_of(base, reward)
    if slope is None:
        return None
    return _restricted(base, base.loc + base.scale**2 * slope.theta, base.scale, slope)


@register_tilt(td.HalfNormal, Quadratic)
def half_normal_quadratic(base: Any, reward: Quadratic) -> ExactTilt | None:
    """As for the truncated normal law."""
    return truncated_normal_quadratic(_from_half(base), reward)


@register_tilt(TruncatedNormal, Quadratic)
def truncated_normal_quadratic(base: TruncatedNormal, reward: Quadratic) -> ExactTilt | None:
    """Precision 1/s^2 - 2A where positive; otherwise an integral on a bounded interval only."""
    if not fits(base, reward):
        return None
    gain = 1 - 2 * reward.A * base.scale**2
    unbounded = (base.low == -math.inf) | (base.high == math.inf)
    require(
        (gain >= 0) | ~unbounded,
        base,
        "A <= 1 / (2 scale^2) on an unbounded interval",
        A=reward.A,
        bound=0.5 / base.scale**2,
    )
    if not bool((gain > 0).all()):
        return None
    loc = (base.loc + base.scale**2 * reward.b) / gain
    return _restricted(base, loc, base.scale / gain.sqrt(), reward)


def _from_half(base: Any) -> TruncatedNormal:
    law = TruncatedNormal(torch.zeros_like(base.scale), base.scale, low=0.0)
    law._validate_args = base._validate_args
    return law


def _restricted(base: TruncatedNormal, loc: Tensor, scale: Tensor, reward: Any) -> ExactTilt:
    """
    The tilt to location ``loc`` and scale ``scale`` on the same interval.

    The normaliser compares the two unnormalised densities at the new mode, where nothing
    cancels however large the tilt is.
    """
    law = TruncatedNormal(loc, scale, base.low, base.high)
    mode = law.mode
    if isinstance(reward, Quadratic):
        height = (reward.A * mode + reward.b) * mode + reward.c
    else:
        height = reward.theta * mode + reward.offset
    excess = (mode - base.mode) * (mode + base.mode - 2 * base.loc) / (2 * base.scale**2)
    log_mass = law.log_mass_from_mode + law.scale.log()
    log_z = height - excess + log_mass - base.log_mass_from_mode - base.scale.log()
    return closed_form(base, law, log_z)
