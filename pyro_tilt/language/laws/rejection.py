# SPDX-License-Identifier: Apache-2.0
"""Laws of choices that hit the tilt exactly or fall back on something else."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_tilt.language.laws.checks import (
    check_n,
    compressed,
    log_base,
    log_one_minus_power,
    log_weights,
    returned,
)

__all__ = ["ExpBestOfNParts", "exp_best_of_n", "exp_best_of_n_parts", "truncated_rejection"]


class ExpBestOfNParts(NamedTuple):
    """
    The two parts of a law that is exact on a hit.

    :ivar hit_probability: that some draw is accepted against the bound, shape (...).
    :ivar target: the law given a hit, which is the tilt, shape (..., K).
    :ivar miss: the law given none, shape (..., K).
    """

    hit_probability: Tensor
    target: Tensor
    miss: Tensor


def exp_best_of_n(
    base: Tensor, rewards: Tensor, beta: float, n: int, *, log: bool = False
) -> Tensor:
    r"""
    The law of the draw with the largest :math:`\beta r_i + E_i`, :math:`E_i` exponential noise.

    With the distinct tilts :math:`a_1 < a_2 < \dots` of the outcomes, :math:`\mu_j` the mass of
    :math:`p e^{\beta r}` and :math:`F_j` that of p up to the j-th, a noisy score lies below s with
    probability :math:`G(s) = F_j - \mu_j e^{-s}` between :math:`a_j` and :math:`a_{j+1}`, so that

    .. math:: P_n(y) = p(y)\, e^{\beta r(y)} \sum_{j : a_j \ge \beta r(y)}
        \frac{G(a_{j+1})^n - G(a_j)^n}{\mu_j}

    (derived here). The last term is the chance :math:`1 - (1 - \mu e^{-\max})^n` of a hit times the
    tilt: the miss decays exponentially in n (Liu, Wan and Gündüz 2026, arXiv 2609.21899). The same
    law is that of permute-and-flip. Where all draws have weight zero the first is kept.

    :param base: probabilities of outcomes, shape ``(..., K)``.
    :param rewards: of the outcomes, a shape that broadcasts with ``base``.
    :param beta: multiplies the reward.
    :param n: number of draws.
    :param log: whether ``base`` and the result are log probabilities.
    :returns: probabilities, shape ``(..., K)``.
    :raises ValueError: for n below 1, probabilities that do not sum to 1, NaN, other shapes.

    >>> law = exp_best_of_n(torch.tensor([0.5, 0.5]), torch.tensor([0.0, 1.0]), math.log(3.0), 1)
    >>> [round(p, 6) for p in law.tolist()]
    [0.5, 0.5]
    """
    check_n(n)
    logs, weights = log_weights(log_base(base, log), rewards, beta)
    return returned(_exp_law(logs, weights, n, None)[0], base, log)


def exp_best_of_n_parts(
    base: Tensor,
    rewards: Tensor,
    beta: float,
    n: int,
    *,
    log_bound: float | None = None,
    log: bool = False,
) -> ExpBestOfNParts:
    r"""
    The law of :func:`exp_best_of_n` split at a bound on the tilt.

    A noisy score above the bound B is a hit. Given a hit the law is the tilt, whether the largest
    score is kept or the first above B, which allows to stop early.

    :param base: probabilities of outcomes, shape ``(..., K)``.
    :param rewards: of the outcomes, a shape that broadcasts with ``base``.
    :param beta: multiplies the reward.
    :param n: number of draws.
    :param log_bound: B, at least the largest :math:`\beta r`, which it is by default.
    :param log: whether ``base`` and the laws are log probabilities; the hit probability never is.
    :raises ValueError: as :func:`exp_best_of_n`, and for a bound that is none.

    >>> base, rewards = torch.tensor([0.5, 0.5]), torch.tensor([0.0, 1.0])
    >>> parts = exp_best_of_n_parts(base, rewards, math.log(3.0), 2)
    >>> round(parts.hit_probability.item(), 6)  # each draw is accepted with 1/2 + 1/2 * 1/3
    0.888889
    """
    check_n(n)
    logs, weights = log_weights(log_base(base, log), rewards, beta)
    weights, bound = relative(weights, log_bound)
    _, miss = _exp_law(logs, weights, n, bound)
    miss = miss - torch.logsumexp(miss, -1, keepdim=True).masked_fill(
        miss.amax(-1, keepdim=True) == -math.inf, 0.0
    )
    joint = logs + weights
    hit = log_one_minus_power(joint.logsumexp(-1) - bound.squeeze(-1), n).exp()
    return ExpBestOfNParts(
        hit.to(base.dtype),
        returned(joint.log_softmax(-1), base, log),
        returned(miss, base, log),
    )


def truncated_rejection(
    base: Tensor,
    rewards: Tensor,
    beta: float,
    n: int,
    *,
    log_bound: float | None = None,
    fallback: str = "fresh",
    log: bool = False,
) -> Tensor:
    r"""
    The law of rejection sampling that gives up after ``n`` proposals.

    A proposal is accepted with probability :math:`e^{\beta r - B}`, on average
    :math:`a = \mu e^{-B}`. With a fresh draw of the base as fallback

    .. math:: P_n = p_n\, \pi^* + (1 - p_n)\, p, \qquad p_n = 1 - (1 - a)^n,

    so that the distance to the tilt :math:`\pi^*` is :math:`(1 - p_n)` times that of the base. With
    the last rejected proposal instead, p is replaced by
    :math:`p\,(1 - e^{\beta r - B}) / (1 - a)`.

    :param base: probabilities of outcomes, shape ``(..., K)``.
    :param rewards: of the outcomes, a shape that broadcasts with ``base``.
    :param beta: multiplies the reward.
    :param n: number of proposals before the fallback.
    :param log_bound: B, by default the largest :math:`\beta r`.
    :param fallback: ``"fresh"`` or ``"last"``.
    :param log: whether ``base`` and the result are log probabilities.
    :raises ValueError: as :func:`exp_best_of_n`, for a bound that is none, an unknown fallback.

    >>> base, rewards = torch.tensor([0.5, 0.5]), torch.tensor([0.0, 1.0])
    >>> law = truncated_rejection(base, rewards, math.log(3.0), 1)
    >>> [round(p, 6) for p in law.tolist()]  # 2/3 (1/4, 3/4) + 1/3 (1/2, 1/2)
    [0.333333, 0.666667]
    """
    check_n(n)
    if fallback not in ("fresh", "last"):
        raise ValueError(f"fallback must be 'fresh' or 'last', got {fallback!r}")
    logs, weights = log_weights(log_base(base, log), rewards, beta)
    weights, bound = relative(weights, log_bound)
    joint = logs + weights
    log_accept = joint.logsumexp(-1, keepdim=True) - bound
    log_hit = log_one_minus_power(log_accept, n)
    log_miss = n * torch.log1p(-log_accept.clamp(max=0.0).exp())
    other = logs
    if fallback == "last":
        rejected = torch.log1p(-(weights - bound).clamp(max=0.0).exp())
        other = logs + rejected - log_miss / n
    other = torch.where(log_miss == -math.inf, log_miss, log_miss + other)
    law = torch.logaddexp(log_hit + joint.log_softmax(-1), other)
    return returned(law, base, log)


def relative(weights: Tensor, log_bound: float | None) -> tuple[Tensor, Tensor]:
    """Log weights and their bound, both less the largest weight, so that no digits are lost."""
    largest = weights.amax(-1, keepdim=True)
    if bool((largest == -math.inf).any()):
        raise ValueError("every outcome has a reward of -inf: there is no tilted law")
    if log_bound is None:
        return weights - largest, torch.zeros_like(largest)
    if not bool((largest <= log_bound + 1e-9 * max(1.0, abs(log_bound))).all()):
        raise ValueError(
            f"log_bound {log_bound} lies below the largest tilt {float(largest.max()):.6g}"
        )
    return weights - largest, (log_bound - largest).clamp(min=0.0)


def _exp_law(logs: Tensor, weights: Tensor, n: int, bound: Tensor | None) -> tuple[Tensor, Tensor]:
    """
    The law of the largest noisy score, and its part in which no score exceeds ``bound``.

    :param bound: shape (..., 1); None for no part.
    """
    weights = compressed(weights, n)
    none = logs.masked_fill(weights > -math.inf, -math.inf).logsumexp(-1, keepdim=True)
    ordered, order = weights.sort(-1)
    p = logs.gather(-1, order)
    log_mu = (p + ordered).logcumsumexp(-1)
    upper = torch.cat([ordered[..., 1:], torch.full_like(none, math.inf)], -1)
    terms = _slices(none, log_mu, ordered, upper, n)
    law = _chosen(terms, log_mu, order, logs, weights, none, n)
    if bound is None:
        return law, law
    upper = torch.cat([ordered[..., 1:], bound], -1)
    terms = _slices(none, log_mu, ordered, upper, n)
    return law, _chosen(terms, log_mu, order, logs, weights, none, n)


def _slices(none: Tensor, log_mu: Tensor, lower: Tensor, upper: Tensor, n: int) -> Tensor:
    r"""
    :math:`\log(G(a_{j+1})^n - G(a_j)^n)`, without cancellation.

    G grows by :math:`\mu_j (e^{-a_j} - e^{-a_{j+1}})` over a slice; all summands are positive.
    """
    width = (upper - lower).masked_fill(lower == -math.inf, 0.0)
    grown = log_mu - lower + torch.log(-torch.expm1(-width))
    grown = grown.masked_fill((log_mu == -math.inf) | (width == 0.0), -math.inf)
    after = torch.logaddexp(none, grown.logcumsumexp(-1))
    # Near one, G comes from what is left above it: the power n would magnify rounding.
    beyond = (log_mu[..., -1:] - upper[..., -1:]).masked_fill(
        log_mu[..., -1:] == -math.inf, -math.inf
    )
    above = torch.cat([grown[..., 1:], beyond], -1).flip(-1).logcumsumexp(-1).flip(-1).exp()
    after = torch.where(above < 0.5, torch.log1p(-above), after)
    share = (grown - after).masked_fill(grown == -math.inf, -math.inf)
    sizes = n * after + log_one_minus_power(share, n)
    return sizes.masked_fill(grown == -math.inf, -math.inf)


def _chosen(
    terms: Tensor,
    log_mu: Tensor,
    order: Tensor,
    logs: Tensor,
    weights: Tensor,
    none: Tensor,
    n: int,
) -> Tensor:
    ratio = (terms - log_mu).masked_fill(terms == -math.inf, -math.inf)
    suffix = ratio.flip(-1).logcumsumexp(-1).flip(-1)
    found = torch.empty_like(logs).scatter(-1, order, suffix)
    lost = logs + (n - 1) * none if n > 1 else logs
    return torch.where(weights == -math.inf, lost, logs + weights + found)
