# SPDX-License-Identifier: Apache-2.0
"""Resampling schemes: ancestors drawn in proportion to weights.

Every scheme is unbiased: item i is chosen ``num * w_i`` times on average. Points are located in a
float64 cumulative sum; an item of weight zero is never chosen and no index leaves the range,
whatever the rounding.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .importance import as_double

__all__ = ["multinomial", "residual", "stratified", "systematic"]

# More than the rounding of one product, far less than the distance of two points.
_BEYOND = 1.0 + 2.0**-50


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
    return by_weight["systematic"](_weights(log_weights), num, generator)


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
    return by_weight["stratified"](_weights(log_weights), num, generator)


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
    return by_weight["multinomial"](_weights(log_weights), num, generator)


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
    return by_weight["residual"](_weights(log_weights), num, generator)


def _weights(log_weights: Tensor) -> Tensor:
    """The weights relative to the largest one."""
    if log_weights.dim() != 1:
        raise ValueError(f"log_weights must have shape (N,), got {tuple(log_weights.shape)}")
    top = float(log_weights.max()) if len(log_weights) else -math.inf
    if math.isnan(top) or top == math.inf:
        raise ValueError("log_weights hold a nan or +inf")
    if top == -math.inf:
        raise ValueError(f"all {len(log_weights)} weights are zero: there is nothing to resample")
    return (as_double(log_weights) - top).exp_()


def _systematic(weights: Tensor, num: int, generator: torch.Generator | None) -> Tensor:
    uniform = _uniforms(1, weights, generator)
    items, scaled = _scaled(weights, num)
    return _slots(items, scaled.sub_(uniform).ceil_().long(), num)


def _stratified(weights: Tensor, num: int, generator: torch.Generator | None) -> Tensor:
    uniforms = _uniforms(num, weights, generator)
    items, scaled = _scaled(weights, num)
    if num == 0:
        return torch.zeros(0, dtype=torch.int64, device=weights.device)
    stratum = scaled.long().clamp_(max=num - 1)
    return _slots(items, stratum + (uniforms[stratum] < scaled - stratum), num)


def _multinomial(weights: Tensor, num: int, generator: torch.Generator | None) -> Tensor:
    items = weights.nonzero().squeeze(-1)
    sums = weights[items].cumsum(0)
    points = _uniforms(num, weights, generator) * sums[-1]
    found = torch.searchsorted(sums, points, right=True)
    return items[found.clamp_(max=len(items) - 1)]


def _residual(weights: Tensor, num: int, generator: torch.Generator | None) -> Tensor:
    expected = weights * (num / weights.sum())
    copies = expected.floor()
    certain = torch.arange(len(copies), device=copies.device).repeat_interleave(copies.long())
    remaining = num - len(certain)
    if remaining <= 0:
        return certain[:num]
    return torch.cat([certain, _multinomial(expected - copies, remaining, generator)])


by_weight: dict[str, Callable[[Tensor, int, torch.Generator | None], Tensor]] = {
    "systematic": _systematic,
    "stratified": _stratified,
    "multinomial": _multinomial,
    "residual": _residual,
}
"""The schemes as functions of float64 weights, some positive, none nan, of any sum."""


def _scaled(weights: Tensor, num: int) -> tuple[Tensor | None, Tensor]:
    """
    The cumulative sum as a number of points, ending just beyond ``num``.

    Sums that run in parallel need not be equal over a weight of zero; there these are left out.
    """
    items = None if weights.is_cpu else weights.nonzero().squeeze(-1)
    sums = (weights if items is None else weights[items]).cumsum(0)
    return items, sums.mul_(num * _BEYOND / sums[-1])


def _slots(items: Tensor | None, below: Tensor, num: int) -> Tensor:
    """
    The item at each of ``num`` points, from how many points lie below each sum.

    The item of point k is the number of sums with at most k points below them, so that counting
    takes the place of a search.
    """
    found = torch.bincount(below.clamp_(0, num), minlength=num + 1)[:num].cumsum(0)
    return found if items is None else items[found]


def _uniforms(num: int, like: Tensor, generator: torch.Generator | None) -> Tensor:
    device = like.device if generator is None else generator.device
    return torch.rand(num, dtype=like.dtype, device=device, generator=generator).to(like.device)
