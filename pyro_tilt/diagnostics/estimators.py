# SPDX-License-Identifier: Apache-2.0
"""How far the aligned law is from the base, and what it gained, with Monte Carlo errors."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from pyro_tilt.infer.reweighting import (
    base_view,
    draws_are_proposals,
    reward_and_beta,
    target_log_weights,
)
from pyro_tilt.ops.autocorrelation import chain_effective_sample_size
from pyro_tilt.ops.importance import as_double, log_mean_exp

if TYPE_CHECKING:
    from pyro_tilt.infer.weighted_samples import WeightedSamples


class Estimate(NamedTuple):
    """
    A number with its standard error; nan where it cannot be told.

    >>> print(Estimate(1.0, 0.05))
    1 ± 0.05
    """

    value: float
    error: float

    def __str__(self) -> str:
        return f"{self.value:.4g} ± {self.error:.2g}"


UNKNOWN = Estimate(math.nan, math.nan)


def kl_to_base(result: WeightedSamples) -> Estimate:
    r"""
    The divergence of the target from the base program given its observations.

    .. math::
        \mathrm{KL}(q \,\|\, p) = \mathbb E_q[\beta r] - \log \mathbb E_p e^{\beta r}

    with p the base program given its observations and other factors. The error is that of the
    delta method. For weighted draws both terms come from the same draws: the second is the unbiased
    evidence of the run where the base has an evidence of one (``info["base_log_normalizer"]``),
    else the ratio of the weights with and without the tilt. For other draws the second
    is the run's evidence (or, without an error of it, that of the base draws) over the evidence
    of the base draws, taken as independent of the first. Residual weights enter where there are
    any, so that q is the target and not the law of the draws.

    :param result: draws with a reward.
    :returns: nats; nan where the result has no one beta, neither weights that undo the tilt nor
        base draws to compare with, or draws of a search that nothing corrects to its target.
    :raises ValueError: for a result without rewards.

    >>> import torch
    >>> from pyro_tilt.infer.certificate import Certificate
    >>> from pyro_tilt.infer.weighted_samples import WeightedSamples
    >>> r = torch.tensor([0.0, 1.0])
    >>> draws = WeightedSamples(
    ...     kind="weighted",
    ...     samples={"x": r},
    ...     stats={"reward": r},
    ...     log_weights=r,
    ...     certificate=Certificate(target="joint tilt", law="consistent"),
    ...     beta=1.0,
    ... )
    >>> round(kl_to_base(draws).value, 4)
    0.1109
    """
    if "reward" not in result.stats:
        raise ValueError('kl_to_base needs stats["reward"], which this result does not have')
    if result.beta is None:
        return UNKNOWN
    if result.beta == 0:
        return Estimate(0.0, 0.0)
    searched = result.kind == "iid" and result.certificate.law == "search"
    if searched and result.residual_log_weights is None:
        return UNKNOWN
    reward, beta = reward_and_beta(result)
    log_weights = target_log_weights(result)
    if not bool((log_weights > -math.inf).any()):
        return UNKNOWN
    spent, spent_influence = _mean(beta * reward, log_weights)
    known = result.info.get("base_log_normalizer", math.nan)
    if result.kind == "weighted" and math.isfinite(known):
        # Particles that were resampled by the tilt are few where the base has its mass.
        value = spent - log_mean_exp(log_weights) + known
        influence = spent_influence - _relative(log_weights)
        return Estimate(max(float(value), 0.0), error_of_mean(influence, result))
    if _paired(result):
        base = base_view(result).log_weights
        value = spent - log_mean_exp(log_weights) + log_mean_exp(base)
        influence = spent_influence - _relative(log_weights) + _relative(base)
        return Estimate(max(float(value), 0.0), error_of_mean(influence, result))
    gained = log_mean_tilt(result, beta)
    spent_error = error_of_mean(spent_influence, result)
    return Estimate(max(float(spent) - gained.value, 0.0), math.hypot(spent_error, gained.error))


def reward_gain(result: WeightedSamples, *, corrected: bool = False) -> Estimate:
    r"""
    How much the draws raise the expected reward, :math:`\mathbb E_q r - \mathbb E_p r`.

    p is the base program given its observations and other factors. The gain is that of the
    draws as they are; ``corrected`` takes the residual weights and so the gain of the target.

    :param result: draws with a reward.
    :param corrected: use the residual weights.
    :returns: the gain; infinite, without an error, where the base has mass at a reward of -inf,
        and nan where the base cannot be told (see :func:`kl_to_base`).
    :raises ValueError: for a result without rewards.

    >>> import torch
    >>> from pyro_tilt.infer.certificate import Certificate
    >>> from pyro_tilt.infer.weighted_samples import WeightedSamples
    >>> r = torch.tensor([0.0, 1.0])
    >>> draws = WeightedSamples(
    ...     kind="weighted",
    ...     samples={"x": r},
    ...     stats={"reward": r},
    ...     log_weights=r,
    ...     certificate=Certificate(target="joint tilt", law="consistent"),
    ...     beta=1.0,
    ... )
    >>> round(reward_gain(draws).value, 4)
    0.2311
    """
    if "reward" not in result.stats:
        raise ValueError('reward_gain needs stats["reward"], which this result does not have')
    reward = as_double(result.stats["reward"].detach())
    log_weights = target_log_weights(result) if corrected else result.log_weights
    if not bool((log_weights > -math.inf).any()):
        return UNKNOWN
    after, after_influence = _mean(reward, log_weights)
    paired = _paired(result)
    if paired:
        base_reward, base_weights = reward, base_view(result).log_weights
    elif result.base is not None and len(result.base.reward):
        base_reward = as_double(result.base.reward)
        base_weights = as_double(result.base.log_factors)
    else:
        return UNKNOWN
    before, before_influence = _mean(base_reward, base_weights)
    gain = float(after - before)
    if not math.isfinite(gain):
        return Estimate(gain, math.nan)
    if paired:
        return Estimate(gain, error_of_mean(after_influence - before_influence, result))
    return Estimate(
        gain, math.hypot(error_of_mean(after_influence, result), _plain(before_influence))
    )


def total_variation(result: WeightedSamples) -> Estimate:
    """
    The total variation distance of the draws from their target, as far as it is certified.

    An exact law has none. A certified bound stands with an error of zero: it bounds, at the
    confidence of the certificate, and is not an estimate. Where there is no bound, the
    certificate's estimate stands with an error of nan.

    :param result: any result.
    :returns: the distance; nan where the certificate states none.

    >>> import torch
    >>> from pyro_tilt.infer.certificate import Certificate
    >>> from pyro_tilt.infer.weighted_samples import WeightedSamples
    >>> draws = WeightedSamples(
    ...     kind="iid",
    ...     samples={},
    ...     log_weights=torch.zeros(2),
    ...     certificate=Certificate(target="joint tilt", law="exact"),
    ... )
    >>> total_variation(draws).value
    0.0
    """
    certificate = result.certificate
    if certificate.law == "exact":
        return Estimate(0.0, 0.0)
    if certificate.total_variation is not None:
        return Estimate(certificate.total_variation, 0.0)
    if certificate.estimated_total_variation is not None:
        return Estimate(certificate.estimated_total_variation, math.nan)
    return UNKNOWN


def _paired(result: WeightedSamples) -> bool:
    """Whether the draws themselves, with other weights, represent the base."""
    if result.kind != "weighted" or result.beta is None:
        return False
    if draws_are_proposals(result):
        return True
    lost = bool(torch.isneginf(result.stats["reward"]).any())
    return result.base is None and not lost


def _relative(log_weights: Tensor) -> Tensor:
    """Weights over their mean: the influence of a draw on the log mean weight, up to a one."""
    return (log_weights - log_mean_exp(log_weights)).exp()


def _mean(values: Tensor, log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """The self-normalised mean, and the influence of each draw on it."""
    weights = _relative(log_weights)
    values = values.masked_fill(weights == 0, 0.0)
    mean = (weights * values).mean()
    return mean, weights * (values - mean)


def log_mean_tilt(result: WeightedSamples, beta: float) -> Estimate:
    """The log of E_p e^{beta r} under the base given its observations."""
    base = result.base
    if base is None or not len(base.reward):
        return UNKNOWN
    factors = as_double(base.log_factors)
    floor = log_mean_exp(factors)
    known = float(result.log_normalizer_error)
    if math.isfinite(known) and math.isfinite(float(result.log_normalizer)):
        # Equal factors are no estimate of their mean.
        error = 0.0 if bool((factors == factors[0]).all()) else _plain(_relative(factors))
        return Estimate(float(result.log_normalizer - floor), math.hypot(known, error))
    reward = as_double(base.reward)
    impossible = torch.isneginf(reward)
    tilted = (factors + beta * reward.masked_fill(impossible, 0.0)).masked_fill(
        impossible, -math.inf
    )
    value = log_mean_exp(tilted) - floor
    return Estimate(float(value), _plain(_relative(tilted) - _relative(factors)))


def _plain(influence: Tensor) -> float:
    count = len(influence)
    return float(influence.std()) / math.sqrt(count) if count > 1 else math.nan


def error_of_mean(influence: Tensor, result: WeightedSamples) -> float:
    """
    Standard error of the mean influence.

    Draws of one particle run with steps share ancestors: several runs are compared as wholes, and
    within a single run the families of the first particles (``stats["ancestor"]``), as in the
    variance of the evidence by Chan and Lai (2013) and Lee and Whiteley (2018, arXiv 1509.00394);
    resampling that is better than multinomial makes such an error too large. A Markov chain counts
    its effective draws.
    """
    chains = torch.split(influence, list(result.chain_sizes))
    count = len(influence)
    if result.kind == "chain" and min(result.chain_sizes) >= 4:
        squares = sum(
            float(part.var())
            / max(float(chain_effective_sample_size(part[None])), 1.0)
            * (len(part) / count) ** 2
            for part in chains
        )
        return math.sqrt(squares)
    if result.steps and len(chains) > 1:
        parts = torch.stack([part.sum() / count for part in chains])
        return float((parts - parts.mean()).norm() * math.sqrt(len(chains) / (len(chains) - 1)))
    if result.steps and "ancestor" in result.stats:
        families = torch.zeros_like(influence)
        index = result.stats["ancestor"].long().to(influence.device)
        return _plain(families.index_add(0, index, influence))
    return _plain(influence)
