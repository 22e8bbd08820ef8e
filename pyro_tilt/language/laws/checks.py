# SPDX-License-Identifier: Apache-2.0
"""Arguments of the laws, checked and in logarithms."""

from __future__ import annotations

import math
import numbers

import torch
from torch import Tensor

from pyro_tilt.ops.importance import as_double
from pyro_tilt.rewards import log_tilt

__all__ = [
    "check_beta",
    "check_n",
    "compressed",
    "log_base",
    "log_one_minus_power",
    "log_weights",
    "paired",
    "returned",
]

_SLACK = 1e-4
# Log weights further apart than this are as good as infinitely far.
_FAR = 45.0


def check_n(n: int) -> int:
    """The number of draws; ``ValueError`` unless it is an integer of at least 1."""
    whole = isinstance(n, numbers.Real) and not isinstance(n, bool) and n % 1 == 0
    if not whole or n < 1:
        raise ValueError(f"n must be an integer of at least 1, got {n!r}")
    return int(n)


def check_beta(beta: float, *, positive: bool = False) -> float:
    """The inverse temperature; ``ValueError`` unless it is finite (and positive)."""
    if not math.isfinite(beta) or (positive and beta <= 0.0):
        kind = "positive and finite" if positive else "finite"
        raise ValueError(f"beta must be {kind}, got {beta!r}")
    return float(beta)


def log_base(base: Tensor, log: bool, *, name: str = "base") -> Tensor:
    """Log probabilities in double precision, normalised over the last dimension."""
    if not isinstance(base, Tensor) or not base.is_floating_point() or base.dim() == 0:
        raise ValueError(
            f"{name} must be a floating point tensor of probabilities over its last dimension"
        )
    values = as_double(base)
    if not log:
        if not bool((values >= 0).all()):
            raise ValueError(f"{name} holds NaN or a negative probability")
        values = values.log()
    total = values.logsumexp(-1, keepdim=True)
    if not bool((total.abs() < _SLACK).all()):
        raise ValueError(
            f"{name} must be probabilities that sum to 1 over the last dimension; sums go from "
            f"{float(total.exp().min()):.6g} to {float(total.exp().max()):.6g}"
        )
    return values - total


def paired(base: Tensor, rewards: Tensor, *, name: str = "rewards") -> tuple[Tensor, Tensor]:
    """Laws and rewards of one shape; ``ValueError`` where they speak of different outcomes."""
    if not isinstance(rewards, Tensor):
        raise ValueError(f"{name} must be a tensor, got {type(rewards).__name__}")
    rewards = as_double(rewards)
    if rewards.dim() == 0 or rewards.shape[-1] != base.shape[-1]:
        raise ValueError(
            f"{name} must give one number for each of the {base.shape[-1]} outcomes, got shape "
            f"{tuple(rewards.shape)}"
        )
    if rewards.isnan().any() or (rewards == math.inf).any():
        raise ValueError(f"{name} hold NaN or +inf; a reward must be a number or -inf")
    try:
        base, rewards = torch.broadcast_tensors(base, rewards)
    except RuntimeError as error:
        raise ValueError(
            f"the batch shapes of base {tuple(base.shape)} and {name} {tuple(rewards.shape)} do "
            "not fit"
        ) from error
    return base, rewards


def log_weights(base: Tensor, rewards: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Laws and log tilts of one shape, outcomes without base mass at ``-inf``."""
    base, rewards = paired(base, rewards)
    tilts = log_tilt(rewards, check_beta(beta))
    return base, tilts.masked_fill(base == -math.inf, -math.inf)


def compressed(weights: Tensor, n: int) -> Tensor:
    """
    Log weights from 0 down, with the gaps between neighbours cut to what still matters.

    Large logarithms would lose the digits that small gaps need. A draw whose weight is below
    another by a factor of e^45 / n is never chosen beside it, to double precision.
    """
    ordered, order = weights.sort(-1, descending=True)
    gaps = (ordered[..., :-1] - ordered[..., 1:]).nan_to_num(nan=0.0, posinf=math.inf)
    cut = gaps.clamp(max=_FAR + math.log(n)).masked_fill(ordered[..., 1:] == -math.inf, math.inf)
    start = torch.zeros_like(ordered[..., :1]).masked_fill(ordered[..., :1] == -math.inf, -math.inf)
    levels = torch.cat([start, start - cut.cumsum(-1)], -1)
    return torch.empty_like(weights).scatter(-1, order, levels)


def log_one_minus_power(log_x: Tensor, n: int) -> Tensor:
    r"""
    :math:`\log(1 - (1 - x)^n)` from :math:`\log x`, to full precision even where x underflows.

    :param log_x: at most 0 up to rounding.
    :param n: the power.
    """
    x = log_x.clamp(max=0.0).exp()
    power = -torch.expm1(n * torch.log1p(-x))
    return torch.where(log_x < -600.0, math.log(n) + log_x, power.log())


def returned(log_law: Tensor, like: Tensor, log: bool) -> Tensor:
    """A law as the caller gave its base: in logarithms or not, in its dtype."""
    return (log_law if log else log_law.exp()).to(like.dtype)
