# SPDX-License-Identifier: Apache-2.0
"""Lets runs take turns, and makes the network calls that they wait for together."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro.nn import PyroModule
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _PYRO_STACK
from torch import nn
from torch.utils.hooks import RemovableHandle

from pyro_tilt.infer.cost import CountRows
from pyro_tilt.infer.each.mode import TorchMode
from pyro_tilt.infer.each.turns import Turns
from pyro_tilt.infer.each.world import World
from pyro_tilt.ops.ragged import padding_is_small
from pyro_tilt.ops.shared_calls import SharedCall, check_ragged, join, join_ragged, take_calls

__all__ = ["Conductor"]


@dataclass
class _Question:
    """A call, how its thread would compute it, and to which others it can be joined."""

    call: SharedCall
    mode: TorchMode
    kind: Hashable = field(init=False)
    ragged: Hashable | None = field(init=False)

    def __post_init__(self) -> None:
        self.kind = (self.call.kind(), self.mode)
        ragged = self.call.ragged_kind()
        self.ragged = None if ragged is None else (ragged, self.mode)


@dataclass
class _Answer:
    """A part of a joined call: its result, and the rows of counted modules that it took."""

    result: Any
    counted: int | None


class _Sites(Messenger):
    """Refuses all statements of Pyro."""

    def _process_message(self, msg: Any) -> None:
        raise RuntimeError(f"it makes a statement of Pyro, {msg['type']} {msg['name']!r}")


class Conductor:
    """
    Runs functions by turns: each until it calls a network, then their calls, and so on.

    :param base: the state of the process outside of the runs.
    :param max_batch: the most rows of a joined call.
    :param max_live: the most functions that have begun and not ended.
    :ivar runs: the functions.
    :ivar refused: why calls of a kind of network are not joined.
    :ivar apart: networks whose calls are joined for one length alone.
    """

    def __init__(self, base: World, *, max_batch: int, max_live: int) -> None:
        self.base, self.max_batch, self.max_live = base, max_batch, max_live
        self._present = base
        self.runs: list[Turns] = []
        self.refused: dict[Hashable, str] = {}
        self.apart: set[Hashable] = set()
        # Hooks that come later belong to single runs.
        self._first_hook = RemovableHandle.next_id
        self._random: dict[nn.Module, bool] = {}

    def add(self, body: Callable[[], Any], world: World) -> None:
        """
        Adds a function.

        :param body: see :class:`Turns`.
        :param world: the state that it begins with.
        """

        def within() -> Any:
            with take_calls(lambda call: self._taken(run, call)):
                return body()

        run = Turns(within, world, name=f"pyro_tilt run {len(self.runs)}")
        self.runs.append(run)

    def conduct(self, on_done: Callable[[Turns], None]) -> None:
        """
        Runs all of them to their ends.

        :param on_done: called with each that has ended.
        """
        waiting, live = deque(self.runs), deque[Turns]()
        try:
            while waiting or live:
                while waiting and len(live) < self.max_live:
                    live.append(waiting.popleft())
                    self._turn(live[-1], None)
                asked = [run for run in live if not run.done]
                for run in live:
                    if run.done:
                        on_done(run)
                live = deque(asked)
                self._turn_to_base()
                for run, answer in self._answers(asked):
                    self._turn(run, answer)
        finally:
            for run in self.runs:
                run.stop()
            self.base.install()

    def _turn_to_base(self) -> None:
        self.base.install(self._present)
        self._present = self.base

    def _turn(self, run: Turns, answer: _Answer | None) -> None:
        run.resume(answer, self._present)
        self._present = run.world
        if run.error is not None and not isinstance(run.error, Exception):
            raise run.error

    def _taken(self, run: Turns, call: SharedCall) -> Any:
        """The result of a call, in the thread that makes it."""
        # A graph that two runs share could be walked back by one of them only.
        if torch.is_grad_enabled() or call.key in self.refused or self._belongs(call.module):
            return call.alone()
        answer = run.ask(_Question(call, TorchMode.current()))
        if answer is None:
            return call.alone()
        for frame in _PYRO_STACK:
            if isinstance(frame, CountRows) and not frame._depth and answer.counted is not None:
                frame.add(answer.counted)
        return answer.result

    def _belongs(self, module: nn.Module) -> bool:
        """Whether a module does, or would do while its run waits, what is of one run alone."""
        if module not in self._random:
            self._random[module] = any(isinstance(m, PyroModule) for m in module.modules())
        if self._random[module]:
            return True
        return RemovableHandle.next_id > self._first_hook and any(
            hook >= self._first_hook
            for known in self._random
            for part in known.modules()
            for hook in (*part._forward_pre_hooks, *part._forward_hooks)
        )

    def _answers(self, asked: Sequence[Turns]) -> list[tuple[Turns, _Answer | None]]:
        """What each is told; None where it is to make its call itself."""
        found: dict[Turns, _Answer] = {}
        for group in self._groups(asked):
            if len(group) > 1:
                found.update(zip(group, self._joined(group)))
        return [(run, found.get(run)) for run in asked]

    def _groups(self, asked: Sequence[Turns]) -> Iterator[list[Turns]]:
        kinds: dict[Hashable, list[Turns]] = {}
        for run in asked:
            question = run.question
            alike = question.call.key in self.apart or question.ragged is None
            kinds.setdefault(question.kind if alike else question.ragged, []).append(run)
        for runs in kinds.values():
            group: list[Turns] = []
            rows = held = 0
            # Those of one length, and of the next longer ones, together.
            for run in sorted(runs, key=lambda each: each.question.call.length()):
                call = run.question.call
                length = call.length()
                total, full = rows + call.rows, held + call.rows * length
                most = min(self.max_batch, call.most or self.max_batch)
                small = call.ragged is None or padding_is_small(
                    full, total * length, call.ragged.width
                )
                if group and (total > most or not small):
                    yield group
                    group, total, full = [], call.rows, call.rows * length
                group.append(run)
                rows, held = total, full
            yield group

    def _joined(self, group: list[Turns]) -> list[_Answer]:
        """The answers to calls of one kind; empty where they cannot be joined after all."""
        calls = [run.question.call for run in group]
        unequal = len({run.question.kind for run in group}) > 1
        state, started = _random_states(), time.perf_counter()
        count = CountRows()
        _PYRO_STACK.clear()
        try:
            with group[0].question.mode.active(), _Sites():
                with count:
                    parts = (join_ragged if unequal else join)(calls)
                if unequal:
                    check_ragged(calls, parts)
            if not all(map(torch.equal, _random_states(), state)):
                raise RuntimeError("it draws random numbers")
        except Exception as error:
            # Each then makes its own call, and meets its own error.
            self.base.install()
            if unequal:
                self.apart.add(calls[0].key)
                return []
            self.refused[calls[0].key] = f"{type(calls[0].module).__name__}: {error}"
            return []
        rows, seconds = sum(call.rows for call in calls), time.perf_counter() - started
        for run in group:
            run.seconds += seconds * run.question.call.rows / rows
        shares = [None if count.rows is None else count.rows * c.rows // rows for c in calls]
        return [_Answer(part, share) for part, share in zip(parts, shares)]


def _random_states() -> list[torch.Tensor]:
    """Those that a network may draw from."""
    on_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return [torch.get_rng_state(), *on_gpus]
