# SPDX-License-Identifier: Apache-2.0
"""Calibration of a baseline on held-out draws."""

import dataclasses
import math

from torch import Tensor

from .baselines import Baseline, check_epsilon, checked_draws, clip, estimated_clipped_mass
from .importance import as_double, normalize

__all__ = ["calibrate", "calibration_shift"]


def calibration_shift(
    excess: Tensor, epsilon: float, *, log_weights: Tensor | None = None
) -> float:
    r"""
    The shift tau at which the clipped mass estimated on held-out draws is epsilon.

    Solves :math:`\sum_i w_i (1 - e^{\tau - D_i})_+ = \epsilon \sum_i w_i` exactly.

    :param Tensor excess: :math:`D_i = A_i - b_i` of the held-out draws, shape ``(N,)``.
    :param epsilon: clipped mass to reach, in (0, 1).
    :param log_weights: log of the target weights w, shape ``(N,)``; the excess by default
        (a single baseline).
    :raises ValueError: where every weight is zero.

    >>> import torch
    >>> abs(calibration_shift(torch.tensor([1.0, 3.0]).log(), 0.5)) < 1e-6
    True
    """
    check_epsilon(epsilon)
    excess = as_double(excess)
    weights = normalize(excess if log_weights is None else log_weights)
    keep = weights > 0
    if not bool(keep.any()):
        raise ValueError("every weight is zero: there is nothing to calibrate on")
    points, order = excess[keep].sort(descending=True)
    weights = weights[keep][order]
    mass = weights.cumsum(0)
    # Relative to each point: sum of w e^{-D} over the larger ones, kept in logarithms.
    log_rate = (weights.log() - points).logcumsumexp(0)
    lost_at_next = mass[:-1] - (points[1:] + log_rate[:-1]).exp()
    segment = int((lost_at_next < epsilon).sum())
    return float((mass[segment] - epsilon).log() - log_rate[segment])


def calibrate(
    baseline: Baseline,
    A: Tensor,
    epsilon: float,
    *,
    log_weights: Tensor | None = None,
    upper_bound: float = math.inf,
) -> Baseline:
    """
    Shifts a baseline until the clipped mass on held-out draws is epsilon.

    The floor at log Z and the bound on A still hold, so the clipped mass may end below epsilon.

    :param baseline: what to shift.
    :param Tensor A: held-out draws of the log weight under the base, shape ``(N,)``.
    :param epsilon: clipped mass to reach.
    :param log_weights: log importance weights of the draws, if they are not from the base.
    :param upper_bound: a sure bound on A.
    :raises ValueError: where every weight is zero.

    >>> import torch
    >>> held_out = torch.tensor([1.0, 3.0]).log()
    >>> from pyro_tilt.ops.baselines import Baseline
    >>> start = Baseline(value=0.0, rule="chernoff", log_z=0.0)
    >>> round(calibrate(start, held_out, 0.25).value, 6) == round(math.log(2.0), 6)
    True
    """
    A, _ = checked_draws(A, log_weights)
    target = A if log_weights is None else A + as_double(log_weights)
    shift = calibration_shift(A - baseline.value, epsilon, log_weights=target)
    value = clip(baseline.value + shift, baseline.log_z, upper_bound)
    return dataclasses.replace(
        baseline,
        value=value,
        shift=baseline.shift + value - baseline.value,
        clipped_mass=estimated_clipped_mass(A, value, log_weights),
    )
