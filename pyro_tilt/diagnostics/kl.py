# SPDX-License-Identifier: Apache-2.0
"""What selection costs in divergence from the base, and what it wins.

Functions whose names end in ``bound`` never lie below what they bound; an estimate may.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_tilt.ops.importance import as_double

__all__ = [
    "best_of_n_bound",
    "best_of_n_curve",
    "best_of_n_estimate",
    "best_of_n_gap_bound",
    "blockwise_bound",
    "class_mass",
    "exact",
    "win_rate",
    "win_rate_bound",
]


def best_of_n_bound(n: int) -> float:
    r"""
    An upper bound on the divergence of a best-of-n law from its base, :math:`\log n - (n - 1)/n`.

    It holds for every base and reward and is attained only by a reward without ties on a base
    without atoms; the divergence of a language model is often far below (Beirami et al. 2024, arXiv
    2401.01879).

    :param n: number of draws.
    :raises ValueError: for n below 1.

    >>> best_of_n_bound(1), round(best_of_n_bound(8), 4)
    (0.0, 1.2044)
    """
    n = _check_n(n)
    return math.log(n) - (n - 1) / n


def best_of_n_estimate(selected_mass: Tensor | float, n: int, *, log: bool = False) -> Tensor:
    r"""
    An estimate of the divergence of a best-of-n law from the mass of what was selected.

    With :math:`\epsilon` the base probability of the selected outcome *and of all outcomes of the
    same reward* (see :func:`class_mass`), averaged over selected draws,

    .. math:: \hat D(\epsilon) = (1-\epsilon)^n \Bigl[\log n + (n-1) \log(1-\epsilon)
        - \tfrac{n-1}{n}\Bigr] + b \log \tfrac{b}{\epsilon}, \qquad b = 1 - (1-\epsilon)^n

    (Beirami et al. 2024, arXiv 2401.01879, for rewards without ties). It is the exact divergence
    for a base with an atom of mass :math:`\epsilon` on top and no other, and lies between 0 and
    :func:`best_of_n_bound`, to which it tends as :math:`n \epsilon` vanishes. That its mean over
    the best-of-n law is at least the divergence is a conjecture.

    :param selected_mass: :math:`\epsilon` of each selected draw, any shape.
    :param n: number of draws.
    :param log: whether the masses are in logarithms, as those of long sequences are.
    :returns: one estimate for each mass; their mean is the estimate for the law.
    :raises ValueError: for n below 1, NaN, or masses outside [0, 1].

    >>> mass = torch.tensor([0.0, 0.2, 1.0], dtype=torch.float64)
    >>> [round(d, 4) for d in best_of_n_estimate(mass, 8).tolist()]
    [1.2044, 1.1266, 0.0]
    """
    n = _check_n(n)
    if not isinstance(selected_mass, Tensor):
        selected_mass = torch.tensor(selected_mass, dtype=torch.float64)
    mass = as_double(selected_mass)
    mass = mass.exp() if log else mass
    if not bool(((mass >= 0.0) & (mass <= 1.0 + 1e-6)).all()):
        raise ValueError("selected_mass must lie in [0, 1], or at most 0 with log=True")
    mass = mass.clamp(max=1.0)
    log_rest = torch.log1p(-mass)
    rest = (n * log_rest).exp()
    hit = -torch.expm1(n * log_rest)
    within = torch.where(mass < 1.0, math.log(n) + (n - 1) * log_rest - (n - 1) / n, 0.0)
    # Where n times the mass underflows nothing is known of ties, and the bound remains.
    seen = mass > torch.finfo(mass.dtype).tiny
    atom = torch.where(seen, hit * (hit / mass.masked_fill(~seen, 1.0)).log(), 0.0)
    return (rest * within + atom).clamp(min=0.0, max=best_of_n_bound(n))


def class_mass(selected: Tensor, rewards: Tensor, base: Tensor | None = None) -> Tensor:
    """
    The base probability of having the same reward as each selected draw.

    :param selected: rewards of selected draws, shape ``(M,)``.
    :param rewards: of all outcomes with their probabilities in ``base``, shape ``(K,)``; or of
        independent base draws, whose shares estimate it.
    :param base: probabilities, shape ``(K,)``; None for base draws.
    :returns: shape ``(M,)``; 0 for a reward that no base draw has.
    :raises ValueError: for other shapes, NaN, or no base draws.

    >>> base, rewards = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.0, 1.0, 1.0])
    >>> class_mass(torch.tensor([1.0, 0.0]), rewards, base).tolist()
    [0.5, 0.5]
    """
    if selected.dim() != 1 or rewards.dim() != 1 or not len(rewards):
        raise ValueError(
            f"selected and rewards must have shapes (M,) and (K,), got {tuple(selected.shape)} "
            f"and {tuple(rewards.shape)}"
        )
    if bool(rewards.isnan().any()) or bool(selected.isnan().any()):
        raise ValueError("a reward is NaN")
    if base is None:
        base = torch.full(rewards.shape, 1.0 / len(rewards), device=rewards.device)
    if base.shape != rewards.shape:
        raise ValueError(
            f"base must have the shape of rewards, got {tuple(base.shape)} and "
            f"{tuple(rewards.shape)}"
        )
    levels, place = rewards.unique(return_inverse=True)
    masses = base.new_zeros(len(levels)).index_add_(0, place, base)
    found = torch.searchsorted(levels, selected.contiguous()).clamp(max=len(levels) - 1)
    return torch.where(levels[found] == selected, masses[found], torch.zeros_like(masses[found]))


def exact(law: Tensor, base: Tensor, *, log: bool = False) -> Tensor:
    r"""
    The divergence :math:`\sum_y q(y) \log \frac{q(y)}{p(y)}` of tables of probabilities.

    :param law: q, shape ``(..., K)``.
    :param base: p, a shape that broadcasts with it.
    :param log: whether both are log probabilities.
    :returns: shape ``(...)``; infinite where q has mass that p has not.
    :raises ValueError: for different outcomes, NaN or negative entries.

    >>> round(exact(torch.tensor([1.0, 0.0]), torch.tensor([0.25, 0.75])).item(), 4)
    1.3863
    """
    if law.dim() == 0 or base.dim() == 0 or law.shape[-1] != base.shape[-1]:
        raise ValueError(
            f"law and base speak of different outcomes: shapes {tuple(law.shape)} and "
            f"{tuple(base.shape)}"
        )
    pair = [as_double(each) for each in (law, base)]
    for name, each in zip(("law", "base"), pair):
        if bool(each.isnan().any()) or (not log and bool((each < 0.0).any())):
            raise ValueError(f"{name} holds NaN or a negative probability")
    q, p = torch.broadcast_tensors(*(pair if log else [each.log() for each in pair]))
    q, p = (each - each.logsumexp(-1, keepdim=True) for each in (q, p))
    terms = torch.where(q > -math.inf, q.exp() * (q - p), torch.zeros_like(q))
    return terms.sum(-1).clamp(min=0.0)


def best_of_n_gap_bound(base: Tensor, rewards: Tensor, n: int) -> Tensor:
    r"""
    An upper bound on how far :func:`best_of_n_bound` exceeds the divergence,
    :math:`2 n (n - 1) \sum_C p(C)^2` over the classes of equal reward.

    Of use where :math:`n^2` is small beside one over the largest mass (Beirami et al. 2024, arXiv
    2401.01879).

    :param base: probabilities of outcomes, shape ``(K,)``.
    :param rewards: of the outcomes, shape ``(K,)``.
    :param n: number of draws.

    >>> base, rewards = torch.full((10,), 0.1), torch.arange(10.0)
    >>> round(best_of_n_gap_bound(base, rewards, 2).item(), 6)
    0.4
    """
    n = _check_n(n)
    if base.dim() != 1 or base.shape != rewards.shape:
        raise ValueError(
            f"base and rewards must have one shape (K,), got {tuple(base.shape)} and "
            f"{tuple(rewards.shape)}"
        )
    levels, place = rewards.unique(return_inverse=True)
    masses = base.new_zeros(len(levels)).index_add_(0, place, base)
    return 2.0 * n * (n - 1) * masses.square().sum()


def blockwise_bound(n: int, num_blocks: int) -> float:
    r"""
    An upper bound on the divergence of choosing the best of ``n`` for each of several blocks.

    By the chain rule it is ``num_blocks`` times :func:`best_of_n_bound`.

    :param n: copies of a block.
    :param num_blocks: blocks of a sequence.

    >>> round(blockwise_bound(4, 2), 4)
    1.2726
    """
    return _check_n(num_blocks, "num_blocks") * best_of_n_bound(n)


def win_rate(law: Tensor, base: Tensor, rewards: Tensor) -> Tensor:
    r"""
    The probability that a draw of ``law`` beats one of ``base``, a tie counting half.

    :param law: probabilities of outcomes, shape ``(..., K)``.
    :param base: probabilities of outcomes, shape ``(K,)``.
    :param rewards: of the outcomes, shape ``(K,)``.
    :returns: shape ``(...)``.
    :raises ValueError: for different outcomes or NaN.

    >>> base = torch.tensor([0.5, 0.5])
    >>> win_rate(torch.tensor([0.25, 0.75]), base, torch.tensor([0.0, 1.0])).item()
    0.625
    """
    if base.dim() != 1 or base.shape != rewards.shape or law.shape[-1:] != base.shape:
        raise ValueError(
            f"law (..., K), base (K,) and rewards (K,) speak of different outcomes: shapes "
            f"{tuple(law.shape)}, {tuple(base.shape)} and {tuple(rewards.shape)}"
        )
    if bool(rewards.isnan().any()):
        raise ValueError("a reward is NaN")
    levels, place = rewards.unique(return_inverse=True)
    masses = as_double(base.new_zeros(len(levels)).index_add_(0, place, base))
    score = masses.cumsum(0) - 0.5 * masses
    return (as_double(law) * score[place]).sum(-1)


def win_rate_bound(n: int) -> float:
    r"""
    An upper bound on the win rate of a best-of-n law over its base, :math:`n / (n + 1)`.

    :param n: number of draws.

    >>> win_rate_bound(4)
    0.8
    """
    n = _check_n(n)
    return n / (n + 1)


def best_of_n_curve(rewards: Tensor, ns: Sequence[int]) -> Tensor:
    r"""
    Unbiased estimates of the mean best-of-n reward for several n from one set of base draws.

    With the rewards in ascending order each subset of n draws counts once:

    .. math:: \sum_{i=n}^N \binom{i-1}{n-1} \Big/ \binom{N}{n}\; r_{(i)}

    :param rewards: of independent base draws, shape ``(..., N)``.
    :param ns: numbers of draws, each at most N.
    :returns: shape ``(..., len(ns))``.
    :raises ValueError: for an n outside 1, ..., N, or NaN.

    >>> curve = best_of_n_curve(torch.tensor([3.0, 1.0, 2.0]), [1, 2, 3])
    >>> [round(mean, 4) for mean in curve.tolist()]
    [2.0, 2.6667, 3.0]
    """
    count = rewards.shape[-1] if rewards.dim() else 0
    if bool(rewards.isnan().any()):
        raise ValueError("a reward is NaN")
    ordered = as_double(rewards).sort(-1).values
    rank = torch.arange(1, count + 1, dtype=ordered.dtype, device=ordered.device)
    curve = []
    for n in ns:
        if _check_n(n) > count:
            raise ValueError(f"n = {n} exceeds the {count} draws")
        # Log binomials up to a constant, as the weights sum to one.
        below = (rank - n).clamp(min=0.0)
        logs = torch.lgamma(rank) - torch.lgamma(below + 1.0)
        weights = logs.masked_fill(rank < n, -math.inf).softmax(-1)
        terms = torch.where(weights > 0.0, weights * ordered, torch.zeros_like(ordered))
        curve.append(terms.sum(-1))
    return torch.stack(curve, -1)


def _check_n(n: int, name: str = "n") -> int:
    if isinstance(n, bool) or not float(n).is_integer() or n < 1:
        raise ValueError(f"{name} must be an integer of at least 1, got {n!r}")
    return int(n)
