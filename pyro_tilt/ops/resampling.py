# SPDX-License-Identifier: Apache-2.0
"""Resampling schemes: ancestors drawn in proportion to weights.

Every scheme is unbiased: item i is chosen ``num * w_i`` times on average.
Points are located in a float64 cumulative sum over the items of positive
weight, so an item of weight zero is never chosen and no index leaves the
range, whatever the rounding.
"""

import math

import torch
from torch import Tensor

from .importance import as_double

__all__ = ["multinomial", "residual", "stratified", "systematic"]


def systematic(log_weights: Tensor, num: int, generator: torch.Generator | None = None) -> Tensor:
    r"""
    Systematic resampling: the points :math:`(k + u)/n`, one uniform u for all.

    Item i is chosen :math:`\lfloor n w_i\rfloor` or :math:`\lceil n w_i\rceil` times.

    :param Tensor log_weights: log weights, shape ``(N,)``.
    :param int num: ancestors to draw.
    :param generator: source of the uniforms; the global one by default.
    :return: ancestors in increasing order, shape ``(num,)``.
    :raises ValueError: for a nan or +inf, or where every weight is zero.

    >>> systematic(torch.tensor([0.0, -torch.inf, 0.0]), 4).tolist()
    [0, 0, 2, 2]
    """
    items, sums = _cumulative(log_weights)
    return _pick(items, sums, num, _uniforms(1, sums, generator).expand(num))


def stratified(log_weights: Tensor, num: int, generator: torch.Generator | None = None) -> Tensor:
    r"""
    Stratified resampling: the points :math:`(k + u_k)/n`, a uniform of its own for each.

    :param Tensor log_weights: log weights, shape ``(N,)``.
    :param int num: ancestors to draw.
    :param generator: source of the uniforms; the global one by default.
    :return: ancestors in increasing order, shape ``(num,)``.
    :raises ValueError: for a nan or +inf, or where every weight is zero.

    >>> stratified(torch.tensor([0.0, -torch.inf, 0.0]), 4).tolist()
    [0, 0, 2, 2]
    """
    items, sums = _cumulative(log_weights)
    return _pick(items, sums, num, _uniforms(num, sums, generator))


def multinomial(log_weights: Tensor, num: int, generator: torch.Generator | None = None) -> Tensor:
    """
    Multinomial resampling: independent ancestors.

    :param Tensor log_weights: log weights, shape ``(N,)``.
    :param int num: ancestors to draw.
    :param generator: source of the uniforms; the global one by default.
    :return: ancestors in the order drawn, shape ``(num,)``.
    :raises ValueError: for a nan or +inf, or where every weight is zero.

    >>> multinomial(torch.tensor([-torch.inf, 0.0]), 3).tolist()
    [1, 1, 1]
    """
    items, sums = _cumulative(log_weights)
    return _search(items, sums, _uniforms(num, sums, generator))


def residual(log_weights: Tensor, num: int, generator: torch.Generator | None = None) -> Tensor:
    r"""
    Residual resampling: :math:`\lfloor n w_i\rfloor` copies of each, the rest multinomial.

    :param Tensor log_weights: log weights, shape ``(N,)``.
    :param int num: ancestors to draw.
    :param generator: source of the uniforms; the global one by default.
    :return: ancestors, the certain copies first, shape ``(num,)``.
    :raises ValueError: for a nan or +inf, or where every weight is zero.

    >>> residual(torch.tensor([0.0, -torch.inf, 0.0]), 4).tolist()
    [0, 0, 2, 2]
    """
    _check(log_weights)
    expected = num * torch.softmax(as_double(log_weights), -1)
    copies = expected.floor()
    certain = torch.arange(len(copies), device=copies.device).repeat_interleave(copies.long())
    remaining = num - len(certain)
    if remaining == 0:
        return certain
    rest = multinomial((expected - copies).log(), remaining, generator=generator)
    return torch.cat([certain, rest])


def _check(log_weights: Tensor) -> None:
    if log_weights.dim() != 1:
        raise ValueError(f"log_weights must have shape (N,), got {tuple(log_weights.shape)}")
    top = float(log_weights.max()) if len(log_weights) else -math.inf
    if math.isnan(top) or top == math.inf:
        raise ValueError("log_weights hold a nan or +inf")
    if top == -math.inf:
        raise ValueError(f"all {len(log_weights)} weights are zero: there is nothing to resample")


def _cumulative(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Items of positive weight, and the cumulative sum of their weights, ending near 1."""
    _check(log_weights)
    weights = torch.softmax(as_double(log_weights), -1)
    items = weights.nonzero().squeeze(-1)
    return items, weights[items].cumsum(0)


def _search(items: Tensor, sums: Tensor, points: Tensor) -> Tensor:
    found = torch.searchsorted(sums, points * sums[-1], right=True)
    return items[found.clamp_(max=len(items) - 1)]


def _pick(items: Tensor, sums: Tensor, num: int, uniforms: Tensor) -> Tensor:
    """
    Items at the points ``(k + uniforms[k]) / num``.

    One point lies in each stratum, so those below a sum are counted at once, without a search.
    """
    if num == 0:
        return items[:0]
    scaled = sums * (num / sums[-1])
    stratum = scaled.long().clamp_(max=num - 1)
    below = stratum + (uniforms[stratum] < scaled - stratum)
    below[-1] = num
    copies = below.diff(prepend=below.new_zeros(1))
    return items.repeat_interleave(copies, output_size=num)


def _uniforms(num: int, like: Tensor, generator: torch.Generator | None) -> Tensor:
    device = like.device if generator is None else generator.device
    return torch.rand(num, dtype=like.dtype, device=device, generator=generator).to(like.device)
