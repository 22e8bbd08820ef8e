# SPDX-License-Identifier: Apache-2.0
"""The divergence of the law that draws follow, which is not always that of their target."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
from torch import Tensor

from pyro_tilt.diagnostics import kl
from pyro_tilt.diagnostics.estimators import (
    UNKNOWN,
    Estimate,
    error_of_mean,
    kl_to_base,
    log_mean_tilt,
)
from pyro_tilt.diagnostics.levels import GROUPS, jackknife, levels
from pyro_tilt.diagnostics.two_models_kl import kl_of_two_models
from pyro_tilt.ops.importance import as_double, log_mean_exp
from pyro_tilt.rewards import log_tilt

if TYPE_CHECKING:
    from pyro_tilt.infer.weighted_samples import WeightedSamples

Kind: TypeAlias = Literal["exact", "estimate", "bound", "unknown"]
Outcomes: TypeAlias = "tuple[Tensor, Tensor]"


def kl_of_draws(result: WeightedSamples, outcomes: Outcomes | None = None) -> tuple[Estimate, Kind]:
    """
    The divergence from the base of the law that the draws of a result follow.

    A choice among n draws has a law of its own for every n. Where ``outcomes`` lists the base, its
    divergence is exact; otherwise it is that of the same rule on the base draws of the run, rewards
    that are equal forming one class, with an error by leaving groups of them out in turn. Where
    neither will do, a bound that the run states takes its place. LCB follows the clipped tilt. The
    other samplers follow their target, or tend to it with their draws.

    :param result: draws with a reward.
    :param outcomes: probabilities and rewards of all outcomes, of shape (K,) each.
    :returns: nats, and whether they are exact, an estimate, an upper bound or, with nan, unknown.
    """
    found, kind = _of_law(result, outcomes)
    return found, "unknown" if math.isnan(found.value) else kind


def _of_law(result: WeightedSamples, outcomes: Outcomes | None) -> tuple[Estimate, Kind]:
    rule, bound = _rule(result), result.info.get("kl_upper_bound", math.nan)
    if rule is not None:
        return _of_rule(result, rule, outcomes)
    if not math.isnan(bound):
        return Estimate(bound, 0.0), "bound"
    searched = result.kind == "iid" and result.certificate.law == "search"
    if result.sampler in ("GSI", "RewardGuided") and result.kind == "iid":
        found = kl_of_two_models(result)
        # Where the target makes every draw.
        return found, "exact" if found == (0.0, 0.0) else "estimate"
    if "log_ratio" in result.stats and result.kind == "iid":
        ratio = as_double(result.stats["log_ratio"])
        found = Estimate(max(float(ratio.mean()), 0.0), error_of_mean(ratio, result))
        return found, "estimate"
    if searched:
        return UNKNOWN, "unknown"
    if result.sampler == "LCB" and result.residual_log_weights is not None:
        return _clipped(result), "estimate"
    if outcomes is not None and result.beta is not None and result.certificate.law != "bounded":
        return Estimate(_spent(_tilt(result.beta), *outcomes), 0.0), "exact"
    found = kl_to_base(result)
    return found, "exact" if found.error == 0.0 else "estimate"


Rule: TypeAlias = "Callable[[Tensor, Tensor], Tensor]"


def _rule(result: WeightedSamples) -> Rule | None:
    """The law of whole draws that were chosen by weight: of log masses and log weights."""
    from pyro_tilt.language import laws

    # Choices after blocks depend on every state in between and keep no base draws.
    if result.base is None or "n" not in result.info:
        return None
    n = round(result.info["n"])
    if result.sampler == "BestOfN":
        return lambda logs, weights: laws.best_of_n(logs, weights, n, log=True)
    if result.beta is None:
        return None
    if result.sampler == "SoftBestOfN":
        return lambda logs, weights: laws.soft_best_of_n(logs, weights, 1.0, n, log=True)
    if result.sampler == "ExpBestOfN":
        return lambda logs, weights: laws.exp_best_of_n(logs, weights, 1.0, n, log=True)
    if result.sampler == "TruncatedRejection":
        bound = result.info["log_bound"]
        return lambda logs, weights: laws.truncated_rejection(
            logs, weights, 1.0, n, log_bound=bound, log=True
        )
    return None


def _tilt(beta: float) -> Rule:
    return lambda logs, weights: (logs + log_tilt(weights, beta)).log_softmax(-1)


def _of_rule(
    result: WeightedSamples, rule: Rule, outcomes: Outcomes | None
) -> tuple[Estimate, Kind]:
    beta = 1.0 if result.beta is None else result.beta
    # Rejection proposes n times and then once more.
    if round(result.info["n"]) == 1 and result.sampler != "TruncatedRejection":
        return Estimate(0.0, 0.0), "exact"
    if outcomes is not None:
        masses, rewards = outcomes
        return Estimate(_spent(rule, masses, log_tilt(as_double(rewards), beta)), 0.0), "exact"
    assert result.base is not None
    bound = result.info.get("kl_upper_bound", math.nan)
    if not math.isnan(bound) and len(result.base.reward.unique()) == len(result.base.reward):
        # Without ties the bound is attained, and base draws know no better.
        return Estimate(bound, 0.0), "bound"
    factors = as_double(result.base.log_factors)
    weights = log_tilt(as_double(result.base.reward), beta) + factors
    found = levels(weights, round(result.info["n"]))
    return _on_base(rule, *found, factors), "estimate"


def _on_base(rule: Rule, found: Tensor, place: Tensor, factors: Tensor) -> Estimate:
    """The divergence of the rule on base draws from these draws given their factors."""
    groups = torch.arange(len(place), device=place.device) % GROUPS
    zeros = torch.zeros(GROUPS, len(found), dtype=torch.float64, device=place.device)

    def gathered(each: Tensor) -> Tensor:
        return zeros.index_put((groups, place), each, accumulate=True)

    sums = [gathered(each) for each in (torch.ones_like(factors), factors, factors.exp())]
    value = _divergence(rule, found, *(each.sum(0) for each in sums))
    if len(place) < 2 * GROUPS:
        return Estimate(float(value), math.nan)
    left = _divergence(rule, found, *(each.sum(0) - each for each in sums))
    return Estimate(float(value), jackknife(left))


def _divergence(
    rule: Rule, found: Tensor, counts: Tensor, log_factors: Tensor, factors: Tensor
) -> Tensor:
    """From sums by level of ones, log factors and factors, (..., L)."""
    total = counts.sum(-1, keepdim=True)
    logs = (counts / total).log()
    law = rule(logs, found.expand_as(logs))
    # Within a level the rule follows the base, so that the mean of the log factors will do.
    gap = law - logs - log_factors / counts
    spent = torch.where(law > -math.inf, law.exp() * gap, torch.zeros_like(gap)).sum(-1)
    return (spent + (factors.sum(-1) / total.squeeze(-1)).log()).clamp(min=0.0)


def _spent(rule: Rule, masses: Tensor, weights: Tensor) -> float:
    logs = as_double(masses).log()
    return float(kl.exact(rule(logs, as_double(weights)), logs, log=True))


def _clipped(result: WeightedSamples) -> Estimate:
    r"""
    Of draws whose residual weights :math:`\rho` are the tilt over their law, up to a constant.

    Their law is :math:`p\, e^{\beta r - \log \rho}` over its mass, which is that of the tilt over
    the mean of :math:`\rho`.
    """
    residual = result.residual_log_weights
    if result.beta is None or residual is None or not bool((residual > -math.inf).any()):
        return UNKNOWN
    spent = log_tilt(as_double(result.stats["reward"]), result.beta) - residual
    correction = log_mean_exp(residual)
    gained = log_mean_tilt(result, result.beta)
    influence = spent - spent.mean() + (residual - correction).exp()
    value = float(spent.mean() + correction) - gained.value
    return Estimate(max(value, 0.0), math.hypot(error_of_mean(influence, result), gained.error))
