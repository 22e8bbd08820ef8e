# SPDX-License-Identifier: Apache-2.0
"""Whole draws of two programs of the same sites, each scored by the other where asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pyro_tilt.infer.proposal import Draws, ProgramProposal
from pyro_tilt.infer.speculative.candidates import Candidates
from pyro_tilt.infer.speculative.models import MeteredProgram, SupportCheck
from pyro_tilt.poutine.align import AlignedProgram, align

__all__ = ["WholeSource"]


@dataclass
class _Values:
    """Values of the sites, draws in front."""

    values: dict[str, Tensor]

    def take(self, rows: Tensor) -> _Values:
        return _Values({k: v[rows.to(v.device)] for k, v in self.values.items()})

    def put(self, rows: Tensor, new: _Values) -> _Values:
        return _Values(
            {k: v.index_copy(0, rows.to(v.device), new.values[k]) for k, v in self.values.items()}
        )


class WholeSource:
    """
    Draws of whole programs; see :class:`~pyro_tilt.infer.speculative.candidates.Source`.

    :param aligned: the target with the reward.
    :param target: its program, which ``aligned`` runs.
    :param draft: the draft.
    :param make: makes the proposal of a program and a guide, which may be None.
    """

    def __init__(
        self,
        aligned: AlignedProgram,
        target: MeteredProgram,
        draft: MeteredProgram,
        make: Callable[..., ProgramProposal],
    ) -> None:
        self.aligned, self.target_program, self.draft_program = aligned, target, draft
        self.make = make
        self.reward_calls = 0
        self._support = SupportCheck()
        self._proposals: dict[tuple[bool, bool], ProgramProposal] = {}

    @property
    def scored_drafts(self) -> ProgramProposal:
        """The target's program over draws of the draft."""
        return self._proposal(self.target_program, self.draft_program)

    @property
    def drafts(self) -> ProgramProposal:
        """The draft alone."""
        return self._proposal(self.draft_program, None)

    @property
    def targets(self) -> ProgramProposal:
        """The target alone."""
        return self._proposal(self.target_program, None)

    @property
    def scored_targets(self) -> ProgramProposal:
        """The draft's program over draws of the target."""
        return self._proposal(self.draft_program, self.target_program)

    def prepare(self, *, scored_drafts: bool, scored_targets: bool) -> None:
        """
        Runs each program once, before the costs are counted.

        :param scored_drafts: whether the target will score the draft.
        :param scored_targets: whether the draft will score the target.
        """
        _ = self.scored_drafts if scored_drafts else self.drafts
        _ = self.scored_targets if scored_targets else self.targets
        self.target_program.reset()
        self.draft_program.reset()

    def draft(self, chains: Tensor, n: int, *, scored: bool = True) -> Candidates:
        """See :class:`~pyro_tilt.infer.speculative.candidates.Source`."""
        rows = self._count(len(chains) * n, draft=True, target=scored)
        if not scored:
            return _candidates(self.drafts.draw(rows), 0)
        check = self._support
        with check, _Roles(check, self.draft_program, self.target_program):
            return _candidates(self.scored_drafts.draw(rows), 1)

    def target(self, chains: Tensor, n: int, *, scored: bool) -> Candidates:
        """See :class:`~pyro_tilt.infer.speculative.candidates.Source`."""
        rows = self._count(len(chains) * n, draft=scored, target=True)
        if not scored:
            return _candidates(self.targets.draw(rows), 0)
        return _candidates(self.scored_targets.draw(rows), -1)

    def _proposal(self, program: MeteredProgram, guide: MeteredProgram | None) -> ProgramProposal:
        # No cached property: its lock would be held while the program waits for its network.
        key = (program is self.draft_program, guide is None)
        if key not in self._proposals:
            self._proposals[key] = self.make(self._aligned(program), guide=guide)
        return self._proposals[key]

    def _aligned(self, program: MeteredProgram) -> AlignedProgram:
        made = self.aligned
        return align(program, made.reward, made.beta, of=made.of, name=made.name)

    def _count(self, rows: int, *, draft: bool, target: bool) -> int:
        self.draft_program.rows += rows * draft
        self.target_program.rows += rows * target
        self.reward_calls += rows
        return rows


class _Roles:
    """Tells the check of supports which program is running."""

    def __init__(self, check: SupportCheck, draft: MeteredProgram, target: MeteredProgram) -> None:
        self.check, self.programs = check, {"draft": draft, "target": target}

    def __enter__(self) -> None:
        for role, program in self.programs.items():
            program.on_run = self._setter(role)

    def __exit__(self, *_: Any) -> None:
        self.check.role = None
        for program in self.programs.values():
            program.on_run = None

    def _setter(self, role: str) -> Callable[[], None]:
        def note() -> None:
            self.check.role = role

        return note


def _candidates(draws: Draws, sign: int) -> Candidates:
    ratio = sign * draws.log_factors if sign else None
    return Candidates(draws.reward, ratio, _Values(draws.samples))
