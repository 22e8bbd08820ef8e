# SPDX-License-Identifier: Apache-2.0
"""Log moment generating functions estimated from draws."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .importance import as_double, effective_sample_size, log_mean_exp

__all__ = ["MIN_ESS", "LogMgf", "log_mgf"]

# Below about this effective sample size a plug-in log-MGF is biased low by more than 0.05.
MIN_ESS = 50.0
# Most float64 numbers held at once.
ENTRIES = 2_000_000


@dataclass(frozen=True)
class LogMgf:
    """
    Estimates on a grid of s.

    :ivar s: the grid, shape ``(K,)``.
    :ivar value: log-MGF at each s, shape ``(..., K)``.
    :ivar effective_sample_size: of the terms behind each value, same shape.
    """

    s: Tensor
    value: Tensor
    effective_sample_size: Tensor

    def trusted(self, min_ess: float = MIN_ESS) -> Tensor:
        """Where the effective sample size reaches ``min_ess``, same shape as ``value``."""
        return self.effective_sample_size >= min_ess


def log_mgf(
    A: Tensor, s: Tensor | float, *, log_weights: Tensor | None = None, normalize: bool = True
) -> LogMgf:
    r"""
    Estimates :math:`\psi(s) = \log E\, e^{sA}` from draws of A.

    A plug-in estimate is biased low, and badly so once few draws carry the mean;
    so the effective sample size of the terms :math:`e^{sA}` stands beside each value.

    :param Tensor A: draws, shape ``(..., N)``; ``-inf`` is legal and counts as 0 where s > 0.
    :param s: exponents, shape ``(K,)`` or a number (which gives K = 1).
    :param log_weights: log importance weights of the draws, shape ``(..., N)``; equal by default.
    :param normalize: divide by the sum of the weights rather than by their number (their mean
        is known to be 1).
    :return: :class:`LogMgf`, in float64.
    :raises ValueError: for a nan or +inf in ``A``, or for -inf beside s < 0.

    >>> log_mgf(torch.zeros(100), torch.tensor([1.0, 2.0])).value.tolist()
    [0.0, 0.0]
    """
    A = as_double(A)
    grid = torch.as_tensor(s, dtype=A.dtype, device=A.device).reshape(-1)
    if bool((A.isnan() | A.isposinf()).any()):
        raise ValueError("A holds a nan or +inf")
    if bool(grid.lt(0).any()) and bool(A.isneginf().any()):
        raise ValueError("the log-MGF at s < 0 is infinite where A = -inf")
    weights = None if log_weights is None else as_double(log_weights).expand(A.shape)
    chunk = max(1, ENTRIES // max(1, A.numel()))
    values, sizes = [], []
    for part in grid.split(chunk):
        # 0 * -inf is 0 here: e^{0 A} = 1.
        terms = (part.unsqueeze(-1) * A.unsqueeze(-2)).nan_to_num(
            nan=0.0, posinf=math.inf, neginf=-math.inf
        )
        terms = terms if weights is None else terms + weights.unsqueeze(-2)
        values.append(log_mean_exp(terms))
        sizes.append(effective_sample_size(terms))
    value = torch.cat(values, -1) if values else A.new_zeros((*A.shape[:-1], 0))
    size = torch.cat(sizes, -1) if sizes else torch.zeros_like(value)
    if weights is not None and normalize:
        value = value - log_mean_exp(weights).unsqueeze(-1)
    return LogMgf(grid, value, size)
