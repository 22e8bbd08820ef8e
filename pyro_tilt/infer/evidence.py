# SPDX-License-Identifier: Apache-2.0
"""The log evidence of one or several runs, and its standard error."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_tilt.ops.importance import as_double, log_evidence, log_mean_exp


def pooled_evidence(
    log_weights: Tensor,
    chain_sizes: Sequence[int],
    *,
    weighted: bool,
    log_normalizer: Tensor | None = None,
    error: Tensor | None = None,
    chain_log_normalizers: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """
    Fills in what is not given of the evidence, its error and the evidence of each chain.

    :param log_weights: raw log weights, ``(N,)``.
    :param chain_sizes: draws of each run along ``N``.
    :param weighted: whether the weights vary with the draws, so that they tell an error.
    :param log_normalizer: known log evidence.
    :param error: known standard error of it.
    :param chain_log_normalizers: known log evidence of each run.
    :returns: the value and the error (0-dim) and the values by chain, in float64; all nan where
        the evidence is given as nan: there is none.
    :raises ValueError: for a shape that does not fit.
    """
    spread = log_weights.new_tensor(math.nan)
    if log_normalizer is None or (error is None and weighted):
        value, spread = log_evidence(log_weights)
    if log_normalizer is not None:
        value = _scalar("log_normalizer", log_normalizer).to(log_weights)
    if chain_log_normalizers is not None:
        chains = as_double(torch.as_tensor(chain_log_normalizers)).to(log_weights)
        if chains.shape != (len(chain_sizes),):
            raise ValueError(
                f"chain_log_normalizers must be ({len(chain_sizes)},), one per chain; "
                f"got {tuple(chains.shape)}"
            )
    elif len(chain_sizes) == 1:
        chains = value.reshape(1)
    else:
        parts = torch.split(log_weights, list(chain_sizes))
        chains = torch.stack([log_mean_exp(part) for part in parts])
    if bool(value.isnan()):
        # Equal weights of zero are a convention, and their agreement no evidence.
        return value, torch.full_like(value, math.nan), torch.full_like(chains, math.nan)
    if error is not None:
        spread = _scalar("log_normalizer_error", error).to(log_weights)
    elif len(chain_sizes) > 1 and (weighted or chain_log_normalizers is not None):
        spread = chain_error(chains, chain_sizes)
    elif not weighted:
        spread = torch.full_like(value, math.nan)
    return value, spread, chains


def chain_error(chain_log_normalizers: Tensor, chain_sizes: Sequence[int]) -> Tensor:
    r"""
    Standard error of the pooled log evidence from the spread across independent runs.

    .. math:: \hat\sigma^2 = \frac{1}{C-1} \sum_c \frac{n_c}{N} (Z_c / \bar Z - 1)^2, \qquad
        \bar Z = \sum_c \frac{n_c}{N} Z_c,

    which is unbiased for the variance of :math:`\bar Z` where each run's variance goes as
    :math:`1/n_c`.

    :param chain_log_normalizers: log evidence of each run, ``(C,)``.
    :param chain_sizes: draws of each run.
    :returns: a 0-dim tensor, nan for fewer than two chains.

    >>> chain_error(torch.tensor([1.0, 1.0], dtype=torch.float64), (10, 20)).item()
    0.0
    """
    if len(chain_sizes) < 2:
        return chain_log_normalizers.new_tensor(math.nan)
    share = chain_log_normalizers.new_tensor(chain_sizes) / sum(chain_sizes)
    pooled = torch.logsumexp(chain_log_normalizers + share.log(), 0)
    ratio = (chain_log_normalizers - pooled).exp()
    return (share @ (ratio - 1.0) ** 2 / (len(chain_sizes) - 1)).sqrt()


def equal_log_weights(log_normalizer: Tensor, count: int) -> Tensor:
    """
    The weights of draws that follow their law: the evidence, or one where there is none.

    :param log_normalizer: log evidence (0-dim); nan where the sampler has none.
    :param count: number of draws.
    :returns: shape ``(count,)``, in float64.

    >>> equal_log_weights(torch.tensor(math.nan), 2).tolist()
    [0.0, 0.0]
    """
    value = as_double(log_normalizer)
    return torch.where(value.isnan(), torch.zeros_like(value), value).expand(count).clone()


def _scalar(name: str, value: Tensor | float) -> Tensor:
    number = torch.as_tensor(value, dtype=None if isinstance(value, Tensor) else torch.float64)
    if number.dim() != 0:
        raise ValueError(f"{name} must be a single number; got shape {tuple(number.shape)}")
    return as_double(number.detach())
