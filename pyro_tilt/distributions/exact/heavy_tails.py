# SPDX-License-Identifier: Apache-2.0
"""Linear rewards on laws whose tails no exponential tilt, or only a falling one, can meet."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch.distributions as td

from pyro_tilt.distributions.exact.common import Slope, closed_form, require, slope_of
from pyro_tilt.distributions.registry import ExactTilt, register_tilt
from pyro_tilt.rewards import Linear


@register_tilt(td.Cauchy, Linear)
@register_tilt(td.StudentT, Linear)
@register_tilt(dist.MultivariateStudentT, Linear)
def heavy_linear(base: Any, reward: Linear) -> ExactTilt | None:
    """Power laws on both sides: no tilt but the trivial one."""
    slope = slope_of(base, reward)
    if slope is None:
        return None
    condition = "theta = 0 (the bound is 0, as both tails are power laws)"
    require(slope.theta == 0, base, condition, theta=slope.theta)
    return closed_form(base, base, slope.offset)


@register_tilt(td.FisherSnedecor, Linear)
@register_tilt(td.HalfCauchy, Linear)
@register_tilt(td.LogNormal, Linear)
@register_tilt(td.Pareto, Linear)
@register_tilt(td.InverseGamma, Linear)
@register_tilt(dist.InverseGamma, Linear)
def right_heavy_linear(base: Any, reward: Linear) -> ExactTilt | None:
    """Integrable for theta <= 0 only, and of no closed form there."""
    slope = slope_of(base, reward)
    if slope is None:
        return None
    condition = "theta <= 0 (the bound is 0, as the right tail is heavier than exponential)"
    require(slope.theta <= 0, base, condition, theta=slope.theta)
    return _unmoved(base, slope)


@register_tilt(td.Weibull, Linear)
def weibull_linear(base: Any, reward: Linear) -> ExactTilt | None:
    """Heavier than exponential for shapes below one; an exponential law for shape one."""
    slope = slope_of(base, reward)
    if slope is None:
        return None
    shape, rate = base.concentration, 1 / base.scale
    require(
        (shape >= 1) | (slope.theta <= 0),
        base,
        "theta <= 0 (the bound is 0, as a concentration below 1 makes the right tail heavier "
        "than exponential)",
        theta=slope.theta,
        concentration=shape,
    )
    require(
        (shape != 1) | (slope.theta < rate),
        base,
        "theta < 1 / scale at concentration 1",
        theta=slope.theta,
        bound=rate,
    )
    return _unmoved(base, slope)


def _unmoved(base: Any, slope: Slope) -> ExactTilt | None:
    """The base itself where the slope is zero; no closed form elsewhere."""
    return None if bool(slope.theta.any()) else closed_form(base, base, slope.offset)
