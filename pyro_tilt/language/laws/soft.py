# SPDX-License-Identifier: Apache-2.0
"""The tilt itself, and the law of one draw chosen by its weight among several."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_tilt.language.laws.checks import (
    check_n,
    compressed,
    log_base,
    log_weights,
    returned,
)

__all__ = ["soft_best_of_n", "tilt"]

# The trapezoid rule in log t converges like exp(-pi^2 / step): 1e-28 here.
_STEP = 0.15
_CHUNK = 2**22


def tilt(base: Tensor, rewards: Tensor, beta: float, *, log: bool = False) -> Tensor:
    r"""
    The tilted law :math:`p(y) e^{\beta r(y)} / Z`.

    :param base: probabilities of outcomes, shape ``(..., K)``.
    :param rewards: of the outcomes, a shape that broadcasts with ``base``.
    :param beta: multiplies the reward.
    :param log: whether ``base`` and the result are log probabilities.
    :raises ValueError: for bad probabilities or rewards, or where every outcome has weight zero.

    >>> tilt(torch.tensor([0.5, 0.5]), torch.tensor([0.0, 1.0]), math.log(3.0)).tolist()
    [0.25, 0.75]
    """
    logs, weights = log_weights(log_base(base, log), rewards, beta)
    joint = logs + weights
    if bool((joint.amax(-1) == -math.inf).any()):
        raise ValueError("every outcome has a reward of -inf: there is no tilted law")
    return returned(joint.log_softmax(-1), base, log)


def soft_best_of_n(
    base: Tensor, rewards: Tensor, beta: float, n: int, *, log: bool = False
) -> Tensor:
    r"""
    The law of one of ``n`` independent draws, kept with probability
    :math:`e^{\beta r_i} / \sum_j e^{\beta r_j}`.

    With :math:`w = e^{\beta r}` and :math:`\phi(t) = E_p\, e^{-tw}`,

    .. math:: P_n(y) = n\, p(y)\, w(y) \int_0^\infty e^{-t w(y)} \phi(t)^{n-1}\, dt,

    integrated by the trapezoid rule in :math:`\log t` to rounding, about 1e-16 n (derived
    here). Where all draws have weight zero the first is kept. As n grows the law tends to the tilt
    (Verdun et al. 2025, arXiv 2505.03156), with a divergence of
    :math:`\mathrm{Var}_{\pi^*}(w/\mu) / (2n^2)` to leading order.

    :param base: probabilities of outcomes, shape ``(..., K)``.
    :param rewards: of the outcomes, a shape that broadcasts with ``base``.
    :param beta: multiplies the reward.
    :param n: number of draws.
    :param log: whether ``base`` and the result are log probabilities.
    :returns: probabilities, shape ``(..., K)``.
    :raises ValueError: for n below 1, probabilities that do not sum to 1, NaN, other shapes.

    >>> law = soft_best_of_n(torch.tensor([0.5, 0.5]), torch.tensor([0.0, 1.0]), math.log(3.0), 2)
    >>> [round(p, 6) for p in law.tolist()]  # .25 + .5 * .25 and .25 + .5 * .75
    [0.375, 0.625]
    """
    check_n(n)
    logs, weights = log_weights(log_base(base, log), rewards, beta)
    if n == 1:
        return returned(logs, base, log)
    flat = logs.reshape(-1, logs.shape[-1])
    law = _integral(flat, compressed(weights, n).reshape(flat.shape), n).reshape(logs.shape)
    return returned(law, base, log)


def _integral(logs: Tensor, levels: Tensor, n: int) -> Tensor:
    """The laws of rows (R, K), from log probabilities and log weights of at most 0."""
    lost = levels == -math.inf
    # Where every draw has weight zero the first is kept.
    law = logs + (n - 1) * logs.masked_fill(~lost, -math.inf).logsumexp(-1, keepdim=True)
    if not len(logs) or bool(lost.all()):
        return law
    deepest = float(levels.masked_fill(lost, 0.0).min())
    low, high = -40.0 - math.log(n), math.log(60.0) - deepest
    nodes = torch.arange(math.ceil((high - low) / _STEP) + 1, device=logs.device, dtype=logs.dtype)
    total = torch.full_like(logs, -math.inf)
    for z in (low + _STEP * nodes).split(max(1, _CHUNK // logs.numel())):
        z = z.reshape(-1, 1, 1)
        decay = (z + levels).exp()
        log_phi = (logs - decay).logsumexp(-1, keepdim=True)
        total = torch.logaddexp(total, (z - decay + (n - 1) * log_phi).logsumexp(0))
    found = math.log(n) + logs + levels + total + math.log(_STEP)
    return torch.where(lost, law, found)
