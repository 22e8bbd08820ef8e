# SPDX-License-Identifier: Apache-2.0
"""How far each way of aligning goes from the model, by a formula of its own law."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_tilt.diagnostics import Estimate, FrontierPoint, kl
from pyro_tilt.examples.means import mean_of
from pyro_tilt.examples.molecules.compare_outcome import Spent, shares_ancestors
from pyro_tilt.infer import WeightedSamples
from pyro_tilt.language import NeuralLM, laws

# Of a value beside draws that stand for their law: it takes no part in it.
_NOTHING = 1e-12


@dataclass(frozen=True)
class Yardstick:
    r"""
    Draws of both models that are no part of any method's budget.

    :ivar base: rewards of draws of the target.
    :ivar guided: :math:`\tilde r = r + \frac1\beta \log\frac{\pi_B}{\pi_S}` of draws of the draft.
    """

    base: Tensor
    guided: Tensor


def tilts(yardstick: Yardstick, betas: Sequence[float]) -> list[FrontierPoint]:
    """
    The frontier that no law can pass: the tilts of the model itself, by weights of base draws.

    :param yardstick: see :class:`Yardstick`.
    :param betas: strengths.
    """
    found = []
    for beta in betas:
        weights = (beta * yardstick.base).softmax(0)
        reward = mean_of(yardstick.base, weights)
        log_z = (beta * yardstick.base).logsumexp(0) - math.log(len(weights))
        spent = Estimate(max(0.0, beta * reward[0] - float(log_z)), math.nan)
        found.append(
            FrontierPoint("tilts of the model", spent, Estimate(*reward), beta, kl_kind="estimate")
        )
    return found


def of_the_tilt(result: WeightedSamples) -> Spent:
    r"""
    :math:`\beta\, E_q r - \log Z` by the draws' own weights.

    :param result: weighted draws.
    """
    found = kl_of_tilt(result)
    return Spent(*found, how="of the tilt, by its own weights")


def kl_of_tilt(result: WeightedSamples) -> tuple[float, float]:
    """Value and standard error of the divergence of a tilt from the base."""
    beta, weights = float(result.beta or 0.0), result.normalized_weights
    reward = result.stats["reward"].double()
    spent = beta * (weights * reward).sum()
    influence = weights * (beta * reward - spent) - weights + 1.0 / len(weights)
    sizes = list(result.chain_sizes)
    parts = influence.split(sizes)
    if len(parts) > 1 and shares_ancestors(result):
        sums = torch.stack([part.sum() for part in parts])
        error = float((sums.square().sum() * len(parts) / (len(parts) - 1)).sqrt())
    else:
        error = float(influence.square().sum().sqrt())
    return max(0.0, float(spent - result.log_normalizer)), error


def of_best_of_n(yardstick: Yardstick, n: int) -> Spent:
    """
    The exact law over classes of equal reward, with the shares of base draws for their masses.

    :param yardstick: see :class:`Yardstick`.
    :param n: draws to choose from.
    """
    base = torch.full_like(yardstick.base, 1.0 / len(yardstick.base))
    law = laws.best_of_n(base, yardstick.base, n)
    return Spent(float(kl.exact(law, base)), how="exact law over classes of base rewards")


def of_soft_best_of_n(yardstick: Yardstick, beta: float, n: int) -> Spent:
    """
    The exact law over base draws.

    :param yardstick: see :class:`Yardstick`.
    :param beta: multiplies the reward.
    :param n: draws to choose from.
    """
    base = torch.full_like(yardstick.base, 1.0 / len(yardstick.base))
    law = laws.soft_best_of_n(base, yardstick.base, beta, n)
    return Spent(float(kl.exact(law, base)), how="exact law over base rewards")


def log_ratio_of_soft(rewards: Tensor, at: Tensor, beta: float, n: int) -> Tensor:
    """
    Log ratio of the soft best-of-n law to what it draws from.

    :param rewards: of draws that stand for that, shape ``(m,)``.
    :param at: rewards to ask for, shape ``(k,)``.
    :param beta: multiplies the reward.
    :param n: draws to choose from.
    """
    masses = torch.cat([torch.full_like(rewards, 1.0 / len(rewards)), _NOTHING + 0.0 * at])
    base = (masses / masses.sum()).log()
    law = laws.soft_best_of_n(base, torch.cat([rewards, at]), beta, n, log=True)
    return (law - base)[len(rewards) :]


@torch.no_grad()
def of_gsi(
    result: WeightedSamples,
    target: NeuralLM,
    draft: NeuralLM,
    yardstick: Yardstick,
    *,
    n: int,
    threshold: float,
) -> Spent:
    """
    The log ratio of the exact law, averaged over its draws.

    :param result: whole draws under the published rule.
    :param target: the large model.
    :param draft: the small model.
    :param yardstick: see :class:`Yardstick`.
    :param n: draws to choose from.
    :param threshold: u.
    """
    beta, tokens = float(result.beta or 0.0), result.samples["tokens"]
    reward = result.stats["reward"].double()
    ratio = (target.log_prob(tokens) - draft.log_prob(tokens)).double()
    guided = reward + ratio / beta
    drafted = log_ratio_of_soft(yardstick.guided, guided, beta, n) - ratio
    drafted = drafted.masked_fill(guided < threshold, -math.inf)
    # The chance that the draft's choice lies below the threshold, over the same draws.
    base = torch.full_like(yardstick.guided, 1.0 / len(yardstick.guided))
    law = laws.soft_best_of_n(base, yardstick.guided, beta, n)
    missed = float(law[yardstick.guided < threshold].sum())
    fallen = log_ratio_of_soft(yardstick.base, reward, beta, n) + math.log(max(missed, 1e-300))
    found = torch.logaddexp(drafted, fallen)
    error = float(found.std()) / math.sqrt(len(found))
    return Spent(max(0.0, float(found.mean())), error, "log ratio of the exact law at its draws")


def of_chain(log_ratio: Tensor) -> Spent:
    """
    The mean log ratio of a value-tilted chain to the model.

    :param log_ratio: of its draws.
    """
    error = float(log_ratio.std()) / math.sqrt(len(log_ratio))
    return Spent(float(log_ratio.mean()), error, "log ratio of its chain at its draws")


def of_aisp(result: WeightedSamples) -> Spent:
    r"""
    :math:`\|U\|^2 / (2\sigma^2)`, a bound for the final draws, from greedy decoding under noise.

    :param result: final draws.
    """
    bound = float(result.info["kl_bound"])
    how = "bound |U|²/(2σ²), from greedy decoding under noise and not from the model"
    return Spent(bound, how=how, kind="bound")
