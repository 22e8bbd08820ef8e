# SPDX-License-Identifier: Apache-2.0
"""Cuts a program into pieces, runs every piece several times and keeps one run of each."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_tilt.infer.errors import SamplingError
from pyro_tilt.infer.proposal import ProgramProposal
from pyro_tilt.infer.selection.groups import Choose, Groups, Selected
from pyro_tilt.infer.smc.errors import StepError, TwistError
from pyro_tilt.infer.stepwise.reentry import Kernel, Pass, ReentryMessenger
from pyro_tilt.ops.importance import as_double
from pyro_tilt.ops.reindex import reindex
from pyro_tilt.poutine.tilt_factor import conform

Step = Callable[[Any, Any], Any]
Value = Callable[[Any, Any], Tensor]


class SelectionMessenger(ReentryMessenger):
    r"""
    Runs a program over N groups of m rows, which share their past up to the last choice.

    The first piece holds what comes before the scan and its first ``block`` steps, the last one its
    last steps and all that follows. A piece is weighed by its own factors and the value of the
    carry, the last one by its own factors alone, rewards included.

    After a choice the rows of a group are in the same state. Where a step is one site whose value
    is the carry, it then runs for one row of each group, and the other rows are drawn from the law
    that this evaluated; other steps run for every row.

    :param proposal: the program and its plain run.
    :param groups: the number N of groups.
    :param width: the number m of rows in a group.
    :param block: steps in a piece.
    :param choose: maps log weights (N, m) to columns.
    :param value: log value of a carry and the element of ``xs`` of its step, in place of the
        program's own twists.
    :param num_steps: of the plain run.
    :param on_step: called with the number of groups after each step.
    :ivar value_calls: rows that a value was evaluated at.
    """

    def __init__(
        self,
        proposal: ProgramProposal,
        groups: int,
        width: int,
        block: int,
        choose: Choose,
        value: Value | None,
        num_steps: int,
        on_step: Callable[[int], object] = int,
    ) -> None:
        super().__init__(proposal)
        self.groups = Groups(groups, width, choose)
        self.all_rows = groups * width
        self.width = width
        self.block = block
        self.value = value
        self.num_steps = num_steps
        self.on_step = on_step
        self.value_calls = 0
        self.selected: Selected | None = None
        self.chosen_at = ""
        self._index = -1
        self._shares = width > 1 and value is not None
        self._scan = ""
        self._inside = False
        self._psi: Tensor | None = None
        self._stated: Tensor | None = None
        self._twists: dict[str, int] = {}
        self._fresh_twists: set[str] = set()

    def run(self) -> Selected:
        """
        Runs the whole program and returns what was kept.

        :raises StepError: where the program raises at a step or after it, with its own error as the
            cause; ``selected`` then holds the choice before, made at ``chosen_at``.
        """
        try:
            self._run(self.all_rows, None, self._steps)
            self._choose(self._taken(None), None, None, "after the last step")
        except SamplingError:
            raise
        except Exception as error:
            if self._index < 0:
                raise
            raise StepError(
                f"after scan '{self._scan}': {type(error).__name__}: {error}"
            ) from error
        assert self.selected is not None
        return self.selected

    def _steps(self, name: str, step: Step, carry: Any, xs: list[Any]) -> Any:
        self._scan = name
        if len(xs) != self.num_steps:
            raise ValueError(
                f"scan '{name}' has {len(xs)} steps here and {self.num_steps} in the plain run; "
                "give every run the same number of steps"
            )
        before = self._taken(carry)
        self._check_step(before, -1)
        self.groups.gather(before)
        self.groups.outer = before.values
        self._psi, self._stated = self._stated, None
        chosen = False
        for k, x in enumerate(xs):
            carry, chosen = self._advance(step, carry, x, k, chosen)
            self.on_step(len(self.groups))
        return carry

    def _advance(self, step: Step, carry: Any, x: Any, k: int, chosen: bool) -> tuple[Any, bool]:
        """One step; the carry after it, of one row per group where a choice was made."""
        where = self.where = f"scan '{self._scan}', step {k}"
        self._index, self._inside = k, True
        try:
            taken = self._rows(step, carry, x, chosen)
            if self._stated is not None:
                self._psi, self._stated = self._stated, None
            if k + 1 == self.num_steps:
                # Its factors and sites are taken together with those of what follows.
                return taken.carry, False
            if (k + 1) % self.block:
                self.groups.gather(taken)
                return taken.carry, False
            carry = self._choose(taken, self._value(taken.carry, x, where), taken.carry, where)
            return carry, True
        except SamplingError:
            raise
        except Exception as error:
            raise StepError(f"{where}: {type(error).__name__}: {error}") from error
        finally:
            self._inside = False

    def _rows(self, step: Step, carry: Any, x: Any, chosen: bool) -> Pass:
        """The step for all rows, with one evaluation of its law per group where that will do."""
        k = self._index
        if chosen and self._shares:
            first = self._once(step, carry, x, len(self.groups), k)
            kernel = self.kernel(first)
            if kernel is not None:
                return self._drawn(kernel, first)
        if chosen:
            index = self.groups.repeated
            carry = reindex(carry, index, size=len(self.groups), path="carry")
        taken = self._once(step, carry, x, self.all_rows, k)
        self._shares = self._shares and self.kernel(taken) is not None
        return taken

    def _once(self, step: Step, carry: Any, x: Any, size: int, k: int) -> Pass:
        self._fresh_twists.clear()
        return self.step(step, carry, x, size, k)

    def _drawn(self, kernel: Kernel, first: Pass) -> Pass:
        """The value of the first pass, followed by further ones from its law, in each group."""
        value, n = first.values[kernel.name], len(self.groups)
        more = kernel.draw(torch.arange(n), self.width - 1)
        more = more.reshape(n, self.width - 1, *value.shape[1:])
        value = torch.cat((value.unsqueeze(1), more), 1).flatten(0, 1)
        self._fresh(self.all_rows)
        self.record(kernel.name, value, kernel.law)
        return self._taken(value)

    def _choose(self, taken: Pass, value: Tensor | None, carry: Any, where: str) -> Any:
        """Chooses a row of each group; the carry of those rows."""
        self.groups.gather(taken)
        self.selected = self.groups.choose_rows(value, taken.values, where)
        self.chosen_at = where
        if self._psi is not None:
            self._psi = self._psi[self.groups.keep][self.groups.repeated]
        if carry is None:
            return None
        return reindex(carry, self.groups.keep, size=self.all_rows, path="carry")

    def _value(self, carry: Any, x: Any, where: str) -> Tensor:
        size, value = self.all_rows, self._psi
        if self.value is not None:
            self.value_calls += size
            value = self.value(carry, x)
            if not isinstance(value, Tensor):
                raise TwistError(f"{where}: the value is a {type(value).__name__}, not a tensor")
            if tuple(value.shape[:1]) != (size,) or value.numel() != size:
                raise TwistError(
                    f"{where}: the value has shape {tuple(value.shape)}, expected ({size},), "
                    "one number per particle"
                )
            value = as_double(value.detach().reshape(size))
        if value is None:
            raise ValueError(
                "there is no value to choose by; pass value=, a function of the carry and the "
                "element of xs, or state a twist in the step"
            )
        if not float(value.amax()) < math.inf:
            raise TwistError(f"{where}: the value is NaN or +inf; it must be a number or -inf")
        return value

    def kernel(self, taken: Pass) -> Kernel | None:
        """See :meth:`ReentryMessenger.kernel`; None for a step that samples nothing as well."""
        return super().kernel(taken) if taken.laws else None

    def _check_step(self, taken: Pass, index: int) -> None:
        # A choice among equal copies changes nothing, so that kernels may be deterministic here.
        for name in taken.values:
            self._claimed[name] = index

    def _pyro_tilt_scan(self, msg: Any) -> None:
        if self._reached and not self._inside:
            raise ValueError(
                f"scan '{msg['name']}' follows scan '{self._scan}'; selection per step takes one "
                "scan: join the two into one whose xs names the phase"
            )
        super()._pyro_tilt_scan(msg)

    def _pyro_tilt_twist(self, msg: Any) -> None:
        name = msg["name"]
        msg["done"] = msg["stop"] = True
        if name in self._fresh_twists or self._twists.setdefault(name, self._index) != self._index:
            raise ValueError(f"two statements are named twist '{name}'; give each its own name")
        self._fresh_twists.add(name)
        if self.value is not None or msg["mask"] is False:
            return
        (log_psi,) = msg["args"]
        if callable(log_psi):
            log_psi = log_psi()
        self.value_calls += self.size
        log_psi = conform(log_psi, msg["cond_indep_stack"], name=name)
        log_psi = as_double(self._per_particle(name, log_psi)).expand(self.size)
        self._stated = log_psi if self._stated is None else self._stated + log_psi

    def _pyro_post_sample(self, msg: Any) -> None:
        if self._claimed.get(msg["name"], self._index) != self._index:
            raise RuntimeError(f"multiple sample sites named '{msg['name']}' (in two steps)")
        super()._pyro_post_sample(msg)
