# SPDX-License-Identifier: Apache-2.0
"""Ways of aligning the molecules to drug-likeness, with what their values cost to train."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_tilt.examples.molecules.compare_kl import Yardstick
from pyro_tilt.examples.molecules.compare_outcome import Spent
from pyro_tilt.examples.molecules.compare_values import MoleculeValue, learn_value
from pyro_tilt.infer import Sampler, WeightedSamples
from pyro_tilt.infer.cost import CountRows
from pyro_tilt.language import NeuralLM
from pyro_tilt.rewards import Reward


@dataclass(frozen=True)
class CompareSettings:
    """
    What is compared.

    :ivar budget_rows: rows of the target network for each method.
    :ivar beta: multiplies the reward.
    :ivar seed: makes it reproduce.
    :ivar n: draws that selection chooses from, also of GSI.
    :ivar large_n: of a second best-of-n, and sequences that a search of AISP decodes in all.
    :ivar threshold: of GSI.
    :ivar block: tokens after which GSI by blocks chooses.
    :ivar training_paths: molecules that the values are learned from; as many again judge.
    :ivar training_updates: gradient steps of the values, per step of the program.
    :ivar yardstick: draws of either model for the divergences, outside the budget.
    """

    budget_rows: int = 100_000
    beta: float = 10.0
    seed: int = 0
    n: int = 16
    large_n: int = 64
    threshold: float = 0.5
    block: int = 8
    training_paths: int = 1500
    training_updates: int = 10
    yardstick: int = 2000


@dataclass(frozen=True)
class Method:
    """
    One way of aligning.

    :ivar name: in the table.
    :ivar make: a sampler for a number of draws and a seed.
    :ivar spent: the divergence of a result from the base.
    :ivar unit: draws come in multiples of this number.
    :ivar pilots: shares of the budget of the runs, outside it, that show the price of a draw.
    :ivar parts: whether two runs make one, so that the second can spend what the first left.
    :ivar correction: log weights that correct a result to the tilt, where it holds none itself.
    :ivar training_rows: network rows that its value was trained on, with ``training_seconds``.
    """

    name: str
    make: Callable[[int, int], Sampler]
    spent: Callable[[WeightedSamples], Spent]
    unit: int = 1
    pilots: tuple[float, ...] = (0.1,)
    parts: bool = True
    correction: Callable[[WeightedSamples], Tensor] | None = None
    training_rows: int = 0
    training_seconds: float = 0.0


@dataclass(frozen=True)
class Trained:
    """A value with its price."""

    value: MoleculeValue
    rows: int
    seconds: float


def train_value(
    model: NeuralLM, reward: Reward, settings: CompareSettings, *, progress: bool | None = None
) -> Trained:
    """
    Learns the values that SMC, LCB and GSI by blocks share.

    :param model: the target model.
    :param reward: of tokens.
    :param settings: see :class:`CompareSettings`.
    :param progress: show progress bars of the training.
    """
    with CountRows() as count:
        value = learn_value(
            model,
            reward,
            settings.beta,
            num_paths=settings.training_paths,
            updates=settings.training_updates,
            seed=settings.seed,
            progress=progress,
        )
    report = value.learned.report
    assert report is not None
    return Trained(value, count.rows or 0, report.seconds)


def take_yardstick(
    target: NeuralLM, draft: NeuralLM, reward: Reward, settings: CompareSettings
) -> Yardstick:
    """
    Draws of both models for :mod:`~pyro_tilt.examples.molecules.compare_kl`.

    :param target: the large model.
    :param draft: the small model.
    :param reward: of tokens.
    :param settings: see :class:`CompareSettings`.
    """
    large = target.generate(settings.yardstick, seed=settings.seed + 1).tokens
    small = draft.generate(settings.yardstick, seed=settings.seed + 2)
    with torch.no_grad():
        ratio = target.log_prob(small.tokens) - draft.log_prob(small.tokens)
    guided = reward(small.tokens).double() + ratio.double() / settings.beta
    return Yardstick(reward(large).double(), guided)
