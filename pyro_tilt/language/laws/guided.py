# SPDX-License-Identifier: Apache-2.0
"""Laws of a choice among the draws of a draft, with a target model to fall back on."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_tilt.language.laws.checks import (
    check_beta,
    check_n,
    log_base,
    log_one_minus_power,
    paired,
    returned,
)
from pyro_tilt.language.laws.rejection import relative
from pyro_tilt.language.laws.soft import soft_best_of_n

__all__ = [
    "exact_accept",
    "gsi",
    "gsi_acceptance",
    "gsi_limit",
    "reward_guided",
    "tilted_rewards",
]

FALLBACKS = ("published", "debiased")


def tilted_rewards(
    draft: Tensor, target: Tensor, rewards: Tensor, beta: float, *, log: bool = False
) -> Tensor:
    r"""
    Rewards under which tilting the draft is tilting the target,

    .. math:: \tilde r = r + \tfrac1\beta \log \frac{\pi_B}{\pi_S}, \qquad
        \pi_S\, e^{\beta \tilde r} = \pi_B\, e^{\beta r}.

    The probabilities are those sampled from, temperature and truncation included.

    :param draft: probabilities :math:`\pi_S` of the draft, shape ``(..., K)``.
    :param target: probabilities :math:`\pi_B` of the target, the same outcomes.
    :param rewards: r, of the outcomes.
    :param beta: above 0.
    :param log: whether ``draft`` and ``target`` are log probabilities.
    :returns: shape ``(..., K)``; ``-inf`` where the target has no mass.
    :raises ValueError: for different outcomes, a draft without mass where the target has some.

    >>> half = torch.tensor([0.5, 0.5])
    >>> tilted_rewards(half, half, torch.tensor([0.0, 1.0]), 2.0).tolist()
    [0.0, 1.0]
    """
    small, big, values = _models(draft, target, rewards, log)
    return _tilted(small, big, values, check_beta(beta, positive=True)).to(draft.dtype)


def gsi(
    draft: Tensor,
    target: Tensor,
    rewards: Tensor,
    beta: float,
    n: int,
    threshold: float,
    fallback: str = "published",
    *,
    log: bool = False,
) -> Tensor:
    r"""
    The law of one step of guided speculative inference.

    Of ``n`` draws of the draft one is kept by softmax of :math:`\beta \tilde r` (see
    :func:`tilted_rewards`). If its :math:`\tilde r` is below the threshold u, one of ``n`` draws of
    the target, chosen by softmax of :math:`\beta r`, replaces it (Geuter et al. 2025, arXiv
    2506.04118). With :math:`q_S` and :math:`q_B` the two soft best-of-n laws,

    .. math:: P(y) = q_S(y)\, 1[\tilde r(y) \ge u] + (1 - A)\, q_B(y), \qquad
        A = q_S(\tilde r \ge u)

    (derived here). For a finite u this does not tend to the tilt of the target: outcomes above the
    threshold come from both branches, see :func:`gsi_limit`. The ``"debiased"`` fallback draws from
    :math:`q_B` given :math:`\tilde r < u`, and its law does (derived here).

    :param draft: probabilities of the draft, shape ``(..., K)``.
    :param target: probabilities of the target.
    :param rewards: of the outcomes.
    :param beta: above 0.
    :param n: draws of each model.
    :param threshold: u, of :math:`\tilde r`; may be infinite.
    :param fallback: ``"published"`` or ``"debiased"``; where :math:`q_B` has no mass below the
        threshold, the latter is the former.
    :param log: whether the models and the result are log probabilities.
    :returns: probabilities, shape ``(..., K)``.
    :raises ValueError: as :func:`tilted_rewards`, for n below 1, a NaN threshold, an unknown
        fallback.

    >>> draft, target = torch.tensor([0.5, 0.5]), torch.tensor([0.2, 0.8])
    >>> law = gsi(draft, target, torch.tensor([0.0, 1.0]), 1.0, 1, -math.inf)
    >>> [round(p, 6) for p in law.tolist()]  # one draw that is always kept
    [0.5, 0.5]
    """
    check_n(n)
    beta = check_beta(beta, positive=True)
    threshold = _check_threshold(threshold)
    if fallback not in FALLBACKS:
        raise ValueError(f"fallback must be one of {', '.join(FALLBACKS)}; got {fallback!r}")
    small, big, values = _models(draft, target, rewards, log)
    tilted = _tilted(small, big, values, beta)
    above = tilted >= threshold
    kept = soft_best_of_n(small, tilted, beta, n, log=True)
    log_reject = kept.masked_fill(above, -math.inf).logsumexp(-1, keepdim=True)
    other = soft_best_of_n(big, values, beta, n, log=True)
    if fallback == "debiased":
        below = other.masked_fill(above, -math.inf)
        total = below.logsumexp(-1, keepdim=True)
        other = torch.where(total > -math.inf, below - total, other)
    law = torch.logaddexp(kept.masked_fill(~above, -math.inf), log_reject + other)
    return returned(law, draft, log)


def gsi_acceptance(
    draft: Tensor,
    target: Tensor,
    rewards: Tensor,
    beta: float,
    n: int,
    threshold: float,
    *,
    log: bool = False,
) -> Tensor:
    r"""
    The probability A that a step of guided speculative inference keeps the draft, shape (...).

    Its arguments are those of :func:`gsi`.

    >>> half = torch.tensor([0.5, 0.5])
    >>> round(gsi_acceptance(half, half, torch.tensor([0.0, 1.0]), 1.0, 1, 0.5).item(), 6)
    0.5
    """
    check_n(n)
    beta = check_beta(beta, positive=True)
    threshold = _check_threshold(threshold)
    small, big, values = _models(draft, target, rewards, log)
    tilted = _tilted(small, big, values, beta)
    kept = soft_best_of_n(small, tilted, beta, n, log=True)
    return kept.masked_fill(tilted < threshold, -math.inf).logsumexp(-1).exp().to(draft.dtype)


def gsi_limit(
    draft: Tensor,
    target: Tensor,
    rewards: Tensor,
    beta: float,
    threshold: float,
    *,
    log: bool = False,
) -> Tensor:
    r"""
    The law that :func:`gsi` with the published fallback tends to as n grows.

    With :math:`a = \pi^*(\tilde r \ge u)` it is :math:`(2 - a)\, \pi^*` above the threshold and
    :math:`(1 - a)\, \pi^*` below, so that

    .. math:: \mathrm{KL}(\pi^* \,\|\, P_\infty) = -a \log(2 - a) - (1 - a) \log(1 - a) > 0

    for every threshold that splits the tilt (derived here).

    :returns: probabilities, shape ``(..., K)``; the other arguments are those of :func:`gsi`.

    >>> half = torch.tensor([0.5, 0.5])
    >>> law = gsi_limit(half, half, torch.tensor([0.0, 1.0]), math.log(3.0), 0.5)
    >>> [round(p, 6) for p in law.tolist()]  # the tilt is (.25, .75)
    [0.0625, 0.9375]
    """
    beta = check_beta(beta, positive=True)
    threshold = _check_threshold(threshold)
    small, big, values = _models(draft, target, rewards, log)
    above = _tilted(small, big, values, beta) >= threshold
    best = (big + beta * values).log_softmax(-1)
    log_miss = best.masked_fill(above, -math.inf).logsumexp(-1, keepdim=True)
    gained = torch.where(above, torch.log1p(log_miss.exp()), log_miss)
    return returned(best + gained, draft, log)


def exact_accept(
    draft: Tensor,
    target: Tensor,
    rewards: Tensor,
    beta: float,
    n: int,
    *,
    log_bound: float | None = None,
    log: bool = False,
) -> Tensor:
    r"""
    The law of rejection from the draft, with the target's soft best-of-n as fallback.

    A draw of the draft is accepted with probability :math:`\tilde w / \sup \tilde w`,
    :math:`\tilde w = e^{\beta \tilde r}`; if none of ``n`` is, the target decides as in
    :func:`gsi`. With :math:`a = E_S \tilde w / \sup \tilde w`

    .. math:: P_n = p_n\, \pi^* + (1 - p_n)\, q_B, \qquad p_n = 1 - (1 - a)^n

    (derived here; the idea is that of Liu, Wan and Gündüz 2026, arXiv 2609.21899).

    :param draft: probabilities of the draft, shape ``(..., K)``.
    :param target: probabilities of the target.
    :param rewards: of the outcomes.
    :param beta: above 0.
    :param n: draws of each model.
    :param log_bound: :math:`\log \sup \tilde w`, by default its largest value.
    :param log: whether the models and the result are log probabilities.
    :raises ValueError: as :func:`tilted_rewards`, for n below 1, a bound that is none.

    >>> draft, target = torch.tensor([0.5, 0.5]), torch.tensor([0.2, 0.8])
    >>> law = exact_accept(draft, target, torch.zeros(2), 1.0, 50)
    >>> [round(p, 6) for p in law.tolist()]
    [0.2, 0.8]
    """
    check_n(n)
    beta = check_beta(beta, positive=True)
    small, big, values = _models(draft, target, rewards, log)
    weights = beta * _tilted(small, big, values, beta)
    weights = weights.masked_fill(small == -math.inf, -math.inf)
    weights, bound = relative(weights, log_bound)
    joint = small + weights
    log_accept = joint.logsumexp(-1, keepdim=True) - bound
    log_miss = n * torch.log1p(-log_accept.clamp(max=0.0).exp())
    other = soft_best_of_n(big, values, beta, n, log=True)
    hit = log_one_minus_power(log_accept, n) + joint.log_softmax(-1)
    return returned(torch.logaddexp(hit, log_miss + other), draft, log)


def reward_guided(
    draft: Tensor, target: Tensor, rewards: Tensor, threshold: float, *, log: bool = False
) -> Tensor:
    r"""
    The law of one step of reward-guided speculative decoding.

    A draw of the draft is kept if its reward is at least :math:`\delta`, otherwise a draw of the
    target replaces it (Liao et al. 2025, arXiv 2501.19324):

    .. math:: P = 1[r \ge \delta]\, \pi_S + \pi_S(r < \delta)\, \pi_B

    This is no tilt of either model. The draft may lack mass where the target has some.

    :param draft: probabilities of the draft, shape ``(..., K)``.
    :param target: probabilities of the target.
    :param rewards: of the outcomes.
    :param threshold: :math:`\delta`.
    :param log: whether the models and the result are log probabilities.
    :raises ValueError: for bad probabilities or rewards, different outcomes, a NaN threshold.

    >>> draft, target = torch.tensor([0.5, 0.5]), torch.tensor([0.2, 0.8])
    >>> law = reward_guided(draft, target, torch.tensor([0.0, 1.0]), 0.5)
    >>> [round(p, 6) for p in law.tolist()]
    [0.1, 0.9]
    """
    threshold = _check_threshold(threshold)
    small, big, values = _models(draft, target, rewards, log, cover=False)
    above = values >= threshold
    log_reject = small.masked_fill(above, -math.inf).logsumexp(-1, keepdim=True)
    law = torch.logaddexp(small.masked_fill(~above, -math.inf), log_reject + big)
    return returned(law, draft, log)


def _models(
    draft: Tensor, target: Tensor, rewards: Tensor, log: bool, *, cover: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Log laws of both models and rewards, of one shape."""
    small, big = log_base(draft, log, name="draft"), log_base(target, log, name="target")
    if small.shape[-1] != big.shape[-1]:
        raise ValueError(
            f"draft and target speak of different outcomes: {small.shape[-1]} and "
            f"{big.shape[-1]}; their vocabularies must agree"
        )
    _, values = paired(small, rewards)
    small, big, values = torch.broadcast_tensors(small, big, values)
    missing = (small == -math.inf) & (big > -math.inf)
    if cover and bool(missing.any()):
        raise ValueError(
            f"the draft has no mass at {int(missing.sum())} outcomes where the target has some, so "
            "that no weighing of its draws reaches them; give the draft full support"
        )
    return small, big, values


def _tilted(small: Tensor, big: Tensor, values: Tensor, beta: float) -> Tensor:
    ratio = (big - small).masked_fill(big == -math.inf, -math.inf)
    return values + ratio / beta


def _check_threshold(threshold: float) -> float:
    if math.isnan(threshold):
        raise ValueError("threshold must be a number, got nan")
    return float(threshold)
