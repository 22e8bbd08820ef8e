# SPDX-License-Identifier: Apache-2.0
"""Gates of the statistical tests, each with a false-alarm rate of at most 1e-5."""

from __future__ import annotations

import torch
from scipy import stats
from torch import Tensor

__all__ = ["P_VALUE", "Z_SCORE", "hotelling"]

P_VALUE = 1e-5
Z_SCORE = 4.5


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
