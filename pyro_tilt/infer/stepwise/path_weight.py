# SPDX-License-Identifier: Apache-2.0
r"""The weights that correct a clipped chain, with whatever values, to the true joint tilt.

A chain that accepted :math:`x_t` from :math:`y` by :math:`\min(1, e^{A_t - b_t})` has the law
:math:`p(x_t \mid y)\, e^{\min(A_t, b_t)} / Z_b(y)` at that step, so that

.. math:: W = \sum_t g_t + \sum_t \bigl[\log Z_b(y) - \min(A_t, b_t)\bigr]

with the true log factors :math:`g_t` weighs its path exactly. The normaliser may be replaced by an
unbiased estimate that is independent of :math:`x_t`. The number of proposals to the first
acceptance gives none: :math:`E[1/N]` exceeds the acceptance rate. With :math:`N_r` the proposals
to the r-th one, :math:`E[(r - 1)/(N_r - 1)] = Z_b e^{-b}` for :math:`r \ge 2` (Haldane 1945). Where
the first acceptance must come within m proposals, and the weight is zero otherwise, the unbiased
estimate is

.. math:: \binom{N_r - 2}{r - 2} \Big/ \Bigl[\binom{N_r - 1}{r - 1}
    - \binom{N_r - 1 - m}{r - 1}\Bigr].

Fresh proposals from :math:`y` give another, :math:`\frac1k \sum_i e^{\min(A_i, b)}`, which varies
less than as many proposals spent on acceptances.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_tilt.infer.stepwise.rounds import Accepted
from pyro_tilt.ops.importance import log_mean_exp

__all__ = ["fresh_weight_increment", "log_normalizer_estimate", "path_weight_increment"]


def log_normalizer_estimate(
    baseline: Tensor, count: Tensor, acceptances: int = 2, max_proposals: int | None = None
) -> Tensor:
    r"""
    Log of an unbiased estimate of :math:`Z_b`, to be counted zero for capped chains.

    :param baseline: b, shape (n,).
    :param count: proposals to the last acceptance, shape (n,), at least ``acceptances``.
    :param acceptances: r, at least 2.
    :param max_proposals: the cap on the first one.

    >>> log_normalizer_estimate(torch.zeros(1), torch.tensor([3])).exp().item()
    0.5
    """
    rest, drawn = (count - 1).to(baseline.dtype), acceptances - 1
    estimate = baseline + math.log(drawn) - rest.log()
    if max_proposals is None:
        return estimate
    beyond = (rest - max_proposals).clamp(min=drawn)
    missed = (_log_binomial(beyond, drawn) - _log_binomial(rest, drawn)).exp()
    missed = missed.masked_fill(rest - max_proposals < drawn, 0.0)
    return estimate - torch.log1p(-missed)


def path_weight_increment(
    found: Accepted,
    baseline: Tensor,
    log_factors: Tensor | None,
    acceptances: int,
    max_proposals: int | None,
) -> Tensor:
    """
    What one step adds to the log weight of its chain, -inf for a capped one.

    :param found: what the chains accepted.
    :param baseline: b, shape (n,).
    :param log_factors: the true log factors of the step, shape (n,).
    :param acceptances: how many were asked for.
    :param max_proposals: the cap on the first one.
    """
    count = found.later.clamp(min=acceptances)
    estimate = log_normalizer_estimate(baseline, count, acceptances, max_proposals)
    return _increment(estimate, found, baseline, log_factors)


def fresh_weight_increment(
    found: Accepted, baseline: Tensor, log_factors: Tensor | None, A: Tensor
) -> Tensor:
    """
    As :func:`path_weight_increment`, without a cap, from proposals that serve nothing else.

    :param found: what the chains accepted.
    :param baseline: b, shape (n,).
    :param log_factors: the true log factors of the step, shape (n,).
    :param A: of fresh proposals, shape (n, k).
    """
    estimate = log_mean_exp(torch.minimum(A, baseline.unsqueeze(-1)))
    return _increment(estimate, found, baseline, log_factors)


def _increment(
    estimate: Tensor, found: Accepted, baseline: Tensor, log_factors: Tensor | None
) -> Tensor:
    added = estimate - torch.minimum(found.log_weights, baseline)
    if log_factors is not None:
        added = added + log_factors.to(added)
    return added.masked_fill(found.capped, -torch.inf)


def _log_binomial(n: Tensor, k: int) -> Tensor:
    return torch.lgamma(n + 1.0) - torch.lgamma(n - k + 1.0) - math.lgamma(k + 1)
