# SPDX-License-Identifier: Apache-2.0
"""Runs the parts of a program with steps apart, each for as many particles as are wanted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.runtime import _PYRO_STACK
from pyro.poutine.trace_messenger import TraceMessenger
from torch import Tensor

from pyro_tilt.infer.particle_rules import note_rules
from pyro_tilt.infer.proposal import ProgramProposal
from pyro_tilt.infer.stepwise.rows import draw_rows, put_rows
from pyro_tilt.ops.importance import as_double
from pyro_tilt.poutine.capture_messenger import CaptureMessenger
from pyro_tilt.poutine.particle_plate import ParticlePlate
from pyro_tilt.poutine.weight_messenger import WeightMessenger
from pyro_tilt.rewards import log_tilt

__all__ = ["Kernel", "Pass", "ReentryMessenger", "is_constant"]

Step = Callable[[Any, Any], Any]


@dataclass
class Pass:
    """
    What a part of the program drew for n particles.

    :ivar carry: the carry at its end; None after the last part.
    :ivar values: values of its latent and deterministic sites.
    :ivar log_factors: sum of its observations, factors and tilts, shape (n,); None for no such.
    :ivar rewards: its rewards with their beta.
    :ivar laws: distributions of its latent sites.
    """

    carry: Any
    values: dict[str, Tensor]
    log_factors: Tensor | None
    rewards: list[tuple[Tensor, Any]]
    laws: dict[str, Any]

    def take(self, source: Tensor) -> Pass:
        """The rows ``source``, without carry and laws."""
        values = {k: v[source.to(v.device)] for k, v in self.values.items()}
        rewards = [(r[source.to(r.device)], beta) for r, beta in self.rewards]
        factors = self.log_factors
        kept = None if factors is None else factors[source.to(factors.device)]
        return Pass(None, values, kept, rewards, {})

    def put(self, rows: Tensor, new: Pass) -> None:
        """Replaces rows, the carry apart."""
        self.values = put_rows(self.values, rows, new.values, path="sites")
        if self.log_factors is not None:
            assert new.log_factors is not None
            self.log_factors = put_rows(self.log_factors, rows, new.log_factors)
        pairs = zip(self.rewards, new.rewards, strict=True)
        self.rewards = [(put_rows(old, rows, each), beta) for (old, beta), (each, _) in pairs]


@dataclass
class Kernel:
    """The law of a step that consists of one site, whose value is the carry."""

    name: str
    law: Any

    def draw(self, rows: Tensor, repeats: int) -> Tensor:
        """Fresh values of some particles."""
        return draw_rows(self.law, rows, repeats)


class _Reached(Exception):
    """Stops the program at its scan."""


class _NoScan(Exception):
    """The program ended without one."""


class _Plate(ParticlePlate):
    def resize(self, size: int) -> None:
        self.size = size
        self._frame = (CondIndepStackFrame(self.name, self.dim, size, 0),)


class ReentryMessenger(WeightMessenger):
    """
    Runs what lies before the scan, single steps, and the last step with all that follows.

    Every part runs inside the program, so that the handlers it was wrapped in act on every step.
    Sites before the scan are replayed there and not weighed again.

    :param proposal: the program and its plain run.
    """

    def __init__(self, proposal: ProgramProposal) -> None:
        dim = -1 - proposal.max_plate_nesting
        super().__init__(1, dim)
        self.dim = dim
        self.proposal = proposal
        self.laws: dict[str, Any] = {}
        self.shared: dict[str, Tensor] = {}
        self.where = "before the first step"
        self.num_steps = 0
        self.rows = 0
        self.tail_rows = 0
        self._replay: dict[str, Tensor] | None = None
        self._reached = False
        self._on_scan: Callable[[str, Step, Any, list[Any]], Any] = _stop
        self._plate = _Plate(1, dim)
        self._claimed: dict[str, int] = {}
        self.wanted: frozenset[str] = frozenset()

    def start(self, size: int) -> Pass:
        """Draws what lies before the scan."""
        carries: list[Any] = []

        def note(name: str, step: Step, carry: Any, xs: list[Any]) -> Any:
            carries.append(carry)
            if self.num_steps not in (0, len(xs)):
                raise ValueError(
                    f"scan '{name}' has {len(xs)} steps in one run and {self.num_steps} in "
                    "another; every run must take the same number of steps"
                )
            self.num_steps = len(xs)
            raise _Reached

        self._run(size, None, note)
        self.shared = {**self.shared, **self.subsamples}
        return self._taken(carries[0])

    def inside(self, start: dict[str, Tensor], size: int, body: Callable[..., None]) -> None:
        """Calls ``body(name, step, carry, xs)`` at the scan of a run over given starts."""

        def call(name: str, step: Step, carry: Any, xs: list[Any]) -> Any:
            body(name, step, carry, xs)
            raise _Reached

        self._run(size, start, call)

    def step(self, step: Step, carry: Any, x: Any, size: int, index: int) -> Pass:
        """One step for ``size`` particles; to be called at the scan."""
        self._fresh(size)
        self.rows += size
        taken = self._taken(step(carry, x))
        self._check_step(taken, index)
        return taken

    def last(
        self,
        start: dict[str, Tensor],
        middle: dict[str, Tensor],
        size: int,
        move: Callable[[Step, Any], Any],
    ) -> Pass:
        """
        The last step, ``move(step, x)``, and all that follows, for ``size`` particles.

        :param start: values of the sites before the scan.
        :param middle: values of sites of other steps that a reward will ask for.
        """

        def call(name: str, step: Step, carry: Any, xs: list[Any]) -> Any:
            self._hand_over(middle)
            return move(step, xs[-1])

        self.rows += size
        self.tail_rows += size
        self._run(size, start, call)
        return self._taken(None)

    def note_wanted(self) -> None:
        """
        Finds the sites that rewards read; to be called at the scan.

        :raises ValueError: for a reward that reads the whole trace.
        """
        captures = self._captures()
        self.wanted = frozenset[str]().union(*(each.keep for each in captures))
        for here, inner in pairwise(_PYRO_STACK):
            if here in captures and isinstance(inner, TraceMessenger):
                raise ValueError(
                    "align(of='trace'): step by step there is no trace of a whole run; name the "
                    "sites that the reward reads, as in of=['x_1', 'x_0']"
                )

    def _hand_over(self, values: dict[str, Tensor]) -> None:
        """Shows rewards the sites that no statement of this pass draws."""
        for capture in self._captures():
            for site in values:
                capture.names[site] = None
            capture.values |= {site: values[site] for site in capture.keep & values.keys()}

    def _captures(self) -> list[CaptureMessenger]:
        """What collects the values of sites for the rewards of this program."""
        within = _PYRO_STACK[_PYRO_STACK.index(self) :]
        return [each for each in within if isinstance(each, CaptureMessenger)]

    def kernel(self, taken: Pass) -> Kernel | None:
        """The law of the step, where nothing but its one value matters."""
        (name, law), *others = taken.laws.items()
        whole = not others and list(taken.values) == [name] and taken.log_factors is None
        if whole and taken.carry is taken.values[name] and name not in self.weighted:
            return Kernel(name, law)
        return None

    def record(self, name: str, value: Tensor, law: Any) -> None:
        """Notes a value that was drawn from a kept law."""
        self.values[name] = value
        self.laws[name] = law
        self._hand_over({name: value})

    def check_last(self, index: int, carry: Any) -> None:
        """Checks the sites of the last step, which the rest of the program is to follow."""
        self._check_step(Pass(carry, self.values, None, [], self.laws), index)

    def _check_step(self, taken: Pass, index: int) -> None:
        if not taken.laws:
            raise ValueError(
                f"{self.where}: it samples no latent site, so that a rejected chain would only "
                "repeat it; steps need a random kernel"
            )
        if all(is_constant(law) for law in taken.laws.values()):
            raise ValueError(
                f"site '{next(iter(taken.laws))}': its kernel is deterministic ({self.where}), so "
                "that a rejected chain would only repeat it; use a stochastic sampler of the "
                "diffusion, or SMC"
            )
        for name in taken.values:
            if self._claimed.setdefault(name, index) != index:
                raise RuntimeError(f"multiple sample sites named '{name}' (in two steps)")

    def _run(self, size: int, replay: dict[str, Tensor] | None, on_scan: Any) -> None:
        self._fresh(size)
        self._replay, self._reached, self._on_scan = replay, False, on_scan
        self._plate = _Plate(size, self.dim)
        program, args, kwargs = self.proposal.program, self.proposal.args, self.proposal.kwargs
        try:
            with torch.no_grad(), pyro.validation_enabled(False), self, self._plate:
                program(*args, **kwargs)
            if not self._reached:
                raise _NoScan
        except _Reached:
            pass
        except _NoScan:
            raise ValueError(
                "value= needs a program with steps, and this one reached no scan; declare them by "
                "pyro_tilt.scan, or leave value out for LCB over the whole program"
            ) from None
        except (RuntimeError, IndexError, ValueError) as error:
            # A value error at a step names its own cause.
            if not self._reached or not isinstance(error, ValueError):
                note_rules(error, f"({self.where}) ")
            raise

    def _fresh(self, size: int) -> None:
        self.size = size
        self._plate.resize(size)
        self.values, self.laws, self.factors, self.tilts = {}, {}, {}, []
        self._total = None

    def _taken(self, carry: Any) -> Pass:
        total = self._total
        rewards = [(reward, beta) for _, reward, beta in self.tilts]
        for reward, beta in rewards:
            tilt = as_double(log_tilt(reward, beta))
            total = tilt if total is None else total + tilt
        n = self.size
        values = {
            name: value if value.shape[:1] == (n,) else value.expand(n, *value.shape)
            for name, value in self.values.items()
        }
        factors = None if total is None else total.expand(n).contiguous()
        if factors is not None and not bool((factors < torch.inf).all()):
            raise ValueError(f"{self.where}: log factors are NaN or +inf; {list(self.factors)}")
        return Pass(carry, values, factors, rewards, dict(self.laws))

    def _pyro_tilt_scan(self, msg: Any) -> None:
        if self._reached:
            return
        step, carry, xs = msg["args"]
        name, items = msg["name"], list(xs)
        inner = [frame for frame in msg["cond_indep_stack"] if frame.name != "particles"]
        if inner:
            raise ValueError(
                f"scan '{name}' stands inside plate '{inner[-1].name}'; chains accept whole "
                "steps, so put the plate inside the step"
            )
        if not items:
            raise ValueError(f"scan '{name}' has no steps")
        self._reached = True
        if self._replay is not None:
            self._fresh(self.size)
        msg["value"] = self._on_scan(name, step, carry, items)
        msg["done"] = msg["stop"] = True

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and not msg["done"]:
            known = None
            if self._replay is not None and not self._reached:
                known = self._replay.get(msg["name"])
            if known is None:
                known = self.shared.get(msg["name"])
            if known is not None:
                msg["value"], msg["done"] = known, True
                return
        super()._pyro_sample(msg)

    def _pyro_post_sample(self, msg: Any) -> None:
        if self._replay is not None and not self._reached:
            return
        super()._pyro_post_sample(msg)
        name = msg["name"]
        if not msg["is_observed"] and name in self.values:
            self.laws[name] = msg["fn"]


def _stop(name: str, step: Step, carry: Any, xs: list[Any]) -> Any:
    raise _Reached


def is_constant(law: Any) -> bool:
    """Whether a law has one value only, as far as its kind tells."""
    while hasattr(law, "base_dist"):
        law = law.base_dist
    if isinstance(law, dist.Delta):
        return True
    scale = getattr(law, "scale", None)
    return isinstance(scale, Tensor) and bool((scale == 0).all())
