# SPDX-License-Identifier: Apache-2.0
"""The divergence from the target of draws that a draft and a target made together."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyro_tilt.diagnostics.estimators import UNKNOWN, Estimate
from pyro_tilt.diagnostics.levels import GROUPS, jackknife, levels
from pyro_tilt.ops.importance import as_double, effective_sample_size
from pyro_tilt.rewards import log_tilt

if TYPE_CHECKING:
    from pyro_tilt.infer.weighted_samples import WeightedSamples

_LEAST_EFFECTIVE = 100.0
"""Base draws, by their weights towards the target, that an estimate needs."""


def kl_of_two_models(result: WeightedSamples) -> Estimate:
    r"""
    The divergence from the target of whole draws of ``GSI`` or ``RewardGuided``.

    With a draw of the draft in the fraction A of cases the law is :math:`P = P_S + (1 - A)\, P_B`,
    where the chance of an outcome relative to its model is a function of its (tilted) reward alone.
    The base draws of the run, draws of the draft with rewards and
    :math:`\rho = \log \pi_B / \pi_S`, show both models, the target by the weights :math:`e^\rho`;
    the rule on them gives :math:`\log P / \pi_B` at every one of them (derived here). The error is
    that of leaving groups of them out in turn.

    :param result: the draws.
    :returns: nats; unknown for choices after blocks, whose law depends on every state in between,
        where the draft's draws were not scored, and where fewer than a hundred of them count
        towards the target.
    """
    base = result.base
    if base is None or len(base.reward) < 2 * GROUPS or _gave_up(result):
        return UNKNOWN
    reward, ratio = as_double(base.reward), as_double(base.log_factors)
    if effective_sample_size(ratio) < _LEAST_EFFECTIVE:
        return UNKNOWN
    value = _divergence(result, reward, ratio)
    group = torch.arange(len(reward), device=reward.device) % GROUPS
    left = [_divergence(result, reward[group != g], ratio[group != g]) for g in range(GROUPS)]
    return Estimate(max(float(value), 0.0), jackknife(torch.stack(left)))


def _gave_up(result: WeightedSamples) -> bool:
    capped = result.stats.get("capped")
    return capped is not None and bool(capped.any())


def _divergence(result: WeightedSamples, reward: Tensor, ratio: Tensor) -> Tensor:
    """Of the law, by parts of the draft and of the target, each relative to its model."""
    drafted, other = _parts(result, reward, ratio)
    target = ratio.log_softmax(0)
    mass = (drafted - math.log(len(ratio))).exp() + (target + other).exp()
    gap = torch.logaddexp(drafted - ratio, other)
    return torch.where(mass > 0.0, mass * gap, 0.0).sum() / mass.sum()


def _parts(result: WeightedSamples, reward: Tensor, ratio: Tensor) -> tuple[Tensor, Tensor]:
    r""":math:`\log P_S / \pi_S` and :math:`\log (1 - A) P_B / \pi_B` at every base draw."""
    if result.sampler == "RewardGuided":
        drafted = torch.zeros_like(reward)
        above = reward >= result.info["threshold"]
        return _split(drafted, torch.zeros_like(reward), above)
    assert result.beta is not None
    n, beta = round(result.info["n"]), result.beta
    tilts = as_double(log_tilt(reward, beta))
    fallback = _soft_choice(tilts, ratio.log_softmax(0), n)
    if "accept_log_bound" in result.info:
        return _accepted(tilts + ratio, fallback, n, result.info["accept_log_bound"])
    weights = tilts + ratio
    drafted = _soft_choice(weights, torch.zeros_like(ratio).log_softmax(0), n)
    above = reward + ratio / beta >= result.info["threshold"]
    if result.info["debiased"]:
        fallback = _below(fallback, ratio.log_softmax(0), above)
    return _split(drafted, fallback, above)


def _split(drafted: Tensor, fallback: Tensor, above: Tensor) -> tuple[Tensor, Tensor]:
    missed = drafted.masked_fill(above, -math.inf).logsumexp(0) - math.log(len(drafted))
    return drafted.masked_fill(~above, -math.inf), fallback + missed


def _accepted(weights: Tensor, fallback: Tensor, n: int, bound: float) -> tuple[Tensor, Tensor]:
    """Of n draws of the draft, each accepted with its weight over the bound."""
    accepted = (weights - bound).exp().mean().clamp(max=1.0)
    log_miss = n * torch.log1p(-accepted)
    tilt = weights - weights.logsumexp(0) + math.log(len(weights))
    return tilt + (-torch.expm1(log_miss)).log(), fallback + log_miss


def _below(law: Tensor, masses: Tensor, above: Tensor) -> Tensor:
    """The law given that the tilted reward is below the threshold, if that can be."""
    lower = law.masked_fill(above, -math.inf)
    total = (lower + masses).logsumexp(0)
    return lower - total if bool(total > -math.inf) else law


def _soft_choice(weights: Tensor, log_masses: Tensor, n: int) -> Tensor:
    """Log of the law of a softmax choice among n draws, relative to the draws' own law."""
    from pyro_tilt.language import laws

    found, place = levels(weights, n)
    empty = torch.zeros(len(found), dtype=weights.dtype, device=weights.device)
    masses = empty.index_add(0, place, log_masses.exp()).log()
    masses = masses - masses.logsumexp(0)
    law = laws.soft_best_of_n(masses, found, 1.0, n, log=True)
    gap = torch.where(masses > -math.inf, law - masses, torch.full_like(law, -math.inf))
    return gap[place]
