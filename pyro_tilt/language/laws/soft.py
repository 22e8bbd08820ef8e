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
    levels = compressed(weights, n).reshape(flat.shape)
    rows = [_integral(*row, n) for row in zip(flat, levels)]
    law = torch.stack(rows).reshape(logs.shape) if rows else logs
    return returned(law, base, log)


def _integral(logs: Tensor, levels: Tensor, n: int) -> Tensor:
    """The law of one row, from log probabilities and log weights of at most 0."""
    finite = levels > -math.inf
    # Where every draw has weight zero the first is kept.
    none = logs[~finite].logsumexp(0) if not bool(finite.all()) else logs.new_tensor(-math.inf)
    law = logs + (n - 1) * none
    if not bool(finite.any()):
        return logs
    p, v = logs[finite], levels[finite]
    low, high = -40.0 - math.log(n), math.log(60.0) - float(v.min())
    nodes = torch.arange(math.ceil((high - low) / _STEP) + 1, device=v.device, dtype=v.dtype)
    nodes = low + _STEP * nodes
    total = torch.full_like(v, -math.inf)
    for z in nodes.split(max(1, _CHUNK // len(v))):
        decay = (z.unsqueeze(-1) + v).exp()
        log_phi = torch.logaddexp((p - decay).logsumexp(-1), none)
        terms = z.unsqueeze(-1) - decay + (n - 1) * log_phi.unsqueeze(-1)
        total = torch.logaddexp(total, terms.logsumexp(0))
    law[finite] = math.log(n) + p + v + total + math.log(_STEP)
    return law
