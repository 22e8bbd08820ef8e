# SPDX-License-Identifier: Apache-2.0
"""What samplers over a draft and a target share."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pyro_tilt.infer.cost import Cost
from pyro_tilt.infer.pooled import BASE_DRAWS_KEPT, refuse_shared_minibatches
from pyro_tilt.infer.proposal import ProgramProposal
from pyro_tilt.infer.sampler import Run, Sampler, check_count
from pyro_tilt.infer.speculative.blocks import BlockSource, Value
from pyro_tilt.infer.speculative.models import MeteredProgram, check_programs, split_aligned
from pyro_tilt.infer.speculative.rules import Choice, Rule
from pyro_tilt.infer.speculative.whole import WholeSource
from pyro_tilt.infer.weighted_samples import BaseDraws, WeightedSamples
from pyro_tilt.poutine.align import align

__all__ = ["Kept", "TwoModelSampler"]


@dataclass
class Kept:
    """
    What a run kept, one row per draw.

    :ivar samples: values of the sites.
    :ivar reward: of the draws, (N,).
    :ivar accepted: share of choices that stayed with the draft, (N,).
    :ivar capped: whether a fallback gave up on its condition, (N,).
    :ivar log_means: log mean weights of the draft's draws, whose mean is the evidence wherever the
        draft was always kept; None where there are none.
    :ivar base: draws of the draft with their weights towards the target; None where there are none.
    """

    samples: dict[str, Tensor]
    reward: Tensor
    accepted: Tensor
    capped: Tensor
    log_means: Tensor | None
    base: BaseDraws | None = None


class TwoModelSampler(Sampler):
    """
    Chooses among draws of a draft and of a target, whole or block by block.

    :param program: the target.
    :param draft: the draft, a program of the same sites.
    :param block: steps in a block; None for whole draws.
    :param value: log value of a carry in the middle of a sequence.
    """

    _weighs = True

    def __init__(
        self,
        program: Callable[..., Any],
        *,
        draft: Callable[..., Any],
        block: int | None,
        value: Value | None,
        **options: Any,
    ) -> None:
        super().__init__(program, **options)
        name = type(self).__name__
        if not callable(draft):
            raise TypeError(f"{name}: draft must be callable, got {type(draft).__name__}")
        if not self.vectorized:
            raise NotImplementedError(
                f"{name} runs both programs for all particles at once and has no vectorized=False"
            )
        self.aligned = split_aligned(name, self.program)
        self.draft = draft
        self.block_size = None if block is None else check_count("block", block)
        if (value is None) != (block is None):
            raise ValueError(
                f"{name}: value= and block= go together: after a block the value stands for the "
                "reward of the whole, a function of the carry and of the element of xs"
            )
        if value is not None and not callable(value):
            raise TypeError(f"{name}: value must be callable, got {type(value).__name__}")
        self.value = value

    @abstractmethod
    def _rule(self, run: Run) -> Rule:
        """The rule of choice."""

    @abstractmethod
    def _result(self, run: Run, kept: Kept, cost: Cost, info: dict[str, float]) -> WeightedSamples:
        """The result, checked."""

    @property
    def _debiased(self) -> bool:
        return False

    def _sample(self, run: Run) -> WeightedSamples:
        refuse_shared_minibatches(run)
        base = self.aligned.program
        check_programs({"target": base, "draft": self.draft}, run.args, run.kwargs)
        target, draft = MeteredProgram(base), MeteredProgram(self.draft)
        rule = self._rule(run)
        generator = torch.Generator().manual_seed(run.accept_seed)
        most = max(1, self.max_batch // rule.width)
        if self.block_size is None:
            kept, cost = self._whole(run, target, draft, rule, generator, most)
        else:
            kept, cost = self._blocks(run, target, draft, rule, generator, most)
        info = {**target.info("target"), **draft.info("draft")}
        info["acceptance_rate"] = float(kept.accepted.mean())
        rows = math.ceil(target.rows + draft.rows - 1e-6)
        cost = replace(run.cost(rows), reward_calls=cost.reward_calls, value_calls=cost.value_calls)
        return self._result(run, kept, cost, info)

    def _whole(
        self,
        run: Run,
        target: MeteredProgram,
        draft: MeteredProgram,
        rule: Rule,
        generator: torch.Generator,
        most: int,
    ) -> tuple[Kept, Cost]:
        def make(program: Any, guide: Any = None) -> ProgramProposal:
            nesting = self.max_plate_nesting
            options = {"guide": guide, "max_plate_nesting": nesting}
            return ProgramProposal(program, run.args, run.kwargs, **options)

        source = WholeSource(self.aligned, target, draft, make)
        source.prepare(scored_drafts=self._weighs, scored_targets=self._debiased)
        # As with the first plain run, those that learned the sites of each pass are no cost.
        run.rows.rows = None
        parts: list[Kept] = []
        with run.bar(self.num_samples) as bar:
            for count in _batches(self.num_samples, most):
                choice = rule(source, torch.arange(count), generator)
                values = choice.kept.payload.values
                means = choice.log_means
                reward = choice.kept.reward
                accepted = choice.accepted.double()
                seen = sum(len(part.base.reward) for part in parts if part.base is not None)
                base = _base(choice, BASE_DRAWS_KEPT - seen)
                parts.append(Kept(values, reward, accepted, choice.capped, means, base))
                bar.update(count)
        return _joined(parts), Cost(reward_calls=source.reward_calls)

    def _blocks(
        self,
        run: Run,
        target: MeteredProgram,
        draft: MeteredProgram,
        rule: Rule,
        generator: torch.Generator,
        most: int,
    ) -> tuple[Kept, Cost]:
        made = self.aligned
        aligned = align(target, made.reward, made.beta, of=made.of, name=made.name)
        nesting = self.max_plate_nesting
        proposals = (
            ProgramProposal(draft, run.args, run.kwargs, max_plate_nesting=nesting),
            ProgramProposal(aligned, run.args, run.kwargs, max_plate_nesting=nesting),
        )
        target.reset()
        draft.reset()
        run.rows.rows = None
        assert self.value is not None and self.block_size is not None
        source = BlockSource(
            proposals,
            (draft, target),
            self.value,
            float(made.beta),
            self.block_size,
            compare=self._weighs,
        )
        shapes = {name: site.shape for name, site in proposals[1]._sites.recorded.items()}
        parts = []
        with run.bar(self.num_samples) as bar:
            for count in _batches(self.num_samples, most):
                done = source.write(count, rule, generator)
                values = {k: v.reshape(count, *shapes[k]) for k, v in done.values.items()}
                means = done.log_evidence if self._weighs else None
                parts.append(Kept(values, done.reward, done.accepted, done.capped, means))
                bar.update(count)
        calls = {"reward_calls": source.reward_calls, "value_calls": source.value_calls}
        return _joined(parts), Cost(**calls)


def _batches(total: int, most: int) -> list[int]:
    return [min(most, total - start) for start in range(0, total, most)]


def _base(choice: Choice, most: int) -> BaseDraws | None:
    if choice.drafts is None or most <= 0:
        return None
    reward, ratio = (each[:most] for each in choice.drafts)
    return BaseDraws(reward=reward, log_factors=ratio)


def _joined(parts: list[Kept]) -> Kept:
    bases = [part.base for part in parts if part.base is not None]
    means = [part.log_means for part in parts if part.log_means is not None]
    return Kept(
        samples={name: torch.cat([p.samples[name] for p in parts]) for name in parts[0].samples},
        reward=torch.cat([part.reward for part in parts]),
        accepted=torch.cat([part.accepted for part in parts]),
        capped=torch.cat([part.capped for part in parts]),
        log_means=torch.cat(means) if means else None,
        base=BaseDraws(
            reward=torch.cat([base.reward for base in bases]),
            log_factors=torch.cat([base.log_factors for base in bases]),
        )
        if bases
        else None,
    )
