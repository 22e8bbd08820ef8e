# SPDX-License-Identifier: Apache-2.0
"""What summary and plots read off a result, as float64 arrays."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pyro_tilt.ops.importance import as_double, normalize
from pyro_tilt.ops.psis import khat_threshold, pareto_smooth

if TYPE_CHECKING:
    from pyro_tilt.infer.weighted_samples import WeightedSamples


def array(values: Tensor) -> np.ndarray:
    """A tensor as a float64 array on the CPU."""
    return values.detach().to("cpu", torch.float64).numpy()


def chain_slices(result: WeightedSamples) -> list[slice]:
    """Where each independent run lies along the draws."""
    ends = np.cumsum(result.chain_sizes)
    return [slice(int(end) - size, int(end)) for size, end in zip(result.chain_sizes, ends)]


def analysis_weights(result: WeightedSamples) -> np.ndarray:
    """The weights of an expectation, which sum to one; all zero where every weight is zero."""
    count = len(result)
    if not bool((result.log_weights > -math.inf).any()):
        return np.zeros(count)
    log_weights = result.analysis_log_weights()
    return np.full(count, 1.0 / count) if log_weights is None else array(normalize(log_weights))


def baseline(result: WeightedSamples) -> float:
    """The log weight from which every proposal is accepted; nan for samplers without one."""
    return result.info.get("baseline", result.info.get("log_bound", math.nan))


@dataclass(frozen=True)
class Side:
    """
    Rewards of the base program, or of the aligned law.

    :ivar reward: one per draw.
    :ivar weight: weights that sum to one, all zero where every weight is zero.
    :ivar mean: the weighted mean; nan without mass, -inf where that reward has mass.
    :ivar error: its standard error; nan where it cannot be estimated.
    """

    reward: np.ndarray
    weight: np.ndarray
    mean: float
    error: float

    @property
    def live(self) -> np.ndarray:
        """True where the weight is positive."""
        return self.weight > 0.0

    @property
    def impossible(self) -> float:
        """The mass at a reward of -inf."""
        return float(self.weight[np.isneginf(self.reward)].sum())


def before(result: WeightedSamples) -> Side | None:
    """
    Rewards under the base program given its observations and other factors.

    None where the result keeps no base proposals, or its program has no reward.
    """
    base = result.base
    if base is None or len(base.reward) == 0:
        return None
    if result.beta is None and "reward" not in result.stats:
        return None
    return _side(base.reward, base.log_factors, _independent_error)


def after(result: WeightedSamples) -> Side | None:
    """
    Rewards under the aligned law, by the raw weights as in the evidence and the KL.

    None where the draws have no reward.
    """
    from pyro_tilt.diagnostics.estimators import error_of_mean

    reward = result.stats.get("reward")
    if reward is None or len(reward) == 0:
        return None
    return _side(reward, result.log_weights, lambda influence: error_of_mean(influence, result))


def _side(reward: Tensor, log_weights: Tensor, error_of: Callable[[Tensor], float]) -> Side:
    reward, weight = as_double(reward.detach()), normalize(log_weights)
    live = weight > 0.0
    mean = float(weight[live] @ reward[live]) if bool(live.any()) else math.nan
    error = math.nan
    if math.isfinite(mean) and int(live.sum()) > 1:
        shift = torch.where(live, reward - mean, 0.0)
        error = error_of(len(weight) * weight * shift)
    return Side(array(reward), array(weight), mean, error)


def _independent_error(influence: Tensor) -> float:
    return float(influence.std()) / math.sqrt(len(influence))


def base_log_weights(result: WeightedSamples) -> np.ndarray | None:
    """Log weights ``log_factors + beta * reward`` of the base proposals kept, if any."""
    if result.base is None or result.beta is None or len(result.base.reward) == 0:
        return None
    tilt = result.beta * array(result.base.reward) if result.beta else 0.0
    return array(result.base.log_factors) + tilt


@dataclass(frozen=True)
class Tail:
    """k-hat (None where no tail was fitted), its threshold, and a verdict with its reason."""

    k: float | None
    threshold: float
    verdict: str
    reason: str


def tail(result: WeightedSamples) -> Tail | None:
    """
    k-hat against its threshold ``min(.7, 1 - 1/log10 N)``, and a word for it.

    ``ok`` up to the threshold and for a flat tail, ``strained`` above it, ``broken`` from 1 on,
    where the weights have no mean (Vehtari, Simpson, Gelman, Yao and Gabry 2024, arXiv
    1507.02646); ``unknown`` where too few weights are positive to fit a tail. Where the sampler
    fitted none, as samplers with steps do, it is fitted here to the weights at the end. None for
    draws that carry no weights.
    """
    if result.kind != "weighted" or len(result) == 0:
        return None
    threshold = float(khat_threshold(len(result)))
    k = result.pareto_k
    if bool((result.log_weights == result.log_weights[0]).all()):
        return Tail(None, threshold, "ok", "flat tail")
    if k is None:
        k = float(pareto_smooth(result.log_weights)[1])
    if math.isnan(k):
        return Tail(None, threshold, "ok", "flat tail")
    if math.isinf(k):
        return Tail(None, threshold, "unknown", "too few weights in the tail")
    verdict = "ok" if k <= threshold else "strained" if k < 1.0 else "broken"
    return Tail(k, threshold, verdict, "")


def ess_level(value: float, count: int) -> str:
    """
    A word for an effective sample size.

    At least half of the draws is ``ok`` whatever their number; so are a hundred if they are one
    in a hundred. Below five it is ``broken``, else ``strained``.
    """
    if value >= 0.5 * count > 0 or (value >= 100.0 and value >= 0.01 * count):
        return "ok"
    return "broken" if value < 5.0 else "strained"


@dataclass(frozen=True)
class LowestESS:
    """The lowest effective sample size of any step: which step (from 1) and of how many."""

    value: float
    step: int
    particles: int


def lowest_ess(result: WeightedSamples) -> LowestESS | None:
    """
    Where the particles of a sampler with steps were fewest, as a share of their number.

    :param result: the result of any sampler; None for one that keeps no such record.
    """
    if "ess" not in result.steps:
        return None
    rows = by_chain(result, "ess")
    sizes = np.broadcast_to(particles(result)[:, None], rows.shape)
    if not np.isfinite(rows).any() or not sizes.min() > 0:
        return None
    run, step = np.unravel_index(np.nanargmin(rows / sizes), rows.shape)
    return LowestESS(float(rows[run, step]), int(step) + 1, round(sizes[run, step]))


def particles(result: WeightedSamples) -> np.ndarray:
    """
    Of how many particles the steps of each run tell, ``(chain,)``.

    They are the draws of the run, but where every draw comes from a search with particles of its
    own they are the ``n`` of that search.
    """
    own = None if "resampled" in result.steps else result.info.get("n")
    sizes = np.array(result.chain_sizes, dtype=np.float64)
    return sizes if own is None else np.full_like(sizes, own)


def by_chain(result: WeightedSamples, name: str) -> np.ndarray:
    """A statistic per step, of shape ``(chain, step)``."""
    rows = array(result.steps[name])
    return rows if result.num_chains > 1 else rows[None]
