# SPDX-License-Identifier: Apache-2.0
r"""The weights that correct a clipped chain, with whatever values, to the true joint tilt.

A chain that accepted :math:`x_t` from :math:`y` by :math:`\min(1, e^{A_t - b_t})` has the law
:math:`p(x_t \mid y)\, e^{\min(A_t, b_t)} / Z_b(y)` at that step, so that

.. math:: W = \sum_t g_t + \sum_t \bigl[\log Z_b(y) - \min(A_t, b_t)\bigr]

with the true log factors :math:`g_t` weighs its path exactly. The normaliser may be replaced by an
unbiased estimate that is independent of :math:`x_t`. The number of proposals to the first
acceptance gives none: :math:`E[1/N]` exceeds the acceptance rate. With :math:`N_2` the proposals
to the second one, :math:`E[1/(N_2 - 1)] = Z_b e^{-b}` (Haldane 1945), and where the first
acceptance must come within m proposals, and the weight is zero otherwise,
:math:`1/\min(m, N_2 - 1)`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_tilt.infer.stepwise.rounds import Accepted

__all__ = ["log_normalizer_estimate", "path_weight_increment"]


def log_normalizer_estimate(
    baseline: Tensor, second: Tensor, max_proposals: int | None = None
) -> Tensor:
    r"""
    Log of an unbiased estimate of :math:`Z_b`, to be counted zero for capped chains.

    :param baseline: b, shape (n,).
    :param second: proposals to the second acceptance, shape (n,), at least 2.
    :param max_proposals: the cap on the first one.

    >>> log_normalizer_estimate(torch.zeros(1), torch.tensor([3])).exp().item()
    0.5
    """
    rest = second - 1 if max_proposals is None else (second - 1).clamp(max=max_proposals)
    return baseline - rest.to(baseline.dtype).log()


def path_weight_increment(
    found: Accepted, baseline: Tensor, log_factors: Tensor | None, max_proposals: int | None
) -> Tensor:
    """
    What one step adds to the log weight of its chain, -inf for a capped one.

    :param found: what the chains accepted.
    :param baseline: b, shape (n,).
    :param log_factors: the true log factors of the step, shape (n,).
    """
    added = log_normalizer_estimate(baseline, found.second.clamp(min=2), max_proposals)
    added = added - torch.minimum(found.log_weights, baseline)
    if log_factors is not None:
        added = added + log_factors.to(added)
    return added.masked_fill(found.capped, -torch.inf)
