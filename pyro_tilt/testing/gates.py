# SPDX-License-Identifier: Apache-2.0
"""Gates of the statistical tests, each with a false-alarm rate of at most 1e-5."""

from __future__ import annotations

import torch
from scipy import stats
from torch import Tensor

__all__ = ["P_VALUE", "Z_SCORE", "chi_square", "hotelling"]

P_VALUE = 1e-5
Z_SCORE = 4.5


def chi_square(rows: Tensor, law: Tensor) -> float:
    """The p-value of draws under a law of finitely many outcomes.

    Outcomes of fewer than five expected draws count as one, so that the chi-square law is near.
    Draws of an outcome without mass have a p-value of zero.

    :param rows: the outcome of each draw, integers, shape (N,).
    :param law: probabilities of the outcomes up to a constant, shape (K,).

    >>> rows = torch.arange(100) % 2
    >>> chi_square(rows, torch.tensor([0.5, 0.5])), chi_square(rows, torch.tensor([1.0, 0.0]))
    (1.0, 0.0)
    """
    law = law.double() / law.double().sum()
    counts = torch.bincount(rows, minlength=len(law)).double()
    # Differences of powers are zero up to rounding.
    kept = law > 1e-12
    if len(counts) > len(law) or bool(counts[~kept].any()):
        return 0.0
    expected, counts = law[kept] * len(rows), counts[kept]
    rare = expected < 5.0
    if bool(rare.any()):
        expected = torch.cat([expected[~rare], expected[rare].sum().reshape(1)])
        counts = torch.cat([counts[~rare], counts[rare].sum().reshape(1)])
    if len(expected) == 1:
        return 1.0
    statistic = float(((counts - expected).square() / expected).sum())
    return float(stats.chi2.sf(statistic, len(expected) - 1))


def hotelling(rows: Tensor, exact: Tensor) -> None:
    """Gates the mean of independent rows against an exact vector by Hotelling's T squared.

    :param rows: independent estimates, shape (M, D), M well above D.
    :param exact: what they should average to, shape (D,).

    >>> generator = torch.Generator().manual_seed(0)
    >>> hotelling(torch.randn(50, 2, generator=generator), torch.zeros(2))
    """
    rows = rows.double()
    count, size = rows.shape
    gap = rows.mean(0) - exact
    covariance = torch.cov(rows.T)
    squared = count * gap @ torch.linalg.solve(covariance, gap)
    statistic = float(squared) * (count - size) / (size * (count - 1))
    assert stats.f.sf(statistic, size, count - size) > P_VALUE
