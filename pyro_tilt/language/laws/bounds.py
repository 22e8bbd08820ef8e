# SPDX-License-Identifier: Apache-2.0
"""Bounds and rates of the soft choices, beside their exact laws."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_tilt.language.laws.checks import check_beta, check_n, log_base, log_weights
from pyro_tilt.language.laws.guided import tilted_rewards

__all__ = [
    "gsi_kl_bound",
    "relative_variance",
    "smoothing_lens_bound",
    "soft_best_of_n_kl_bound",
    "soft_best_of_n_kl_rate",
    "soft_best_of_n_range_bound",
]


def relative_variance(base: Tensor, rewards: Tensor, beta: float, *, log: bool = False) -> Tensor:
    r"""
    :math:`\mathrm{CV}^2 = \mathrm{Var}_p(w) / (E_p w)^2` of the weights :math:`w = e^{\beta r}`.

    :param base: probabilities of outcomes, shape ``(..., K)``.
    :param rewards: of the outcomes.
    :param beta: multiplies the reward.
    :param log: whether ``base`` is in logarithms.
    :returns: shape ``(...)``.
    :raises ValueError: for bad probabilities or rewards, or where every weight is zero.

    >>> base, rewards = torch.tensor([0.5, 0.5]), torch.tensor([0.0, 1.0])
    >>> round(relative_variance(base, rewards, math.log(3.0)).item(), 6)  # weights 1 and 3
    0.25
    """
    logs, weights = log_weights(log_base(base, log), rewards, beta)
    log_mean = (logs + weights).logsumexp(-1, keepdim=True)
    if bool((log_mean == -math.inf).any()):
        raise ValueError("every outcome has a reward of -inf: there is no tilted law")
    # Centred before squaring: nearly equal weights would cancel.
    gap = weights - log_mean
    log_gap = torch.where(
        gap > 1.0, gap + torch.log1p(-(-gap).exp()), torch.expm1(gap.clamp(max=1.0)).abs().log()
    )
    return (logs + 2.0 * log_gap).exp().sum(-1).to(base.dtype)


def soft_best_of_n_kl_bound(
    base: Tensor, rewards: Tensor, beta: float, n: int, *, log: bool = False
) -> Tensor:
    r"""
    An upper bound on the divergence of the tilt from the soft best-of-n law,

    .. math:: \mathrm{KL}(\pi^* \,\|\, P_n) \le \log(1 + \mathrm{CV}^2 / n)

    by Jensen's inequality, twice (derived here). It is of order 1/n; the divergence itself is
    smaller, see :func:`soft_best_of_n_kl_rate`.

    :returns: shape ``(...)``; the arguments are those of :func:`soft_best_of_n`.

    >>> base, rewards = torch.tensor([0.5, 0.5]), torch.tensor([0.0, 1.0])
    >>> round(soft_best_of_n_kl_bound(base, rewards, math.log(3.0), 1).item(), 6)
    0.223144
    """
    return torch.log1p(relative_variance(base, rewards, beta, log=log) / check_n(n))


def soft_best_of_n_range_bound(beta: float, n: int, range: float = 1.0) -> float:
    r"""
    :math:`\sinh^2(\beta R / 2) / n`, above :func:`soft_best_of_n_kl_bound` for rewards whose
    largest and smallest differ by R (Verdun et al. 2025, arXiv 2505.03156).

    :param beta: multiplies the reward.
    :param n: number of draws.
    :param range: R.

    >>> round(soft_best_of_n_range_bound(2.0, 4), 4)
    0.3453
    """
    half = 0.5 * check_beta(beta) * range
    return math.sinh(half) ** 2 / check_n(n) if abs(half) < 350.0 else math.inf


def soft_best_of_n_kl_rate(
    base: Tensor, rewards: Tensor, beta: float, n: int, *, log: bool = False
) -> Tensor:
    r"""
    The leading term of :math:`\mathrm{KL}(\pi^* \,\|\, P_n)`,
    :math:`\mathrm{Var}_{\pi^*}(w / \mu) / (2 n^2)`, on a finite set of outcomes (derived here).

    This is an asymptotic value and no bound.

    :returns: shape ``(...)``; the arguments are those of :func:`soft_best_of_n`.

    >>> base, rewards = torch.tensor([0.5, 0.5]), torch.tensor([0.0, 1.0])
    >>> round(soft_best_of_n_kl_rate(base, rewards, math.log(3.0), 1).item(), 6)
    0.09375
    """
    logs, weights = log_weights(log_base(base, log), rewards, beta)
    relative = weights - (logs + weights).logsumexp(-1, keepdim=True)
    best = (logs + weights).softmax(-1)
    ratio = relative.exp()
    mean = (best * ratio).sum(-1, keepdim=True)
    return ((best * (ratio - mean).square()).sum(-1) / (2.0 * check_n(n) ** 2)).to(base.dtype)


def smoothing_lens_bound(beta: float, n: int, range: float = 1.0) -> float:
    r"""
    An upper bound on the divergence of the soft best-of-n law from its base,

    .. math:: \mathrm{KL}(P_n \,\|\, p) \le \log \frac{n}{1 + (n - 1) e^{-\beta R}}

    for rewards whose largest and smallest differ by at most R (Aminian et al. 2025, arXiv
    2507.05913).

    :param beta: multiplies the reward.
    :param n: number of draws.
    :param range: R.

    >>> round(smoothing_lens_bound(1e9, 8) - math.log(8), 6), smoothing_lens_bound(0.0, 8)
    (0.0, 0.0)
    """
    check_n(n)
    return math.log(n) - math.log1p((n - 1) * math.exp(-abs(check_beta(beta)) * range))


def gsi_kl_bound(
    draft: Tensor, target: Tensor, rewards: Tensor, beta: float, n: int, *, log: bool = False
) -> Tensor:
    r"""
    An upper bound on the divergence of the target's tilt from :func:`gsi` without a threshold,

    .. math:: \mathrm{KL}(\pi^*_B \,\|\, P_n) \le \log(1 + \mathrm{CV}^2 / n)
        \le \log\Bigl(1 + \frac{(\chi^2 + 1) e^{2 \beta R} - 1}{n}\Bigr)

    with the relative variance of :math:`\tilde w = \pi_B e^{\beta r} / \pi_S` under the draft,
    :math:`\chi^2` the divergence of the target from the draft and R the range of the reward; the
    first bound is the one returned (derived here).

    :returns: shape ``(...)``; the arguments are those of :func:`gsi`.

    >>> draft, target = torch.tensor([0.5, 0.5]), torch.tensor([0.2, 0.8])
    >>> round(gsi_kl_bound(draft, target, torch.zeros(2), 1.0, 1).exp().item() - 1.0, 6)
    0.36
    """
    tilted = tilted_rewards(draft, target, rewards, beta, log=log)
    return soft_best_of_n_kl_bound(draft, tilted, beta, n, log=log)
