# SPDX-License-Identifier: Apache-2.0
"""What the samplers that choose among runs of a step share."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from pyro.infer.util import is_validation_enabled
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_tilt.infer.cost import Cost
from pyro_tilt.infer.errors import SamplingError
from pyro_tilt.infer.particle_rules import note_rules
from pyro_tilt.infer.pooled import refuse_shared_minibatches
from pyro_tilt.infer.program_sites import Site
from pyro_tilt.infer.proposal import ProgramProposal
from pyro_tilt.infer.sampler import Run, Sampler
from pyro_tilt.infer.selection.groups import Choose, Selected
from pyro_tilt.infer.selection.messenger import SelectionMessenger, Value
from pyro_tilt.infer.smc.lineage import check_lineage as preflight
from pyro_tilt.infer.weighted_samples import WeightedSamples

# What certificates of choices by values leave out.
EXACT_STATED = "whether the values are exact, which the user states"
VALUES_BIASED = "the error of the values, whose bias stays however large n is"


class StepSelector(Sampler):
    """
    Runs pieces of a program ``width`` times from the state kept before, and keeps one of each.

    :param program: a program with one scan.
    :param width: runs of each piece.
    :param steps: steps in a piece.
    :param value: log value of a carry and the element of ``xs`` of its step; None takes the
        program's twists.
    :param check_lineage: as in :class:`~pyro_tilt.infer.SMC`.
    """

    def __init__(
        self,
        program: Callable[..., Any],
        *,
        width: int,
        steps: int,
        value: Value | None,
        check_lineage: bool | None = None,
        **options: Any,
    ) -> None:
        super().__init__(program, **options)
        name = type(self).__name__
        if value is not None and not callable(value):
            raise TypeError(f"{name}: value must be callable, got {type(value).__name__}")
        if not self.vectorized:
            raise NotImplementedError(
                f"{name} runs a step for all particles at once and has no vectorized=False; use "
                "BestOfN, or write the program for many particles"
            )
        if width > self.max_batch:
            raise ValueError(
                f"{name}: the {width} runs of a step do not fit into max_batch={self.max_batch}"
            )
        self.width = width
        self.steps = steps
        self.value = value
        self.check_lineage = check_lineage
        self._scan = _FindScan()

    @property
    @abstractmethod
    def _target(self) -> str:
        """The law that the draws are after, in words."""

    @abstractmethod
    def _choose(self, run: Run) -> Choose:
        """The rule of choice, with its own random stream."""

    @abstractmethod
    def _result(self, run: Run, selected: Selected, cost: Cost, target: str) -> WeightedSamples:
        """The result of what was kept, unchecked; of an unfinished run as well."""

    def _draws(
        self,
        run: Run,
        selected: Selected,
        cost: Cost,
        *,
        stats: Mapping[str, Tensor] | None = None,
        **given: Any,
    ) -> WeightedSamples:
        """Independent draws of a tilt, without evidence unless it is among what is given."""
        zeros = torch.zeros_like(selected.log_evidence)
        reward = {} if selected.reward is None else {"reward": selected.reward}
        options: dict[str, Any] = {
            "log_weights": zeros,
            "log_normalizer": zeros.new_tensor(math.nan),
            "log_normalizer_error": zeros.new_tensor(math.nan),
            "beta": run.proposal.beta if reward else None,
            "sampler": type(self).__name__,
        }
        return WeightedSamples(
            kind="iid",
            samples=selected.values,
            cost=cost,
            stats={**(stats or {}), **reward},
            program=self.program,
            args=run.args,
            kwargs=run.kwargs,
            **{**options, **given},
        )

    @abstractmethod
    def _warn(self, result: WeightedSamples) -> None:
        """Warns of, or raises for, draws that are worth nothing."""

    def _sample(self, run: Run) -> WeightedSamples:
        refuse_shared_minibatches(run)
        choose = self._choose(run)
        parts: list[Selected] = []
        calls = filled = 0
        with run.bar(self.num_samples * self._scan.num_steps) as bar:
            while filled < self.num_samples:
                count = min(self.num_samples - filled, self.max_batch // self.width)
                options = (self.steps, choose, self.value, self._scan.num_steps, bar.update)
                messenger = SelectionMessenger(run.proposal, count, self.width, *options)
                try:
                    parts.append(_placed(messenger.run(), run.proposal))
                except Exception as error:
                    note_rules(error)
                    if isinstance(error, SamplingError):
                        self._keep(error, run, parts, messenger, calls)
                    raise
                filled += count
                calls += messenger.value_calls
        cost = self._cost(run, filled, calls)
        result = self._result(run, _joined(parts), cost, self._target)
        self._warn(result)
        return result

    def _keep(
        self,
        error: SamplingError,
        run: Run,
        parts: Sequence[Selected],
        messenger: SelectionMessenger,
        calls: int,
    ) -> None:
        """Attaches the whole draws before an error or, where there are none, the last choice."""
        whole, choice = sum(len(part) for part in parts), messenger.selected
        cost = self._cost(run, whole + len(messenger.groups), calls + messenger.value_calls)
        if parts:
            error.partial = self._result(run, _joined(parts), cost, self._target)
            error.add_note(f"the {whole} draws that were whole before are in .partial")
        elif choice is not None:
            target = f"{self._target}, as far as {messenger.chosen_at}"
            error.partial = self._result(run, _placed(choice, run.proposal), cost, target)
            error.add_note(f"what was chosen at {messenger.chosen_at} is in .partial")

    def _cost(self, run: Run, draws: int, value_calls: int) -> Cost:
        return replace(run.cost(draws * self.width), value_calls=value_calls)

    def _proposal(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ProgramProposal:
        self._scan.num_steps = 0
        with self._scan:
            proposal = super()._proposal(args, kwargs)
        if not self._scan.num_steps:
            raise ValueError(
                f"{type(self).__name__}: the program has no scan with steps; declare its steps by "
                "pyro_tilt.scan(name, step, init, xs), or use BestOfN for programs without steps"
            )
        if is_validation_enabled() if self.check_lineage is None else self.check_lineage:
            preflight(self.program, args, kwargs, max_plate_nesting=proposal.max_plate_nesting)
        return proposal


class _FindScan(Messenger):
    """Notes the number of steps of the first scan of a program."""

    num_steps = 0

    def _pyro_tilt_scan(self, msg: Any) -> None:
        step, carry, xs = msg["args"]
        items = list(xs)
        msg["args"] = step, carry, items
        self.num_steps = self.num_steps or len(items)


def _joined(parts: Sequence[Selected]) -> Selected:
    rewards = [part.reward for part in parts if part.reward is not None]
    return Selected(
        values={name: torch.cat([part.values[name] for part in parts]) for name in parts[0].values},
        reward=torch.cat(rewards) if rewards else None,
        log_evidence=torch.cat([part.log_evidence for part in parts]),
        columns=torch.cat([part.columns for part in parts]),
        lost=torch.cat([part.lost for part in parts]),
    )


def _placed(selected: Selected, proposal: ProgramProposal) -> Selected:
    """The same with the singletons of other plates dropped from the values."""
    recorded: Mapping[str, Site] = proposal._sites.recorded
    count, placed = len(selected), {}
    for name, value in selected.values.items():
        if name not in recorded:
            raise ValueError(
                f"site '{name}' occurs in one run of the program and not in another; give every "
                "run the same sites"
            )
        shape = (count, *recorded[name].shape)
        if value.numel() != torch.Size(shape).numel():
            raise ValueError(
                f"site '{name}': its value has shape {tuple(value.shape)} for {count} particles, "
                f"where a plain run has {tuple(recorded[name].shape)}"
            )
        placed[name] = value.reshape(shape)
    return replace(selected, values=placed)
