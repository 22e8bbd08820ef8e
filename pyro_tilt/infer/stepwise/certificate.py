# SPDX-License-Identifier: Apache-2.0
r"""What the trajectories of a stepwise clipped sampler say about their own law.

At each step :math:`E[e^{(A - b)_+} - 1 \mid y] = \kappa/(1-\kappa) \ge \kappa \ge \mathrm{TV}`,
and the distances of the steps, averaged over the sampler's own states, add up to a bound on that of
the paths. So the mean over trajectories of :math:`C = \sum_t (e^{(A_t - b_t)_+} - 1)` bounds the
total variation from the chain with kernels :math:`\propto p(\cdot \mid y)\, e^{V_t}`.
"""

from __future__ import annotations

import math

from scipy import stats
from torch import Tensor

from pyro_tilt.infer.certificate import Certificate

__all__ = ["TARGET", "mean_upper", "stepwise_certificate"]

TARGET = "value-tilted chain"


def mean_upper(terms: Tensor, width: float, *, confidence: float) -> float:
    """
    Upper confidence bound on the mean of independent terms in [0, width].

    The empirical Bernstein bound of Maurer and Pontil 2009 (arXiv 0907.3740).

    :param terms: shape (N,).
    :param width: their range.
    :param confidence: probability with which the bound holds.

    >>> import torch
    >>> mean_upper(torch.zeros(100), 0.0, confidence=0.95)
    0.0
    """
    n = len(terms)
    if n < 2 or not math.isfinite(width):
        return math.inf
    log_term = math.log(2.0 / (1.0 - confidence))
    spread = math.sqrt(2.0 * float(terms.var()) * log_term / n)
    return float(terms.mean()) + spread + 7.0 * width * log_term / (3.0 * (n - 1))


def stepwise_certificate(
    terms: Tensor,
    capped: Tensor,
    *,
    width: float | None,
    confidence: float,
    may_cap: bool,
) -> Certificate:
    """
    The certificate that trajectories earn.

    :param terms: C of each trajectory, shape (N,).
    :param capped: trajectories with a rejected value, shape (N,).
    :param width: a sure bound on C, fixed before the run; None where none is known.
    :param confidence: of the bound, shared evenly with that on the share of capped trajectories.
    :param may_cap: whether the run had a cap.
    """
    excludes = (
        "the error of the values: how far the value-tilted chain is from the joint tilt, which "
        "path weights correct"
    )
    if width == 0.0 and not may_cap:
        return Certificate(target=TARGET, law="exact", covers="all steps", excludes=excludes)
    n, num_capped = len(terms), int(capped.sum())
    covers = "unweighted trajectories; clipping at the baselines of all steps" + (
        f"; {num_capped} capped trajectories" if num_capped else ""
    )
    estimate = min(1.0, float(terms.mean()) + num_capped / n)
    if width is None:
        return Certificate(
            target=TARGET,
            law="consistent",
            budget="num_inner, with epsilon to 0,",
            estimated_total_variation=estimate,
            covers=covers,
            excludes=f"{excludes}; values larger than any that was drawn, for want of value_bound",
        )
    part = 0.5 + 0.5 * confidence if may_cap else confidence
    upper = mean_upper(terms, width, confidence=part)
    if may_cap:
        upper += _share_upper(num_capped, n, part)
    return Certificate(
        target=TARGET,
        law="bounded",
        total_variation=min(1.0, upper),
        confidence=confidence,
        estimated_total_variation=estimate,
        covers=covers,
        excludes=excludes,
    )


def _share_upper(count: int, num: int, confidence: float) -> float:
    """Clopper and Pearson's upper bound on a share."""
    return float(stats.beta.ppf(confidence, count + 1, num - count)) if count < num else 1.0
