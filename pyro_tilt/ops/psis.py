# SPDX-License-Identifier: Apache-2.0
"""Pareto smoothed importance sampling, batched over rows of log weights.

Vehtari, Simpson, Gelman, Yao and Gabry 2024 (arXiv 1507.02646), with the
generalised Pareto fit of Zhang and Stephens 2009 and a weak prior on its shape.
"""

import math

import torch
from torch import Tensor

from .importance import as_double

__all__ = ["khat_threshold", "pareto_smooth"]

# Fewer tail weights than this fit no Pareto law.
MIN_TAIL = 5
# Most float64 numbers held at once by the fit.
FIT_ENTRIES = 4_000_000
# From this length on a row is sifted by a cutoff before its largest entries are sorted out.
SIFT_LENGTH, SIFT_PROBE = 20_000, 2048


def khat_threshold(num: int) -> float:
    r"""
    The shape above which ``num`` draws are too few, :math:`\min(0.7, 1 - 1/\log_{10} N)`.

    :param int num: number of weights N.

    >>> khat_threshold(100), khat_threshold(100_000)
    (0.5, 0.7)
    """
    return min(0.7, 1.0 - 1.0 / math.log10(num)) if num > 1 else -math.inf


def tail_length(num: int) -> int:
    r"""How many of ``num`` weights make up the tail, :math:`\lceil\min(N/5, 3\sqrt N)\rceil`."""
    return math.ceil(min(num / 5.0, 3.0 * math.sqrt(num)))


