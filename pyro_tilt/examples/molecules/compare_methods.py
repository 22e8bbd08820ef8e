# SPDX-License-Identifier: Apache-2.0
"""Ways of aligning the molecules to drug-likeness, with what their values cost to train."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_tilt.examples.molecules import compare_kl
from pyro_tilt.examples.molecules.compare_kl import Yardstick
from pyro_tilt.examples.molecules.compare_outcome import Spent
from pyro_tilt.examples.molecules.compare_values import (
    ForeseeingProgram,
    MoleculeValue,
    learn_value,
)
from pyro_tilt.infer import (
    AISP,
    GSI,
    LCB,
    SMC,
    BestOfN,
    ImportanceSampler,
    Sampler,
    SoftBestOfN,
    WeightedSamples,
)
from pyro_tilt.infer.cost import CountRows
from pyro_tilt.language import NeuralLM
from pyro_tilt.rewards import Reward

MAX_BATCH = 4096
CHAINS = 8


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


def methods(
    target: NeuralLM,
    draft: NeuralLM,
    reward: Reward,
    settings: CompareSettings,
    trained: Trained,
    yardstick: Yardstick,
) -> list[Method]:
    """
    The ways of aligning.

    :param target: the large model.
    :param draft: the small model.
    :param reward: of tokens.
    :param settings: see :class:`CompareSettings`.
    :param trained: values for those that go step by step.
    :param yardstick: see :class:`Yardstick`.
    """
    s, value = settings, trained.value
    plug_in = MoleculeValue(value.learned, reward, s.beta, exact=False)
    network: Any = target.model
    # An LCB over steps is another class, which only its options tell.
    stepwise: Any = LCB
    plain, small, foreseeing = target.program(), draft.program(), ForeseeingProgram(target)
    tilt: dict[str, Any] = {"reward": reward, "beta": s.beta, "progress": False}
    few: dict[str, Any] = {"max_batch": MAX_BATCH}
    price: dict[str, Any] = {
        "training_rows": trained.rows,
        "training_seconds": trained.seconds,
    }

    def best(n: int) -> Method:
        return Method(
            f"best of {n}",
            lambda draws, seed: BestOfN(
                plain,
                reward=reward,
                n=n,
                num_samples=draws,
                seed=seed,
                progress=False,
                **few,
            ),
            lambda result: compare_kl.of_best_of_n(yardstick, n),
        )

    def gsi(draws: int, seed: int, **options: Any) -> Sampler:
        guided = options.pop("program", plain)
        options = {"threshold": s.threshold, "n": s.n, **few, **tilt, **options}
        return GSI(guided, draft=small, num_samples=draws, seed=seed, **options)

    def aisp(draws: int, seed: int, returns: str) -> Sampler:
        each = max(1, s.large_n // 4)
        return AISP(
            plain,
            module=network.head,
            reward=reward,
            beta=s.beta,
            n=each,
            iterations=3,
            num_final=each,
            num_samples=max(1, draws // (each if returns == "final" else 1)),
            returns=returns,
            seed=seed,
            progress=False,
            **few,
        )

    def lcb(draws: int, seed: int) -> Sampler:
        made: Sampler = stepwise(
            foreseeing,
            value=plug_in,
            log_mgf=plug_in.log_mgf,
            num_samples=draws,
            tilt_start=False,
            check_lineage=False,
            seed=seed,
            **few,
            **tilt,
        )
        return made

    def ratio(result: WeightedSamples) -> Tensor:
        return plug_in.log_ratio(target, result.samples["tokens"])

    return [
        Method(
            "importance sampling",
            lambda draws, seed: ImportanceSampler(
                plain, num_samples=draws, seed=seed, **few, **tilt
            ),
            compare_kl.of_the_tilt,
        ),
        best(s.n),
        best(s.large_n),
        Method(
            f"soft best of {s.n}",
            lambda draws, seed: SoftBestOfN(
                plain, n=s.n, num_samples=draws, seed=seed, **few, **tilt
            ),
            lambda result: compare_kl.of_soft_best_of_n(yardstick, s.beta, s.n),
        ),
        Method(
            f"GSI, whole, {s.n} of the draft",
            gsi,
            lambda result: compare_kl.of_gsi(
                result, target, draft, yardstick, n=s.n, threshold=s.threshold
            ),
        ),
        Method(
            f"GSI, blocks of {s.block}, learned values",
            lambda draws, seed: gsi(draws, seed, program=foreseeing, block=s.block, value=value),
            lambda result: Spent(None),
            **price,
        ),
        Method(
            "SMC, learned twists",
            lambda draws, seed: SMC(
                foreseeing,
                num_particles=max(2, draws // CHAINS),
                num_chains=CHAINS,
                twist=value,
                check_lineage=False,
                seed=seed,
                **tilt,
            ),
            compare_kl.of_the_tilt,
            unit=CHAINS,
            # A large population goes elsewhere than a small one, and is no sum of small ones.
            pilots=(0.1, 0.4),
            parts=False,
            **price,
        ),
        Method(
            "LCB by steps, learned values",
            lcb,
            lambda result: compare_kl.of_chain(ratio(result)),
            correction=lambda result: s.beta * result.stats["reward"].double() - ratio(result),
            **price,
        ),
        Method(
            "AISP, final draws",
            lambda draws, seed: aisp(draws, seed, "final"),
            compare_kl.of_aisp,
            unit=max(1, s.large_n // 4),
        ),
        Method(
            "AISP, best seen",
            lambda draws, seed: aisp(draws, seed, "best"),
            lambda result: Spent(None),
        ),
    ]
