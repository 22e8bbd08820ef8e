# SPDX-License-Identifier: Apache-2.0
"""The samplers of the comparison, one method of a class each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from pyro_tilt.examples.molecules import compare_kl
from pyro_tilt.examples.molecules.compare_kl import Yardstick
from pyro_tilt.examples.molecules.compare_methods import CompareSettings, Method, Trained
from pyro_tilt.examples.molecules.compare_outcome import Spent
from pyro_tilt.examples.molecules.compare_values import ForeseeingProgram, MoleculeValue
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
from pyro_tilt.language import NeuralLM
from pyro_tilt.language.neural_program import NeuralProgram
from pyro_tilt.rewards import Reward

MAX_BATCH = 4096
CHAINS = 8


@dataclass(frozen=True)
class Ways:
    """
    The ways of aligning.

    :ivar target: the large model.
    :ivar draft: the small model.
    :ivar reward: of tokens.
    :ivar settings: see :class:`CompareSettings`.
    :ivar trained: values for those that go step by step.
    :ivar yardstick: see :class:`Yardstick`.
    """

    target: NeuralLM
    draft: NeuralLM
    reward: Reward
    settings: CompareSettings
    trained: Trained
    yardstick: Yardstick

    def all(self) -> list[Method]:
        """Every method, in the order of the table."""
        return [
            self.importance(),
            self.best(self.settings.n),
            self.best(self.settings.large_n),
            self.soft_best(),
            self.gsi(),
            self.gsi_by_blocks(),
            self.smc(),
            self.lcb(),
            self.aisp("final"),
            self.aisp("best"),
        ]

    @cached_property
    def plain(self) -> NeuralProgram:
        return self.target.program()

    @cached_property
    def foreseeing(self) -> ForeseeingProgram:
        return ForeseeingProgram(self.target)

    @property
    def tilt(self) -> dict[str, Any]:
        return {"reward": self.reward, "beta": self.settings.beta, "progress": False}

    @property
    def price(self) -> dict[str, Any]:
        return {"training_rows": self.trained.rows, "training_seconds": self.trained.seconds}

    def importance(self) -> Method:
        def make(draws: int, seed: int) -> Sampler:
            return ImportanceSampler(
                self.plain, num_samples=draws, seed=seed, max_batch=MAX_BATCH, **self.tilt
            )

        return Method("importance sampling", make, compare_kl.of_the_tilt)

    def best(self, n: int) -> Method:
        def make(draws: int, seed: int) -> Sampler:
            return BestOfN(
                self.plain,
                reward=self.reward,
                n=n,
                num_samples=draws,
                seed=seed,
                progress=False,
                max_batch=MAX_BATCH,
            )

        return Method(
            f"best of {n}", make, lambda result: compare_kl.of_best_of_n(self.yardstick, n)
        )

    def soft_best(self) -> Method:
        n, beta = self.settings.n, self.settings.beta

        def make(draws: int, seed: int) -> Sampler:
            return SoftBestOfN(
                self.plain, n=n, num_samples=draws, seed=seed, max_batch=MAX_BATCH, **self.tilt
            )

        return Method(
            f"soft best of {n}",
            make,
            lambda result: compare_kl.of_soft_best_of_n(self.yardstick, beta, n),
        )

    def gsi(self) -> Method:
        n, threshold = self.settings.n, self.settings.threshold

        def spent(result: WeightedSamples) -> Spent:
            return compare_kl.of_gsi(
                result, self.target, self.draft, self.yardstick, n=n, threshold=threshold
            )

        return Method(f"GSI, whole, {n} of the draft", self._guided(self.plain), spent)

    def gsi_by_blocks(self) -> Method:
        block = self.settings.block
        return Method(
            f"GSI, blocks of {block}, learned values",
            self._guided(self.foreseeing, block=block, value=self.trained.value),
            lambda result: Spent(None),
            **self.price,
        )

    def _guided(self, program: Any, **options: Any) -> Callable[[int, int], Sampler]:
        settings, draft = self.settings, self.draft.program()

        def make(draws: int, seed: int) -> Sampler:
            return GSI(
                program,
                draft=draft,
                n=settings.n,
                threshold=settings.threshold,
                num_samples=draws,
                seed=seed,
                max_batch=MAX_BATCH,
                **self.tilt,
                **options,
            )

        return make

    def smc(self) -> Method:
        def make(draws: int, seed: int) -> Sampler:
            return SMC(
                self.foreseeing,
                num_particles=max(2, draws // CHAINS),
                num_chains=CHAINS,
                twist=self.trained.value,
                check_lineage=False,
                seed=seed,
                **self.tilt,
            )

        return Method(
            "SMC, learned twists",
            make,
            compare_kl.of_the_tilt,
            unit=CHAINS,
            # A large population goes elsewhere than a small one, and is no sum of small ones.
            pilots=(0.1, 0.4),
            parts=False,
            **self.price,
        )

    def lcb(self) -> Method:
        value = MoleculeValue(
            self.trained.value.learned, self.reward, self.settings.beta, exact=False
        )
        # An LCB over steps is another class, which only its options tell.
        stepwise: Any = LCB

        def make(draws: int, seed: int) -> Sampler:
            made: Sampler = stepwise(
                self.foreseeing,
                value=value,
                log_mgf=value.log_mgf,
                num_samples=draws,
                tilt_start=False,
                check_lineage=False,
                seed=seed,
                max_batch=MAX_BATCH,
                **self.tilt,
            )
            return made

        def ratio(result: WeightedSamples) -> Tensor:
            return value.log_ratio(self.target, result.samples["tokens"])

        def correction(result: WeightedSamples) -> Tensor:
            return self.settings.beta * result.stats["reward"].double() - ratio(result)

        return Method(
            "LCB by steps, learned values",
            make,
            lambda result: compare_kl.of_chain(ratio(result)),
            correction=correction,
            **self.price,
        )

    def aisp(self, returns: str) -> Method:
        each = max(1, self.settings.large_n // 4)
        network: Any = self.target.model
        final = returns == "final"

        def make(draws: int, seed: int) -> Sampler:
            return AISP(
                self.plain,
                module=network.head,
                reward=self.reward,
                beta=self.settings.beta,
                n=each,
                iterations=3,
                num_final=each,
                num_samples=max(1, draws // (each if final else 1)),
                returns=returns,
                seed=seed,
                progress=False,
                max_batch=MAX_BATCH,
            )

        if final:
            return Method("AISP, final draws", make, compare_kl.of_aisp, unit=each)
        return Method("AISP, best seen", make, lambda result: Spent(None))