def pareto_smooth(log_weights: Tensor, *, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    r"""
    Replaces the largest weights by the quantiles of a generalised Pareto law fitted to them.

    The tail are the :math:`M = \min(N/5, 3\sqrt N)` largest weights; smoothed weights are capped
    at the largest raw one. The shape k tells how many moments the weights have (about 1/k);
    compare it with :func:`khat_threshold`.

    :param Tensor log_weights: log weights, shape ``(..., N)``; ``-inf`` is a weight of zero.
    :param Tensor out: a contiguous float64 tensor of that shape to write the smoothed ones to.
    :return: smoothed log weights in float64, same shape and scale (not normalised), and k of
        shape ``(...)``. Where the tail holds fewer than 5 weights (small N, few positive
        weights) nothing is smoothed and k = inf; where the tail is flat (its weights are
        all equal, so there is no tail) nothing is smoothed and k = nan.
    :raises ValueError: for a nan or +inf.

    >>> smoothed, k = pareto_smooth(torch.arange(1000).div(1000).log())
    >>> smoothed.shape, bool(k < khat_threshold(1000))
    (torch.Size([1000]), True)
    """
    values = as_double(log_weights)
    smoothed = values.clone() if out is None else out.copy_(values)
    num = smoothed.shape[-1]
    flat = smoothed.reshape(log_weights.shape[:-1].numel(), num)
    shape = flat.new_full((len(flat),), math.inf)
    if num > 1 and len(flat):
        top, index = _largest(flat, min(tail_length(num) + 1, num))
        # The maximum of a nan is nan.
        if not float(top[:, 0].amax()) < math.inf:
            raise ValueError("log_weights hold a nan or +inf")
        _smooth_rows(flat, shape, top, index)
    return flat.reshape(log_weights.shape), shape.reshape(log_weights.shape[:-1])


def _largest(rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """What ``rows.topk(count)`` returns; a long row is sifted by a quantile of a part of it."""
    num = rows.shape[-1]
    if len(rows) > 1 or num < SIFT_LENGTH:
        return rows.topk(count)
    row = rows[0]
    probe = row[:: num // SIFT_PROBE]
    # At twice the share that is wanted a few probes in a thousand let too few entries through.
    cutoff = probe.topk(math.ceil(2 * count * len(probe) / num)).values[-1]
    # A nan is not below the cutoff and so among the kept.
    kept = (row <= cutoff).logical_not_().nonzero().squeeze(-1)
    if len(kept) < count:
        return rows.topk(count)
    top, place = row[kept].topk(count)
    return top.unsqueeze(0), kept[place].unsqueeze(0)


def _smooth_rows(rows: Tensor, shape: Tensor, top: Tensor, index: Tensor) -> None:
    """Smooths ``rows`` in place and writes ``shape``; ``top`` are the tail and the cutoff."""
    peak = top[:, :1].masked_fill(top[:, :1] == -math.inf, 0.0)
    relative = top - peak
    tiny = math.log(torch.finfo(rows.dtype).tiny)
    cutoff = relative[:, -1:].clamp(min=tiny)
    lengths = (relative[:, :-1] > cutoff).sum(-1)
    shape.masked_fill_(relative[:, -1] == 0.0, math.nan)
    counts = lengths.tolist()
    for length in sorted(set(counts)):
        if length < MIN_TAIL:
            continue
        grid = 30 + math.isqrt(length)
        group = torch.tensor([row for row, count in enumerate(counts) if count == length])
        for chosen in group.to(rows.device).split(max(1, FIT_ENTRIES // (grid * length))):
            whole = len(chosen) == len(rows)
            part = slice(None) if whole else chosen
            tail = _smooth_tail(relative[part, :length].flip(-1), cutoff[part].exp(), grid)
            shape[part] = tail[1].nan_to_num_(nan=math.inf)
            values, places = tail[0].add_(peak[part]).flip(-1), index[part, :length]
            if whole:
                rows.scatter_(-1, places, values)
            else:
                rows[chosen.unsqueeze(-1), places] = values


def _smooth_tail(tail: Tensor, floor: Tensor, grid: int) -> tuple[Tensor, Tensor]:
    """Quantiles in place of rows of increasing log weights above a cutoff, and their shapes."""
    k, sigma = _fit_pareto(tail.exp().sub_(floor), grid)
    quantiles = _pareto_quantiles(tail.shape[-1], k, sigma).add_(floor).log_().clamp_(max=0.0)
    fitted = (k.isfinite() & (sigma > 0)).unsqueeze(-1)
    return torch.where(fitted, quantiles, tail), k


def _fit_pareto(excess: Tensor, grid: int) -> tuple[Tensor, Tensor]:
    r"""
    Shape and scale of a generalised Pareto law (Zhang and Stephens 2009).

    The profile likelihood of :math:`b = k/\sigma` is averaged over a grid, and the shape is
    shrunk towards 1/2 with the weight of ten observations.

    :param Tensor excess: increasing excesses over the cutoff, shape ``(R, n)``.
    :return: k and sigma, shape ``(R,)`` each.
    """
    n = excess.shape[-1]
    steps = torch.arange(1, grid + 1, dtype=excess.dtype, device=excess.device)
    b = (1.0 - (grid / (steps - 0.5)).sqrt()) / (3.0 * excess[:, int(n / 4 + 0.5) - 1, None])
    b = b + 1.0 / excess[:, -1:]
    k = torch.log1p_(b.unsqueeze(-1).neg() * excess.unsqueeze(-2)).mean(-1)
    weights = torch.softmax(n * ((-b / k).log() - k - 1.0), -1)
    weights = weights.masked_fill(weights < 10 * torch.finfo(excess.dtype).eps, 0.0)
    b_mean = (b * weights).sum(-1, keepdim=True) / weights.sum(-1, keepdim=True)
    k_mean = torch.log1p(-b_mean * excess).mean(-1)
    return (n * k_mean + 5.0) / (n + 10.0), -k_mean / b_mean.squeeze(-1)


def _pareto_quantiles(n: int, k: Tensor, sigma: Tensor) -> Tensor:
    """Quantiles at (i + 1/2)/n of the law on the excesses, shape ``(R, n)``."""
    points = (torch.arange(n, dtype=k.dtype, device=k.device) + 0.5) / n
    k, exponential = k.unsqueeze(-1), -torch.log1p(-points)
    near_zero = k.abs() < torch.finfo(k.dtype).eps
    power = torch.expm1(k * exponential) / k.masked_fill(near_zero, 1.0)
    return torch.where(near_zero, exponential, power) * sigma.unsqueeze(-1)
