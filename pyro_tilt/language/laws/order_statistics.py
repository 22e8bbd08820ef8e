# SPDX-License-Identifier: Apache-2.0
"""The law of the largest of several draws."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_tilt.language.laws.checks import (
    check_n,
    log_base,
    log_one_minus_power,
    paired,
    returned,
)

__all__ = ["best_of_n", "reward_classes"]


def best_of_n(base: Tensor, rewards: Tensor, n: int, *, log: bool = False) -> Tensor:
    r"""
    The law of the draw with the largest reward among ``n`` independent ones.

    With C(y) the class of outcomes that share the reward of y and F the distribution function of
    the reward under the base,

    .. math:: P_n(y) = \frac{p(y)}{p(C(y))} \bigl(F(r_y)^n - F(r_y^-)^n\bigr),

    whichever of equal rewards is kept: the first, or one at random (Beirami et al. 2024, arXiv
    2401.01879, for rewards without ties). A reward of -inf is the lowest class.

    :param base: probabilities of outcomes, shape ``(..., K)``.
    :param rewards: of the outcomes, a shape that broadcasts with ``base``.
    :param n: number of draws.
    :param log: whether ``base`` and the result are log probabilities.
    :returns: probabilities, shape ``(..., K)``.
    :raises ValueError: for n below 1, probabilities that do not sum to 1, NaN, other shapes.

    >>> best_of_n(torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.0, 1.0, 1.0]), 2).tolist()
    [0.25, 0.375, 0.375]
    """
    check_n(n)
    logs, values = paired(log_base(base, log), rewards)
    log_class, log_upto = reward_classes(logs, values)
    # F(r)^n - F(r-)^n = F(r)^n (1 - (1 - x)^n) with x the share of the class in F(r).
    gained = n * log_upto + log_one_minus_power(log_class - log_upto, n)
    law = (logs - log_class + gained).masked_fill(logs == -math.inf, -math.inf)
    return returned(law, base, log)


def reward_classes(logs: Tensor, rewards: Tensor) -> tuple[Tensor, Tensor]:
    """
    The log mass of the class of each outcome, and that of all classes up to it.

    :param logs: log probabilities, shape (..., K).
    :param rewards: the same shape.
    """
    ordered, order = rewards.sort(-1)
    ascending = logs.gather(-1, order)
    after = torch.cat([ascending[..., 1:], torch.full_like(ascending[..., :1], -math.inf)], -1)
    above = after.flip(-1).logcumsumexp(-1).flip(-1).exp()
    # Near one, F comes from what is left above it: the power n would magnify rounding.
    cumulative = torch.where(above < 0.5, torch.log1p(-above), ascending.logcumsumexp(-1))
    last = torch.searchsorted(ordered, rewards.contiguous(), right=True) - 1
    log_upto = cumulative.gather(-1, last)
    # The last place of a class names it.
    top = torch.full_like(logs, -math.inf).scatter_reduce(-1, last, logs, "amax")
    shift = top.gather(-1, last).masked_fill(top.gather(-1, last) == -math.inf, 0.0)
    mass = torch.zeros_like(logs).scatter_add(-1, last, (logs - shift).exp())
    log_class = mass.gather(-1, last).log() + shift
    return torch.minimum(log_class, log_upto), log_upto
