# SPDX-License-Identifier: Apache-2.0
"""Saves a run as it goes, and takes it up again where it was saved."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyro_tilt.infer.smc import snapshot
from pyro_tilt.infer.smc.errors import ResumeError
from pyro_tilt.infer.smc.portable import (
    digest,
    moments,
    pack,
    random_states,
    set_random_states,
    unpack,
)
from pyro_tilt.infer.weighted_samples import WeightedSamples

if TYPE_CHECKING:
    from pyro_tilt.infer.sampler import Run
    from pyro_tilt.infer.smc.messenger import StepMessenger

Step = Callable[[Any, Any], Any]


class Keeper:
    """
    Stands beside the chains of a run.

    A resumed run goes through the program from its start with the random states of the start, so
    that whatever a program holds besides the carry is made anew, and does its first step for
    comparison. Then the saved state takes over, in the place of the steps up to it.

    :param save_to: where to save; None for nowhere.
    :param save_every: after how many steps.
    :param resumed: a saved state to go on from.
    """

    def __init__(
        self,
        save_to: str | PathLike[str] | None,
        save_every: int,
        resumed: dict[str, Any] | None = None,
    ) -> None:
        self.save_to, self.save_every = save_to, save_every
        self.resumed = resumed
        self.chains: list[dict[str, Any]] = [] if resumed is None else list(resumed["chains"])
        self.chain = -1
        self.settings: dict[str, Any] = {}

    def next_chain(self, run: Run, settings: Mapping[str, Any]) -> dict[str, Any] | None:
        """Starts a chain; gives its result where it was finished before the run was saved."""
        self.chain += 1
        self.run = run
        self.settings = dict(settings)
        if self.resumed is None:
            return None
        compare(self.resumed["settings"], self.settings)
        return self.chains[self.chain] if self.chain < len(self.chains) else None

    def begin(self, generator: torch.Generator) -> None:
        """The chain starts to draw."""
        self.generator = generator
        self.finished: list[dict[str, Any]] = []
        self.first: list[float] = []
        if self.resumed is not None:
            set_random_states(self.resumed["start"], generator)
        self.start = random_states(generator)

    def end(self, result: WeightedSamples) -> None:
        """The chain has its result."""
        if self.save_to is not None:
            self.chains.append(snapshot.of_result(result))

    def enter(
        self, messenger: StepMessenger, name: str, step: Step, carry: Any, items: list[Any]
    ) -> tuple[Any, int]:
        """A scan starts: its carry, and how many of its steps are done."""
        pack(carry, "carry")
        self.scan = {"name": name, "steps": len(items), "xs": digest(items)}
        state = self.resumed
        if state is None:
            return carry, 0
        saved = state["messenger"]
        _same_values(messenger.values, saved["values"], saved["dropped"])
        position = len(self.finished)
        scans = [*state["finished"], state["scan"]]
        compare(scans[position], self.scan, f"scan '{name}'")
        like = [carry]
        if position == 0:
            after = messenger.step(step, carry, items[0])
            if not _close(self._signature(messenger, after), state["first"]):
                raise ResumeError(
                    f"cannot resume: the first step of scan '{name}' draws or weighs otherwise "
                    "than in the saved run, so the program, its arguments or its networks are not "
                    "those of before; run() starts afresh"
                )
            self.first = list(state["first"])
            like.append(after)
        if position < len(state["finished"]):
            done = state["finished"][position]
            set_random_states(done["random"], self.generator)
            return self._unpack(done["carry"], like), len(items)
        return self._take_up(messenger, like)

    def after(self, messenger: StepMessenger, carry: Any, done: int) -> None:
        """A step of a scan is done."""
        if not self.first:
            self.first = self._signature(messenger, carry)
        if self.save_to is None or messenger.steps_done % self.save_every:
            return
        guide = messenger.guide
        state = {
            "settings": self.settings,
            "chains": self.chains,
            "start": self.start,
            "first": self.first,
            "finished": self.finished,
            "scan": self.scan,
            "done": done,
            "carry": pack(carry, "carry"),
            "guide": None if guide is None else pack(guide.state, "the guide's carry"),
            "messenger": snapshot.of_messenger(messenger),
            "random": random_states(self.generator),
            "rows": self.run.rows.rows,
            "seconds": time.perf_counter() - self.run.started,
        }
        snapshot.write(self.save_to, state)

    def leave(self, carry: Any) -> None:
        """A scan is over."""
        state = {
            **self.scan,
            "carry": pack(carry, "carry"),
            "random": random_states(self.generator),
        }
        self.finished.append(state)

    def _take_up(self, messenger: StepMessenger, like: list[Any]) -> tuple[Any, int]:
        state = self.resumed
        assert state is not None
        carry = self._unpack(state["carry"], like)
        snapshot.set_messenger(messenger, state["messenger"])
        guide = messenger.guide
        if guide is not None:
            guide.state = self._unpack(state["guide"], [guide.state])
        self.run.rows.rows = state["rows"]
        self.run.started = time.perf_counter() - state["seconds"]
        set_random_states(state["random"], self.generator)
        self.resumed = None
        return carry, state["done"]

    def _unpack(self, packed: Any, like: list[Any]) -> Any:
        try:
            return unpack(packed, like)
        except TypeError as error:
            raise ResumeError(f"cannot resume: {error}") from None

    def _signature(self, messenger: StepMessenger, carry: Any) -> list[float]:
        population = messenger.population
        return [*moments(carry), population.ess[0], population.log_normalizer[0]]


_WORDS = {
    "sites": "the sites of the program differ",
    "data": "the tensors among the program's arguments differ",
    "xs": "what its steps go over differs",
}


def compare(there: Mapping[str, Any], here: Mapping[str, Any], what: str = "the sampler") -> None:
    """
    Refuses settings other than those of the saved run.

    :param there: the saved ones.
    :param here: those of now.
    :param what: whose they are.
    :raises ResumeError: naming each that differs.
    """
    odd = [name for name in here if there.get(name) != here[name]]
    if odd:
        reasons = [
            _WORDS.get(name, f"{name} was {there.get(name)!r} and is {here[name]!r}")
            for name in odd
        ]
        raise ResumeError(
            f"cannot resume: {what} is not that of the saved run: {'; '.join(reasons)}"
        )


def _same_values(
    here: Mapping[str, Tensor], there: Mapping[str, Tensor], dropped: list[str]
) -> None:
    for name, value in here.items():
        saved = there.get(name)
        if saved is None and name in dropped:
            continue
        if saved is None or not _close(moments(value), moments(saved)):
            raise ResumeError(
                f"cannot resume: site '{name}' is not drawn as in the saved run, so the program or "
                "its arguments are not those of before; run() starts afresh"
            )


def _close(here: list[float], there: list[float]) -> bool:
    return len(here) == len(there) and all(
        math.isclose(a, b, rel_tol=1e-4, abs_tol=1e-6) or a == b for a, b in zip(here, there)
    )
