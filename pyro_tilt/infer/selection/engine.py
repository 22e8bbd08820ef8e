# SPDX-License-Identifier: Apache-2.0
"""What the samplers that choose among runs of a step share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyro
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_tilt.infer.cost import Cost
from pyro_tilt.infer.pooled import refuse_shared_minibatches
from pyro_tilt.infer.program_sites import Site
from pyro_tilt.infer.proposal import RULES, ProgramProposal
from pyro_tilt.infer.sampler import Run, Sampler
from pyro_tilt.infer.selection.messenger import Choose, SelectionMessenger, Value
from pyro_tilt.poutine.particle_plate import ParticlePlate


@dataclass
class Selected:
    """
    What was kept, one row per draw.

    :ivar samples: sites outside steps and those of the last step.
    :ivar reward: the reward, or the log tilt where several betas occur; None without any tilt.
    :ivar log_evidence: log of an unbiased estimate of the evidence, from the draw's own pieces.
    :ivar value_calls: rows that values were evaluated at.
    """

    samples: dict[str, Tensor]
    reward: Tensor | None
    log_evidence: Tensor
    value_calls: int


class StepSelector(Sampler):
    """
    Runs pieces of a program ``width`` times from the state kept before, and keeps one of each.

    :param program: a program with one scan.
    :param width: runs of each piece.
    :param steps: steps in a piece.
    :param value: log value of a carry and the element of ``xs`` of its step; None takes the
        program's twists.
    """

    def __init__(
        self,
        program: Callable[..., Any],
        *,
        width: int,
        steps: int,
        value: Value | None,
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

    @abstractmethod
    def _choose(self, run: Run) -> Choose:
        """The rule of choice, with its own random stream."""

    def _select(self, run: Run) -> Selected:
        refuse_shared_minibatches(run)
        choose = self._choose(run)
        parts: list[Selected] = []
        filled = 0
        with run.bar(self.num_samples) as bar:
            while filled < self.num_samples:
                count = min(self.num_samples - filled, self.max_batch // self.width)
                parts.append(self._pass(run.proposal, count, choose))
                filled += count
                bar.update(count)
        rewards = [part.reward for part in parts if part.reward is not None]
        return Selected(
            samples={
                name: torch.cat([part.samples[name] for part in parts]) for name in parts[0].samples
            },
            reward=torch.cat(rewards) if rewards else None,
            log_evidence=torch.cat([part.log_evidence for part in parts]),
            value_calls=sum(part.value_calls for part in parts),
        )

    def _pass(self, proposal: ProgramProposal, count: int, choose: Choose) -> Selected:
        size, dim = count * self.width, -1 - proposal.max_plate_nesting
        messenger = SelectionMessenger(size, dim, self.width, self.steps, choose, self.value)
        with torch.no_grad(), pyro.validation_enabled(False):
            try:
                with messenger, ParticlePlate(size, dim):
                    proposal.program(*proposal.args, **proposal.kwargs)
                keep = messenger.finish()
                values = messenger.survivors(keep)
                samples = _placed(values, proposal._sites.recorded, count)
            except (RuntimeError, ValueError, IndexError) as error:
                error.add_note(RULES)
                raise
        reward = messenger.reward if len(messenger.betas) == 1 else messenger.tilted
        log_evidence = messenger.log_evidence
        assert log_evidence is not None
        return Selected(
            samples=samples,
            reward=None if reward is None else reward.expand(size)[keep],
            log_evidence=log_evidence,
            value_calls=messenger.value_calls,
        )

    def _cost(self, run: Run, selected: Selected) -> Cost:
        cost = run.cost(self.num_samples * self.width)
        return replace(cost, value_calls=selected.value_calls)

    def _proposal(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ProgramProposal:
        with _FindScan() as found:
            proposal = super()._proposal(args, kwargs)
        if found.name is None:
            raise ValueError(
                f"{type(self).__name__}: the program has no scan; declare its steps by "
                "pyro_tilt.scan(name, step, init, xs), or use BestOfN for programs without steps"
            )
        return proposal


class _FindScan(Messenger):
    """Notes the name of a scan."""

    def __init__(self) -> None:
        super().__init__()
        self.name: str | None = None

    def _pyro_tilt_scan(self, msg: Any) -> None:
        self.name = msg["name"]


def _placed(
    values: Mapping[str, Tensor], recorded: Mapping[str, Site], count: int
) -> dict[str, Tensor]:
    """Values with the draws in front and the singletons of other plates dropped."""
    placed = {}
    for name, value in values.items():
        if name not in recorded:
            raise ValueError(
                f"site '{name}' occurs in one run of the program and not in another; give every "
                "run the same sites"
            )
        shape = (count, *recorded[name].shape)
        if value.shape[:1] == (count,) and value.numel() == torch.Size(shape).numel():
            placed[name] = value.reshape(shape)
        elif value.shape == recorded[name].shape:
            placed[name] = value.expand(shape)
        else:
            raise ValueError(
                f"site '{name}': its value has shape {tuple(value.shape)} for {count} particles, "
                f"where a plain run has {tuple(recorded[name].shape)}"
            )
    return placed
