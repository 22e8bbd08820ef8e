# SPDX-License-Identifier: Apache-2.0
"""Sums over importance weights given in logarithms.

Everything works along the last dimension, in float64 (float32 on devices
without it), and takes weights of zero (``-inf``) as they come.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class WeightSummary(NamedTuple):
    """What one pass over the log weights tells: see :func:`summarize`."""

    log_evidence: Tensor
    error: Tensor
    effective_sample_size: Tensor


def as_double(values: Tensor) -> Tensor:
    """``values`` in float64, or in float32 on a device that has no float64."""
    return values.to(torch.float32 if values.device.type == "mps" else torch.float64)


def _rescaled(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """The largest log weight of each row (0 where all are -inf) and exp(log_weights - it)."""
    log_weights = as_double(log_weights)
    top = log_weights.amax(-1, keepdim=True)
    top = top.masked_fill(top == -math.inf, 0.0)
    return top.squeeze(-1), (log_weights - top).exp_()


def summarize(log_weights: Tensor, *, work: Tensor | None = None) -> WeightSummary:
    r"""
    Evidence, its error and the effective sample size, from a single pass.

    With :math:`\bar w` and :math:`s^2` the mean and (biased) variance of the
    :math:`N` weights these are :math:`\log\bar w`,
    :math:`s/(\bar w\sqrt{N-1})` and :math:`N/(1+s^2/\bar w^2)`.

    :param Tensor log_weights: log weights, shape ``(..., N)``; ``-inf`` is a weight of zero.
    :param Tensor work: a float64 tensor of that shape, whose content is lost, to work in.
    :return: a :class:`WeightSummary` of three tensors of shape ``(...)``.

    >>> ess = summarize(torch.tensor([0.0, 0.0, -torch.inf, -torch.inf])).effective_sample_size
    >>> round(ess.item(), 12)
    2.0
    """
    num = log_weights.shape[-1]
    if num == 0:
        nan = as_double(log_weights).new_full(log_weights.shape[:-1], math.nan)
        return WeightSummary(nan, nan.clone(), torch.zeros_like(nan))
    log_weights = as_double(log_weights)
    top = log_weights.amax(-1)
    zero = top == -math.inf
    # The largest probability is the largest weight over the sum of all.
    probs = torch.softmax(log_weights, -1, out=work)
    value = top - (probs.amax(-1) * num).log()
    centred = probs.sub_(1.0 / num)
    relative = torch.linalg.vecdot(centred, centred) * num
    error = (relative / (num - 1)).sqrt() if num > 1 else torch.full_like(value, math.nan)
    ess = num / (1.0 + relative)
    return WeightSummary(value.masked_fill(zero, -math.inf), error, ess.masked_fill(zero, 0.0))


def log_mean_exp(log_weights: Tensor) -> Tensor:
    r"""
    The log of the mean weight, :math:`\log \frac1N\sum_i e^{\ell_i}`.

    :param Tensor log_weights: log weights, shape ``(..., N)``.
    :return: a float64 tensor of shape ``(...)``; ``-inf`` where every weight is zero, nan where
        N = 0.

    >>> log_mean_exp(torch.tensor([1000.0, 1000.0])).item()
    1000.0
    """
    num = log_weights.shape[-1]
    return torch.logsumexp(as_double(log_weights), -1) - (math.log(num) if num else -math.inf)


def normalize(log_weights: Tensor) -> Tensor:
    r"""
    Weights (not their logs) that sum to one, :math:`w_i / \sum_j w_j`.

    :param Tensor log_weights: log weights, shape ``(..., N)``.
    :return: float64 weights of the same shape; all zero where every weight is zero.

    >>> normalize(torch.tensor([0.0, 0.0])).tolist()
    [0.5, 0.5]
    """
    if log_weights.shape[-1] == 0:
        return as_double(log_weights)
    weights = _rescaled(log_weights)[1]
    total = weights.sum(-1, keepdim=True)
    return weights.div_(total.masked_fill_(total == 0, 1.0))


def effective_sample_size(log_weights: Tensor) -> Tensor:
    r"""
    Kish's effective sample size, :math:`(\sum_i w_i)^2 / \sum_i w_i^2`.

    :param Tensor log_weights: log weights, shape ``(..., N)``.
    :return: a float64 tensor of shape ``(...)`` between 1 and N, 0 where every weight is zero.

    >>> effective_sample_size(torch.zeros(10)).item()
    10.0
    """
    return summarize(log_weights).effective_sample_size


def log_evidence(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    r"""
    The log of the mean weight and its standard error by the delta method.

    The error is :math:`\hat\sigma / (\bar w \sqrt N)` with the unbiased
    standard deviation :math:`\hat\sigma` of the weights, so it takes the
    weights for independent draws.

    :param Tensor log_weights: log weights, shape ``(..., N)``.
    :return: value and standard error, both of shape ``(...)``. The error is nan where it
        cannot be estimated (N < 2, or every weight zero; the value is then ``-inf``).

    >>> value, error = log_evidence(torch.zeros(4))
    >>> value.item(), error.item()
    (0.0, 0.0)
    """
    summary = summarize(log_weights)
    return summary.log_evidence, summary.error
