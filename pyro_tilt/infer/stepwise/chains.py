# SPDX-License-Identifier: Apache-2.0
"""A group of chains on their way through the steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyro_tilt.infer.sampler import Run
from pyro_tilt.infer.seeding import derive_seed, seeded
from pyro_tilt.infer.smc.paths import PathStore
from pyro_tilt.infer.stepwise.baselines import baselines_from_draws
from pyro_tilt.infer.stepwise.bounds import Bounds
from pyro_tilt.infer.stepwise.held import Held
from pyro_tilt.infer.stepwise.path_weight import (
    fresh_weight_increment,
    path_weight_increment,
)
from pyro_tilt.infer.stepwise.reentry import Kernel, Pass, ReentryMessenger, is_constant
from pyro_tilt.infer.stepwise.rounds import Accepted, accept
from pyro_tilt.infer.stepwise.rows import fork, spread
from pyro_tilt.infer.stepwise.sources import Moment, per_row

if TYPE_CHECKING:
    from pyro_tilt.infer.stepwise.stepwise_lcb import StepwiseLCB

__all__ = ["PROBS", "Chains", "StepSummary"]

Again = Callable[[Tensor, int], Pass]
Score = Callable[[Pass, int], Tensor]

PROBS = (0.05, 0.1, 0.5, 0.9, 0.95)


@dataclass
class StepSummary:
    """
    What one step of the chains cost and clipped.

    :ivar proposals: mean number up to the first acceptance.
    :ivar clipped: mean of :math:`e^{(A - b)_+} - 1`.
    :ivar baseline: quantiles over the chains, at ``PROBS``.
    """

    proposals: float
    clipped: float
    baseline: list[float]


@dataclass
class Chains:
    """
    Runs ``size`` chains from the start to the end.

    :param sampler: the options.
    :param run: the random streams.
    :param size: number of chains.
    :param group: number of the group, for seeds of its own.
    :param generator: of the acceptance uniforms.
    :param on_step: called with the number of chains after each step.
    """

    sampler: StepwiseLCB
    run: Run
    size: int
    group: int
    generator: torch.Generator
    on_step: Callable[[int], object] = int
    summaries: list[StepSummary] = field(default_factory=list)
    start_proposals: float = 1.0
    value_calls: int = 0

    def __post_init__(self) -> None:
        self.source = self.sampler.source()
        self.bounds = Bounds(self.sampler.value_bound, self.run.proposal.log_bound)
        self.messenger = ReentryMessenger(self.run.proposal)
        zeros = torch.zeros(self.size, dtype=torch.float64)
        self.clipping, self.log_path = zeros, zeros.clone()
        self.proposals = torch.zeros(self.size, dtype=torch.long)
        self.capped = torch.zeros(self.size, dtype=torch.bool)
        self.rewards: list[tuple[Tensor, Any]] = []
        self.values: dict[str, Tensor] = {}
        self._start_values: dict[str, Tensor] = {}
        self.paths = PathStore(self.size) if self.sampler.keep_paths else None
        self._carry: Any = None
        self._last_x: Any = None
        self._name = ""
        self._stream = 0
        self._middle_values: dict[str, Tensor] = {}
        self.steps_done = -1

    def advance(self) -> None:
        """Runs all steps."""
        start = self._start()
        self.messenger.inside(start.values, self.size, self._middle)
        self._last(start)

    def _start(self) -> Pass:
        """Chains before the first step, tilted by their value where that is asked for."""
        messenger, sampler = self.messenger, self.sampler
        first = messenger.start(self.size)
        where = "before the first step"

        def score(taken: Pass, size: int) -> Tensor:
            tilt = taken.carry if sampler.tilt_start else None
            A = self._score(taken, tilt, None, size, where)
            self.bounds.check(A, last=False)
            return A

        def again(rows: Tensor, repeats: int) -> Pass:
            return messenger.start(len(rows) * repeats)

        self.bounds.plain = first.log_factors is None
        free = all(is_constant(law) for law in first.laws.values())
        if not free and (sampler.tilt_start or first.log_factors is not None):
            with self._calibration():
                drawn = [
                    score(messenger.start(rows), rows)
                    for rows in _pieces(sampler.num_start, sampler.max_batch)
                ]
            A = torch.cat(drawn).unsqueeze(0)
            rule = sampler.state_rule(self._epsilon(-1))
            baseline = baselines_from_draws(rule, A, where).expand(self.size)
            baseline = self.bounds.clamp(baseline, last=False).clone()
            moment = self._moment(again, score, None, None, where, place=-1)
            found = self._accept(Held(first, None), again, score, baseline, where, last=False)
            self._account(found, baseline, first, moment, last=False)
            self.start_proposals = float(found.proposals.double().mean())
        elif first.log_factors is not None:
            self.log_path = self.log_path + first.log_factors.to(self.log_path)
        self._finish_step(first)
        return first

    def _middle(self, name: str, step: Any, carry: Any, xs: list[Any]) -> None:
        self._name = name
        self.messenger.note_wanted()
        for k, x in enumerate(xs[:-1]):
            carry = self._step(step, carry, x, k)
            self.on_step(self.size)
        self._carry, self._last_x = carry, xs[-1]

    def _step(self, step: Any, carry: Any, x: Any, k: int) -> Any:
        """One step that is not the last; the carry after it."""
        messenger, n = self.messenger, self.size
        where = messenger.where = f"scan '{self._name}', step {k}"
        # Other proposals start from this carry too, so the step gets a copy to change.
        first = messenger.step(step, fork(carry, torch.arange(n), n), x, n, k)
        parts = Held(first, messenger.kernel(first))

        def again(rows: Tensor, repeats: int) -> Pass:
            if parts.kernel is not None:
                messenger.rows += len(rows) * repeats
                return parts.from_kernel(rows, repeats)
            index = rows.repeat_interleave(repeats)
            return messenger.step(step, fork(carry, index, n), x, len(index), k)

        def score(taken: Pass, size: int) -> Tensor:
            return self._score(taken, taken.carry, x, size, where)

        self._one_step(parts, again, score, carry, x, where, k)
        self._middle_values |= {
            name: value for name, value in first.values.items() if name in messenger.wanted
        }
        self._finish_step(first)
        return first.carry

    def _last(self, start: Pass) -> None:
        """The last step with the rest of the program, whose true log weight is its value."""
        messenger, n, carry = self.messenger, self.size, self._carry
        k = self.messenger.num_steps - 1
        where = messenger.where = f"scan '{self._name}', step {k}"
        kept: list[Kernel | None] = []

        def enter(index: Tensor | None) -> Callable[[Any, Any], Any]:
            def move(step: Any, x: Any) -> Any:
                rows = fork(carry, torch.arange(n) if index is None else index, n)
                moved = step(rows, x)
                messenger.check_last(k, moved)
                if not kept:
                    kept.append(messenger.kernel(messenger._taken(moved)))
                return moved

            return move

        def again(rows: Tensor, repeats: int) -> Pass:
            index = rows.repeat_interleave(repeats)
            kernel = kept[0]
            values, middle = (
                {name: value[index.to(value.device)] for name, value in each.items()}
                for each in (start.values, self._middle_values)
            )
            if kernel is None:
                return messenger.last(values, middle, len(index), enter(index))

            def move(step: Any, x: Any) -> Any:
                value = kernel.draw(rows, repeats)
                messenger.record(kernel.name, value, kernel.law)
                return value

            return messenger.last(values, middle, len(index), move)

        def score(taken: Pass, size: int) -> Tensor:
            return self._score(taken, None, None, size, where)

        first = messenger.last(start.values, self._middle_values, n, enter(None))
        self._one_step(Held(first, None), again, score, carry, self._last_x, where, k, last=True)
        self._finish_step(first)
        self.on_step(n)

    def _one_step(
        self,
        parts: Held,
        again: Again,
        score: Score,
        carry: Any,
        x: Any,
        where: str,
        place: int,
        *,
        last: bool = False,
    ) -> None:
        first = parts.first
        if not last and first.log_factors is not None:
            self.bounds.plain = False
        moment = self._moment(again, score, carry, x, where, place=place, last=last)
        A = score(first, self.size)
        self.bounds.check(A, last=last)
        baseline = self.bounds.clamp(self.source(moment), last=last).to(A.device)
        found = self._accept(parts, again, score, baseline, where, last=last, first=A)
        self._account(found, baseline, first, moment, last=last)
        excess = (found.log_weights - baseline).clamp(min=0.0).expm1()
        quantiles = baseline.quantile(baseline.new_tensor(PROBS)).tolist()
        mean = float(found.proposals.double().mean())
        self.summaries.append(StepSummary(mean, float(excess.mean()), quantiles))

    def _moment(
        self,
        again: Again,
        score: Score,
        carry: Any,
        x: Any,
        where: str,
        *,
        place: int,
        last: bool = False,
    ) -> Moment:
        n = self.size

        def fresh(count: int) -> Tensor:
            rows = torch.arange(n)
            with self._calibration():
                parts = [
                    score(again(rows, repeats), n * repeats).view(n, repeats)
                    for repeats in _pieces(count, max(1, self.sampler.max_batch // n))
                ]
            A = torch.cat(parts, 1)
            self.bounds.check(A, last=last)
            return A

        steps, epsilon = self.messenger.num_steps, self._epsilon(place)
        return Moment(spread(carry, n), x, place, steps, n, epsilon, where, fresh)

    def _accept(
        self,
        parts: Held,
        again: Again,
        score: Score,
        baseline: Tensor,
        where: str,
        *,
        last: bool,
        first: Tensor | None = None,
    ) -> Accepted:
        sampler = self.sampler

        def draw(waiting: Tensor, repeats: int) -> tuple[Tensor, Pass]:
            if parts.fresh:
                parts.fresh = False
                return score(parts.first, self.size) if first is None else first, parts.first
            taken = again(waiting, repeats)
            scores = score(taken, len(waiting) * repeats)
            self.bounds.check(scores, last=last)
            return scores, taken

        return accept(
            draw,
            parts.keep,
            baseline,
            generator=self.generator,
            acceptances=max(1, sampler.acceptances),
            max_proposals=sampler.max_proposals,
            min_acceptance=sampler.min_acceptance,
            max_rows=max(self.size, 64),
            where=where,
        )

    def _account(
        self, found: Accepted, baseline: Tensor, first: Pass, at: Moment, *, last: bool
    ) -> None:
        excess = (found.log_weights - baseline).clamp(min=0.0)
        self.clipping = self.clipping + excess.expm1().to(self.clipping)
        self.proposals = self.proposals + found.proposals.to(self.proposals)
        self.capped = self.capped | found.capped.to(self.capped)
        self.bounds.note(baseline, last=last)
        sampler = self.sampler
        if not sampler.path_weights:
            return
        if sampler.path_weights == "fresh":
            A = at.draw(sampler.num_inner).to(baseline.device)
            added = fresh_weight_increment(found, baseline, first.log_factors, A)
        else:
            options = sampler.acceptances, sampler.max_proposals
            added = path_weight_increment(found, baseline, first.log_factors, *options)
        self.log_path = self.log_path + added.to(self.log_path)

    def _finish_step(self, first: Pass) -> None:
        """Keeps what chains hold after a step, of the last one for good."""
        self.rewards += first.rewards
        if self.steps_done < 0:
            self.values = dict(first.values)
            self._start_values = dict(first.values)
        else:
            self.values = {**self._start_values, **first.values}
        self.steps_done += 1
        if self.paths is not None:
            self.paths.append(dict(first.values))

    def _score(self, taken: Pass, carry: Any, x: Any, size: int, where: str) -> Tensor:
        """A of each row: the log factors of the step and, where a carry is given, its value."""
        A = taken.log_factors
        if carry is not None:
            self.value_calls += size
            value = per_row(self._value(carry, x), size, f"{where}: the value")
            if not bool((value < torch.inf).all()):
                what = "NaN" if bool(value.isnan().any()) else "+inf"
                raise ValueError(f"{where}: the value is {what} for some particles")
            A = value if A is None else A + value
        return torch.zeros(size, dtype=torch.float64) if A is None else A

    def _value(self, carry: Any, x: Any) -> Any:
        try:
            return self.sampler.value(carry, x)
        except Exception as error:
            if x is None and self.steps_done < 0:
                error.add_note(
                    "the value was asked for the initial carry, whose element of xs is None; give "
                    "tilt_start=False where it knows the carries after a step alone"
                )
            raise

    def _epsilon(self, place: int) -> float:
        return self.sampler.share(place, self.messenger.num_steps)

    def width(self) -> float | None:
        """A sure bound on the clipping of a trajectory; None where there is none."""
        return self.bounds.width(self.messenger.num_steps - 1 + self.sampler.tilt_start)

    def _calibration(self) -> Any:
        self._stream += 1
        return seeded(derive_seed(self.run.calibration_seed, self.group, self._stream))


def _pieces(total: int, largest: int) -> list[int]:
    whole, rest = divmod(total, largest)
    return [largest] * whole + [rest] * (rest > 0)
