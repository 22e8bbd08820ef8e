# SPDX-License-Identifier: Apache-2.0
"""Token laws of speculative sampling whose draft carries the reward."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_tilt.language.laws.checks import log_base, returned

__all__ = ["shifted_acceptance", "shifted_speculative", "token_tilt"]

RULES = ("normalised", "published")


def token_tilt(target: Tensor, aligned: Tensor, reference: Tensor, *, log: bool = False) -> Tensor:
    r"""
    The target tilted by the ratio of an aligned draft to its reference,
    :math:`\pi_T \pi_r / (\pi_s Z)`.

    Normalised at every token, this is not the tilt of whole sequences: the two agree only where Z
    is the same after every beginning.

    :param target: next-token probabilities :math:`\pi_T`, shape ``(..., V)``.
    :param aligned: those of the aligned draft, :math:`\pi_r`.
    :param reference: those of the draft before alignment, :math:`\pi_s`.
    :param log: whether all of them and the result are log probabilities.
    :raises ValueError: for different vocabularies, or a reference without mass where target and
        aligned draft have some.

    >>> half = torch.tensor([0.5, 0.5])
    >>> token_tilt(half, torch.tensor([0.25, 0.75]), half).tolist()
    [0.25, 0.75]
    """
    big, small, _, ratio = _models(target, aligned, reference, log)
    del big
    return returned((small + ratio).log_softmax(-1), target, log)


def shifted_speculative(
    target: Tensor,
    aligned: Tensor,
    reference: Tensor,
    *,
    rule: str = "normalised",
    log: bool = False,
) -> Tensor:
    r"""
    The law of a token of reward-shifted speculative sampling.

    A token of the aligned draft :math:`\pi_r` is accepted or replaced by one of a residual law.

    ``"normalised"``: with q the :func:`token_tilt`, acceptance :math:`\min(1, q/\pi_r)` and
    residual :math:`(q - \pi_r)_+`, the law is q always (derived here).

    ``"published"``: acceptance :math:`\min(1, \pi_T/\pi_s)` and residual
    :math:`(\pi_r (\pi_T/\pi_s - 1))_+` (arXiv 2508.15044). The law is q if and only if
    :math:`Z = \sum \pi_T \pi_r / \pi_s = 1` (derived here).

    With ``aligned`` equal to ``reference`` the first rule is speculative sampling of the target.

    :param target: next-token probabilities :math:`\pi_T`, shape ``(..., V)``.
    :param aligned: those of the aligned draft, :math:`\pi_r`.
    :param reference: those of the draft before alignment, :math:`\pi_s`.
    :param rule: ``"normalised"`` or ``"published"``.
    :param log: whether all of them and the result are log probabilities.
    :raises ValueError: as :func:`token_tilt`, for an unknown rule, or where the published rule
        rejects and leaves no residual.

    >>> half = torch.tensor([0.5, 0.5])
    >>> law = shifted_speculative(half, torch.tensor([0.25, 0.75]), half, rule="published")
    >>> law.tolist()
    [0.25, 0.75]
    """
    scaled, small = _scaled(target, aligned, reference, rule, log)
    accepted = torch.minimum(small, scaled).exp()
    residual = (scaled.exp() - small.exp()).clamp(min=0.0)
    total = residual.sum(-1, keepdim=True)
    rejected = (1.0 - accepted.sum(-1, keepdim=True)).clamp(min=0.0)
    if bool(((total == 0.0) & (rejected > 1e-9)).any()):
        raise ValueError(
            "the published rule rejects tokens and has no residual to draw from, as the target is "
            "below the reference wherever the aligned draft has mass; use rule='normalised'"
        )
    law = accepted + torch.where(total > 0.0, rejected * residual / total, residual)
    return returned(law.log(), target, log)


def shifted_acceptance(
    target: Tensor,
    aligned: Tensor,
    reference: Tensor,
    *,
    rule: str = "normalised",
    log: bool = False,
) -> Tensor:
    """
    The probability that a token of the aligned draft is accepted, shape (...).

    Its arguments are those of :func:`shifted_speculative`.

    >>> half = torch.tensor([0.5, 0.5])
    >>> shifted_acceptance(half, half, half).item()
    1.0
    """
    scaled, small = _scaled(target, aligned, reference, rule, log)
    return torch.minimum(small, scaled).exp().sum(-1).clamp(max=1.0).to(target.dtype)


def _scaled(
    target: Tensor, aligned: Tensor, reference: Tensor, rule: str, log: bool
) -> tuple[Tensor, Tensor]:
    """What acceptance compares the aligned draft with, and that draft; both logs."""
    if rule not in RULES:
        raise ValueError(f"rule must be one of {', '.join(RULES)}; got {rule!r}")
    _, small, _, ratio = _models(target, aligned, reference, log)
    scaled = small + ratio
    return (scaled.log_softmax(-1) if rule == "normalised" else scaled), small


def _models(
    target: Tensor, aligned: Tensor, reference: Tensor, log: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The three log laws, and the log ratio of target to reference where the draft has mass."""
    big = log_base(target, log, name="target")
    small = log_base(aligned, log, name="aligned")
    before = log_base(reference, log, name="reference")
    if len({big.shape[-1], small.shape[-1], before.shape[-1]}) > 1:
        raise ValueError(
            "the vocabularies differ: target, aligned and reference have "
            f"{big.shape[-1]}, {small.shape[-1]} and {before.shape[-1]} tokens"
        )
    big, small, before = torch.broadcast_tensors(big, small, before)
    both = (big > -math.inf) & (small > -math.inf)
    if bool((both & (before == -math.inf)).any()):
        raise ValueError(
            "the reference has no mass at tokens where target and aligned draft have some"
        )
    if not bool(both.any(-1).all()):
        raise ValueError("target and aligned draft have no token in common")
    ratio = torch.where(both, big - before, torch.full_like(big, -math.inf))
    return big, small, before, ratio
