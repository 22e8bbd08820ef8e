# SPDX-License-Identifier: Apache-2.0
"""Blocks of steps of two programs that write the same sequences."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pyro_tilt.infer.proposal import ProgramProposal
from pyro_tilt.infer.speculative.candidates import Candidates
from pyro_tilt.infer.speculative.models import MeteredProgram, SupportCheck
from pyro_tilt.infer.speculative.rules import Choice, Rule
from pyro_tilt.infer.speculative.waiting import Ran, StepRunner, Waiting, side_by_side
from pyro_tilt.infer.stepwise.rows import fork, put_rows
from pyro_tilt.ops.importance import as_double
from pyro_tilt.ops.reindex import reindex

__all__ = ["BlockSource", "Value", "Written"]

Value = Callable[[Any, Any], Tensor]


@dataclass
class Written:
    """
    Whole sequences, written block by block, one per chain.

    :ivar values: of the sites.
    :ivar reward: of the sequences, (C,).
    :ivar accepted: share of blocks that come from the draft, (C,).
    :ivar capped: whether a fallback gave up on its condition, (C,).
    :ivar log_evidence: sum over blocks of log mean weights over the value that entered, (C,).
    """

    values: dict[str, Tensor]
    reward: Tensor
    accepted: Tensor
    capped: Tensor
    log_evidence: Tensor


@dataclass
class _Rows:
    """Rows of a block; the carries are None where they are not needed, or not known yet."""

    source: BlockSource
    chains: Tensor
    values: dict[str, Tensor]
    target: Any
    draft: Any

    def take(self, rows: Tensor) -> _Rows:
        size = len(self.chains)

        def carried(carry: Any) -> Any:
            return None if carry is None else reindex(carry, rows, size=size, path="carry")

        values = {name: value[rows.to(value.device)] for name, value in self.values.items()}
        rows = rows.to(self.chains.device)
        return replace(
            self,
            chains=self.chains[rows],
            values=values,
            target=carried(self.target),
            draft=carried(self.draft),
        )

    def put(self, rows: Tensor, new: _Rows) -> _Rows:
        if self.draft is not None and new.draft is None:
            new = self.source.drafted(new)

        def carried(old: Any, each: Any) -> Any:
            return None if old is None else put_rows(old, rows, each)

        return replace(
            self,
            values=put_rows(self.values, rows, new.values, path="sites"),
            target=carried(self.target, new.target),
            draft=carried(self.draft, new.draft),
        )


class BlockSource:
    """
    Draws of the next block; see :class:`~pyro_tilt.infer.speculative.candidates.Source`.

    After every block but the last the value of the target's carry takes the place of beta times
    the reward.

    :param proposals: of the draft and of the aligned target.
    :param programs: what they run.
    :param value: log value of a carry of the target and the element of ``xs`` that made it.
    :param beta: inverse temperature.
    :param block: steps in a block.
    :param compare: whether the draft must cover the target.
    :ivar reward_calls: rows of the reward.
    :ivar value_calls: rows of the value.
    """

    def __init__(
        self,
        proposals: tuple[ProgramProposal, ProgramProposal],
        programs: tuple[MeteredProgram, MeteredProgram],
        value: Value,
        beta: float,
        block: int,
        *,
        compare: bool,
    ) -> None:
        self.runners = [StepRunner(each) for each in proposals]
        self.finisher = StepRunner(proposals[1])
        self.programs = programs
        self.value, self.beta, self.block = value, beta, block
        self.reward_calls = self.value_calls = 0
        self._check, self._compare = SupportCheck(), compare
        self._count = 0
        self._xs: list[Any] = []
        self._ends = False
        self._carries: list[Any] = []
        self._fresh = True
        self._history: dict[str, Tensor] = {}
        self._models: list[Waiting] = []

    def write(self, count: int, rule: Rule, generator: torch.Generator) -> Written:
        """
        Whole sequences for ``count`` chains.

        :param count: number of chains.
        :param rule: chooses among the draws of every block.
        :param generator: of the choices.
        """
        written: list[Written] = []

        def body(models: list[Waiting]) -> None:
            written.append(self._blocks(models, count, rule, generator))

        with self._check:
            side_by_side(self.runners, count, body)
        return written[0]

    def _blocks(
        self, models: list[Waiting], count: int, rule: Rule, generator: torch.Generator
    ) -> Written:
        xs = [model.xs for model in models]
        if len(xs[0]) != len(xs[1]):
            raise ValueError(
                f"the draft has {len(xs[0])} steps and the target {len(xs[1])}; both must have the "
                "same steps"
            )
        self._models, self._count, self._history = models, count, {}
        self._carries, self._fresh = [model.carry for model in models], True
        chains = torch.arange(count)
        capped = torch.zeros(count, dtype=torch.bool)
        accepted = torch.zeros(count, dtype=torch.float64)
        evidence = torch.zeros(count, dtype=torch.float64)
        entered: Tensor = evidence
        starts = range(0, len(xs[0]), self.block)
        for start in starts:
            self._xs = xs[1][start : start + self.block]
            self._ends = start + self.block >= len(xs[0])
            choice = rule(self, chains, generator)
            if choice.log_means is not None:
                evidence = evidence.to(choice.log_means) + choice.log_means - entered
            entered = as_double(choice.kept.reward) * self.beta
            # A chain that is lost goes on, with an evidence of zero whatever comes.
            entered = entered.masked_fill(entered == -math.inf, 0.0)
            accepted += choice.accepted.double() / len(starts)
            capped |= choice.capped
            self._commit(choice)
        return Written(self._history, choice.kept.reward, accepted, capped, evidence)

    def draft(self, chains: Tensor, n: int, *, scored: bool = True) -> Candidates:
        """See :class:`~pyro_tilt.infer.speculative.candidates.Source`; the target always scores."""
        rows = chains.repeat_interleave(n)
        drawn = self._advance(0, rows, {}, "draft")
        judged = self._advance(1, rows, drawn.values, "target")
        return self._candidates(rows, judged, judged.log_prob - drawn.log_prob, drawn.carry)

    def target(self, chains: Tensor, n: int, *, scored: bool) -> Candidates:
        """See :class:`~pyro_tilt.infer.speculative.candidates.Source`."""
        rows = chains.repeat_interleave(n)
        drawn = self._advance(1, rows, {}, None)
        if not scored:
            return self._candidates(rows, drawn, None, None)
        judged = self._advance(0, rows, drawn.values, None)
        return self._candidates(rows, drawn, drawn.log_prob - judged.log_prob, judged.carry)

    def drafted(self, rows: _Rows) -> _Rows:
        """Rows of the target with the draft's carry after them."""
        return replace(rows, draft=self._advance(0, rows.chains, rows.values, None).carry)

    def _advance(self, model: int, rows: Tensor, known: dict[str, Tensor], role: str | None) -> Ran:
        size, waiting = len(rows), self._models[model]
        self._check.role = role if self._compare else None
        self.programs[model].rows += size * len(self._xs) / len(waiting.xs)
        carry = self._carries[model]
        # The first carry belongs to no chain.
        carry = copy.deepcopy(carry) if self._fresh else fork(carry, rows, self._count)
        ran = waiting.advance(carry, self._xs, size, known)
        self._check.role = None
        return ran

    def _candidates(
        self, rows: Tensor, ran: Ran, ratio: Tensor | None, draft_carry: Any
    ) -> Candidates:
        if not self._ends:
            reward = self._value(ran.carry, len(rows)) / self.beta
            return Candidates(reward, ratio, _Rows(self, rows, ran.values, ran.carry, draft_carry))
        past = {name: value[rows.to(value.device)] for name, value in self._history.items()}
        end = self.finisher.finish(ran.carry, {**past, **ran.values}, len(rows))
        ((reward, _),) = end.rewards
        self.reward_calls += len(rows)
        values = {**ran.values, **end.values}
        return Candidates(reward, ratio, _Rows(self, rows, values, None, None))

    def _value(self, carry: Any, size: int) -> Tensor:
        x = self._xs[-1]
        value = self.value(carry, x)
        self.value_calls += size
        if not isinstance(value, Tensor) or value.shape != (size,):
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"value must give one number per particle, shape ({size},); at the step {x!r} it "
                f"gave {shape}"
            )
        value = as_double(value.detach())
        if not float(value.amax()) < math.inf:
            raise ValueError(f"value is NaN or +inf at the step {x!r}; it must be a number or -inf")
        return value

    def _commit(self, choice: Choice) -> None:
        rows: _Rows = choice.kept.payload
        self._history = {**self._history, **rows.values}
        if not self._ends:
            self._carries, self._fresh = [rows.draft, rows.target], False
