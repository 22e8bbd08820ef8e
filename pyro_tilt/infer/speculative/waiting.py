# SPDX-License-Identifier: Apache-2.0
"""Programs that wait at their scans while their steps are run, side by side, from outside."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pyro.distributions.util import scale_and_mask
from pyro.poutine.runtime import _DIM_ALLOCATOR, _PYRO_STACK
from torch import Tensor

from pyro_tilt.infer.proposal import ProgramProposal
from pyro_tilt.infer.stepwise.reentry import Pass, ReentryMessenger, Step
from pyro_tilt.ops.importance import as_double

__all__ = ["Ran", "StepRunner", "Waiting", "side_by_side"]


@dataclass
class Ran:
    """
    What some steps of a program did.

    :ivar carry: the carry after them.
    :ivar values: values of their sites.
    :ivar log_prob: log probability of their latent sites under the program's own laws, (n,).
    :ivar laws: the laws of the latent sites of the last of them.
    """

    carry: Any
    values: dict[str, Tensor]
    log_prob: Tensor
    laws: dict[str, Any]


class StepRunner(ReentryMessenger):
    """
    Runs steps of a program for any number of particles, with some of the sites given.

    Latent sites lie in the steps alone.

    :param proposal: the program and its plain run.
    :ivar known: values that latent sites take in place of draws.
    """

    def __init__(self, proposal: ProgramProposal) -> None:
        super().__init__(proposal)
        self.known: dict[str, Tensor] = {}
        self.scores: Tensor | None = None
        self._stepping = False

    def advance(
        self, step: Step, carry: Any, xs: Sequence[Any], size: int, known: dict[str, Tensor]
    ) -> Ran:
        """
        Some steps for ``size`` particles; to be called at the scan.

        :param step: the step of the scan.
        :param carry: before the first of them.
        :param xs: their elements of the scan.
        :param size: number of particles.
        :param known: see ``known``.
        """
        values: dict[str, Tensor] = {}
        total: Tensor | None = None
        laws: dict[str, Any] = {}
        self.known, self._stepping = known, True
        try:
            for x in xs:
                self.where = f"the step at {x!r}"
                self.scores = None
                taken = self.step(step, carry, x, size, 0)
                carry, laws = taken.carry, taken.laws
                if self.scores is None:
                    raise ValueError(f"{self.where}: it samples no latent site")
                scores = as_double(self.scores).expand(size)
                total = scores if total is None else total + scores
                values.update(taken.values)
        finally:
            self.known, self._stepping = {}, False
        assert total is not None
        return Ran(carry, values, total, laws)

    def finish(self, carry: Any, middle: dict[str, Tensor], size: int) -> Pass:
        """
        What follows the scan after a given last carry.

        :param carry: of all particles.
        :param middle: values of sites of the steps, for rewards that read them.
        :param size: number of particles.
        """
        return self.last({}, middle, size, lambda step, x: carry)

    def _check_step(self, taken: Pass, index: int) -> None:
        # Steps are run again with given values, so that any kernel will do.
        pass

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and not msg["done"]:
            name = msg["name"]
            if type(msg["fn"]).__name__ != "_Subsample" and not self._stepping:
                raise ValueError(
                    f"site '{name}' lies outside the steps of the scan; draws in blocks of steps "
                    "need all latent sites in the steps. Move it there, or leave block out"
                )
            if name in self.known:
                msg["value"], msg["done"] = self.known[name], True
                return
        super()._pyro_sample(msg)

    def _pyro_post_sample(self, msg: Any) -> None:
        super()._pyro_post_sample(msg)
        name = msg["name"]
        if self._stepping and not msg["is_observed"] and name in self.laws:
            score = scale_and_mask(msg["fn"].log_prob(msg["value"]), msg["scale"], msg["mask"])
            score = self._per_particle(name, score)
            self.scores = score if self.scores is None else self.scores + score


class Handlers:
    """The handlers that are active where it is made, and the dimensions that plates hold."""

    def __init__(self) -> None:
        self.frames, self.plates = list(_PYRO_STACK), list(_DIM_ALLOCATOR._stack)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Puts them in place of those that are active now."""
        before = Handlers()
        self._install()
        try:
            yield
        finally:
            before._install()

    def _install(self) -> None:
        _PYRO_STACK[:] = self.frames
        _DIM_ALLOCATOR._stack[:] = self.plates


@dataclass
class Waiting:
    """
    A program at its scan.

    :ivar runner: runs its steps.
    :ivar step: the step.
    :ivar carry: the first carry.
    :ivar xs: what the scan goes over.
    :ivar handlers: those active at the scan.
    """

    runner: StepRunner
    step: Step
    carry: Any
    xs: list[Any]
    handlers: Handlers

    def advance(self, carry: Any, xs: Sequence[Any], size: int, known: dict[str, Tensor]) -> Ran:
        """See :meth:`StepRunner.advance`; runs under the handlers of this program."""
        with self.handlers.active():
            return self.runner.advance(self.step, carry, xs, size, known)


def side_by_side(
    runners: Sequence[StepRunner], size: int, body: Callable[[list[Waiting]], None]
) -> None:
    """
    Runs programs up to their scans and calls ``body`` while all of them wait there.

    Each program keeps the handlers that it was wrapped in, which act on its own steps alone.

    :param runners: of the programs.
    :param size: number of particles of their first carries.
    :param body: does the work.
    """
    base = Handlers()
    waiting: list[Waiting] = []

    def enter(place: int) -> None:
        if place == len(runners):
            return body(waiting)

        def note(name: str, step: Step, carry: Any, xs: list[Any]) -> None:
            waiting.append(Waiting(runners[place], step, carry, xs, Handlers()))
            with base.active():
                enter(place + 1)

        runners[place].inside({}, size, note)

    enter(0)
