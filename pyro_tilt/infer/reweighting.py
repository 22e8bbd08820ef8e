# SPDX-License-Identifier: Apache-2.0
"""Draws of one tilt as weighted draws of another."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from pyro_tilt.infer.certificate import Certificate
from pyro_tilt.infer.merge import normalized_residuals
from pyro_tilt.infer.tail_words import judged_tail, without_judgement
from pyro_tilt.ops.importance import as_double, log_evidence, log_mean_exp
from pyro_tilt.ops.psis import pareto_smooth

if TYPE_CHECKING:
    from pyro_tilt.infer.weighted_samples import WeightedSamples

_ERROR = "the error at this number of draws"


@dataclass(frozen=True)
class BaseView:
    """
    Draws weighted for the base program given its observations and other factors.

    :ivar reward: reward of each draw, ``(N,)`` float64.
    :ivar log_weights: log weights towards the base, ``(N,)``.
    :ivar log_mass: log share of the base law that the draws can represent; below zero where the
        reward is -inf on a part of it that the sampler never returns.
    """

    reward: Tensor
    log_weights: Tensor
    log_mass: Tensor


def reward_and_beta(result: WeightedSamples) -> tuple[Tensor, float]:
    """
    The reward of each draw in float64, and the one beta.

    :param result: the draws.
    :raises ValueError: where either is missing.
    """
    if result.beta is None:
        raise ValueError("this result has no one beta: its program has no tilt, or several betas")
    if "reward" not in result.stats:
        raise ValueError('this result has no stats["reward"] to reweight by')
    return as_double(result.stats["reward"].detach()), result.beta


def draws_are_proposals(result: WeightedSamples) -> bool:
    """Whether ``result.base`` holds the very draws of a weighted result."""
    return (
        result.kind == "weighted"
        and result.base is not None
        and "reward" in result.stats
        and torch.equal(result.base.reward, result.stats["reward"])
    )


def target_log_weights(result: WeightedSamples) -> Tensor:
    """
    Raw log weights towards the target, with the residual correction where there is one.

    :param result: the draws.
    """
    return result.log_weights + normalized_residuals(result)


def base_view(result: WeightedSamples) -> BaseView:
    r"""
    Undoes the tilt: the weight of a draw for the base is :math:`w_i e^{-\beta r_i}`.

    A draw of reward -inf has lost its weight for the base. It is read off ``result.base`` where
    that holds the same draws; elsewhere the mass of such draws is estimated from the base draws.

    :param result: the draws.
    :raises ValueError: where neither is possible.
    """
    reward, beta = reward_and_beta(result)
    log_mass = reward.new_zeros(())
    if draws_are_proposals(result) and result.base is not None:
        return BaseView(reward, as_double(result.base.log_factors), log_mass)
    log_weights = target_log_weights(result)
    if beta == 0:
        return BaseView(reward, log_weights, log_mass)
    lost = torch.isneginf(reward)
    log_weights = torch.where(lost, -math.inf, log_weights - beta * reward.masked_fill(lost, 0.0))
    if result.base is not None:
        log_factors = as_double(result.base.log_factors)
        possible = ~torch.isneginf(result.base.reward)
        if not bool(possible.all()):
            alive = log_factors.masked_fill(~possible, -math.inf)
            log_mass = torch.logsumexp(alive, 0) - torch.logsumexp(log_factors, 0)
    elif bool(lost.any()):
        raise ValueError(
            f"{int(lost.sum())} draws have a reward of -inf, so that their weight for the base "
            "program is lost and this result keeps no base draws to take it from"
        )
    return BaseView(reward, log_weights, log_mass)


def reweight(result: WeightedSamples, beta: float) -> WeightedSamples:
    r"""
    Weighted draws of the tilt at another beta, :math:`w_i e^{(\beta' - \beta) r_i}`.

    Residual weights enter, the Pareto shape is estimated anew, and the certificate is at most
    consistent. Statistics of the run's steps and acceptance do not carry over. Draws of a run that
    has no evidence (nan) have none at the new beta either: their weights tell a ratio alone.

    :param result: the draws, with ``stats["reward"]``.
    :param beta: the new beta.
    :raises ValueError: for a beta that is not finite, without a reward, where the new law has
        mass that the draws do not reach (a reward of -inf, and a beta of zero), or where the new
        tilt does not exist (a reward of -inf, and a negative beta).

    >>> from pyro_tilt.infer.weighted_samples import WeightedSamples
    >>> draws = WeightedSamples(
    ...     kind="iid",
    ...     samples={"x": torch.tensor([0.0, 1.0])},
    ...     stats={"reward": torch.tensor([0.0, 1.0])},
    ...     log_weights=torch.zeros(2),
    ...     certificate=Certificate(target="joint tilt", law="exact"),
    ...     beta=0.0,
    ... )
    >>> round(reweight(draws, 1.0).expectation("x").item(), 4)
    0.7311
    """
    beta = float(beta)
    if not math.isfinite(beta):
        raise ValueError(f"beta must be finite; got {beta}")
    reward, old = reward_and_beta(result)
    impossible = torch.isneginf(reward)
    if beta < 0 and bool(impossible.any()):
        raise ValueError(
            f"{int(impossible.sum())} draws have a reward of -inf, which a negative beta ({beta}) "
            "turns into an infinite weight: that tilt does not exist"
        )
    if beta <= 0 < old:
        view = base_view(result)
        if float(view.log_mass) < 0:
            raise ValueError(
                "the base program has mass where the reward is -inf, which draws aligned at "
                f"beta = {old} never reach; they cannot be reweighted to beta = {beta}"
            )
        log_weights = view.log_weights
        if beta < 0:
            log_weights = log_weights + beta * reward
    else:
        change = (beta - old) * reward.masked_fill(impossible, 0.0)
        log_weights = target_log_weights(result) + change
        if beta > 0:
            log_weights = log_weights.masked_fill(impossible, -math.inf)
    return _weighted(result, log_weights, beta)


def _weighted(result: WeightedSamples, log_weights: Tensor, beta: float) -> WeightedSamples:
    value, error = log_evidence(log_weights)
    new_error: Tensor | None = error
    chain_values = None
    if bool(result.log_normalizer.isnan()):
        # The weights tell a ratio of evidences, and one of the two is not known.
        value = new_error = result.log_normalizer
    elif result.kind == "weighted":
        # The constructor takes the spread of several chains.
        new_error = error if result.num_chains == 1 else None
    else:
        # Equal weights carry the pooled evidence, whose own error is independent of the draws.
        new_error = torch.hypot(error, result.log_normalizer_error)
        parts = torch.split(log_weights, list(result.chain_sizes))
        means = torch.stack([log_mean_exp(part) for part in parts])
        chain_values = means - result.log_normalizer + result.chain_log_normalizers
    smoothed, shape = pareto_smooth(log_weights)
    return replace(
        result,
        kind="weighted",
        log_weights=log_weights,
        log_normalizer=value,
        log_normalizer_error=cast(Tensor, new_error),
        chain_log_normalizers=cast(Tensor, chain_values),
        certificate=_consistent(result, float(shape)),
        steps={},
        info={"reweighted_from": float(result.beta or 0.0)} | _of_the_base(result),
        beta=beta,
        psis_log_weights=smoothed,
        pareto_k=float(shape),
        residual_log_weights=None,
    )


def _of_the_base(result: WeightedSamples) -> dict[str, float]:
    name = "base_log_normalizer"
    return {name: result.info[name]} if name in result.info else {}


def _consistent(result: WeightedSamples, pareto_k: float) -> Certificate:
    made = result.certificate
    excludes = without_judgement(made.excludes)
    budget = "num_samples"
    if made.law == "consistent" and made.budget:
        budget = made.budget
    elif made.law == "bounded" and result.residual_log_weights is None:
        budget = "num_samples together with the accuracy of the run that was reweighted"
    if not excludes.startswith(_ERROR):
        excludes = "; ".join(filter(None, [_ERROR, excludes]))
    return Certificate(
        target=made.target,
        law="search" if made.law == "search" else "consistent",
        gap=made.gap,
        budget=budget,
        covers="self-normalised expectations at the new beta",
        excludes=excludes + judged_tail(pareto_k, len(result)),
    )
