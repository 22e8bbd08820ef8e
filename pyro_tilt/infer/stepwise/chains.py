# SPDX-License-Identifier: Apache-2.0
"""A group of chains on their way through the steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyro_tilt.infer.pooled import check_bound
from pyro_tilt.infer.sampler import Run
from pyro_tilt.infer.seeding import derive_seed, seeded
from pyro_tilt.infer.smc.paths import PathStore
from pyro_tilt.infer.stepwise.baselines import (
    StateRule,
    baselines_from_draws,
    baselines_from_mgf,
)
from pyro_tilt.infer.stepwise.held import Held
from pyro_tilt.infer.stepwise.path_weight import path_weight_increment
from pyro_tilt.infer.stepwise.reentry import Kernel, Pass, ReentryMessenger, is_constant
from pyro_tilt.infer.stepwise.rounds import Accepted, accept
from pyro_tilt.ops.importance import as_double
from pyro_tilt.ops.reindex import reindex

if TYPE_CHECKING:
    from pyro_tilt.infer.stepwise.stepwise_lcb import StepwiseLCB

__all__ = ["Chains", "StepSummary"]

PROBS = (0.05, 0.5, 0.95)


@dataclass
class StepSummary:
    """What one step of the chains cost and clipped."""

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
    sure: bool = True

    def __post_init__(self) -> None:
        self.messenger = ReentryMessenger(self.run.proposal)
        zeros = torch.zeros(self.size, dtype=torch.float64)
        self.clipping, self.log_path = zeros, zeros.clone()
        self.proposals = torch.zeros(self.size, dtype=torch.long)
        self.capped = torch.zeros(self.size, dtype=torch.bool)
        self.rewards: list[tuple[Tensor, Any]] = []
        self.values: dict[str, Tensor] = {}
        self.paths = PathStore(self.size) if self.sampler.keep_paths else None
        self._carry: Any = None
        self._last_x: Any = None
        self._name = ""
        self._stream = 0
        self._plain_factors = True

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
            self._check(A, last=False)
            return A

        self._plain_factors = first.log_factors is None

        free = all(is_constant(law) for law in first.laws.values())
        if not free and (sampler.tilt_start or first.log_factors is not None):
            with self._calibration():
                drawn = [
                    score(messenger.start(rows), rows)
                    for rows in _pieces(sampler.num_start, sampler.max_batch)
                ]
            A = torch.cat(drawn).unsqueeze(0)
            rule = self._rule()
            if sampler.rule == "given":
                rule = StateRule("chernoff", rule.epsilon, rule.budget, rule.exchange_rate)
            baseline = self._bounded(baselines_from_draws(rule, A, where), last=False)
            parts = Held(first, None)

            def draw(waiting: Tensor, repeats: int) -> tuple[Tensor, Pass]:
                if parts.fresh:
                    parts.fresh = False
                    return score(first, self.size), first
                rows = len(waiting) * repeats
                taken = messenger.start(rows)
                return score(taken, rows), taken

            baseline = baseline.expand(self.size).clone()
            found = self._accept(draw, parts, baseline, where)
            self._account(found, baseline, first, last=False)
            self.start_proposals = float(found.proposals.double().mean())
        elif first.log_factors is not None:
            self.log_path = self.log_path + first.log_factors.to(self.log_path)
        if self.paths is not None:
            self.paths.append(dict(first.values))
        self.rewards += first.rewards
        self.values.update(first.values)
        return first

    def _middle(self, name: str, step: Any, carry: Any, xs: list[Any]) -> None:
        self._name = name
        for k, x in enumerate(xs[:-1]):
            carry = self._step(step, carry, x, k)
            self.on_step(self.size)
        self._carry, self._last_x = carry, xs[-1]

    def _step(self, step: Any, carry: Any, x: Any, k: int) -> Any:
        """One step that is not the last; the carry after it."""
        messenger, n = self.messenger, self.size
        where = messenger.where = f"scan '{self._name}', step {k}"
        first = messenger.step(step, carry, x, n, k)
        parts = Held(first, messenger.kernel(first))

        def again(rows: Tensor, repeats: int) -> Pass:
            if parts.kernel is not None:
                messenger.rows += len(rows) * repeats
                return parts.from_kernel(rows, repeats)
            index = rows.repeat_interleave(repeats)
            return messenger.step(step, reindex(carry, index, size=n), x, len(index), k)

        def score(taken: Pass, size: int) -> Tensor:
            return self._score(taken, taken.carry, x, size, where)

        self._one_step(parts, again, score, carry, x, where, last=False)
        self.rewards += first.rewards
        if self.paths is not None:
            self.paths.append(dict(first.values))
        return first.carry

    def _last(self, start: Pass) -> None:
        """The last step with the rest of the program, whose true log weight is its value."""
        messenger, n, carry = self.messenger, self.size, self._carry
        k = self.messenger.num_steps - 1
        where = messenger.where = f"scan '{self._name}', step {k}"
        kept: list[Kernel | None] = []

        def enter(index: Tensor | None) -> Callable[[Any, Any], Any]:
            def move(step: Any, x: Any) -> Any:
                rows = carry if index is None else reindex(carry, index, size=n)
                moved = step(rows, x)
                messenger.check_last(k, moved)
                if not kept:
                    kept.append(messenger.kernel(messenger._taken(moved)))
                return moved

            return move

        def again(rows: Tensor, repeats: int) -> Pass:
            index = rows.repeat_interleave(repeats)
            kernel = kept[0]
            values = {m: v[index.to(v.device)] for m, v in start.values.items()}
            if kernel is None:
                return messenger.last(values, len(index), enter(index))

            def move(step: Any, x: Any) -> Any:
                value = kernel.draw(rows, repeats)
                messenger.record(kernel.name, value, kernel.law)
                return value

            return messenger.last(values, len(index), move)

        def score(taken: Pass, size: int) -> Tensor:
            return self._score(taken, None, None, size, where)

        first = messenger.last(start.values, n, enter(None))
        self._one_step(Held(first, None), again, score, carry, self._last_x, where, last=True)
        self.rewards += first.rewards
        self.values.update(first.values)
        if self.paths is not None:
            self.paths.append(dict(first.values))
        self.on_step(n)

    def _one_step(
        self,
        parts: Held,
        again: Callable[[Tensor, int], Pass],
        score: Callable[[Pass, int], Tensor],
        carry: Any,
        x: Any,
        where: str,
        *,
        last: bool,
    ) -> None:
        n, first = self.size, parts.first
        A = score(first, n)
        if not last and first.log_factors is not None:
            self._plain_factors = False
        baseline = self._baseline(again, score, carry, x, where, last=last).to(A.device)

        def draw(waiting: Tensor, repeats: int) -> tuple[Tensor, Pass]:
            if parts.fresh:
                parts.fresh = False
                return A, first
            taken = again(waiting, repeats)
            scores = score(taken, len(waiting) * repeats)
            self._check(scores, last=last)
            return scores, taken

        self._check(A, last=last)
        found = self._accept(draw, parts, baseline, where)
        self._account(found, baseline, first, last=last)
        excess = (found.log_weights - baseline).clamp(min=0.0).expm1()
        quantiles = baseline.quantile(baseline.new_tensor(PROBS)).tolist()
        mean = float(found.proposals.double().mean())
        self.summaries.append(StepSummary(mean, float(excess.mean()), quantiles))

    def _accept(self, draw: Any, parts: Held, baseline: Tensor, where: str) -> Accepted:
        sampler = self.sampler
        return accept(
            draw,
            parts.keep,
            baseline,
            generator=self.generator,
            acceptances=max(1, sampler.path_weights),
            max_proposals=sampler.max_proposals,
            min_acceptance=sampler.min_acceptance,
            max_rows=max(self.size, 64),
            where=where,
        )

    def _account(self, found: Accepted, baseline: Tensor, first: Pass, *, last: bool) -> None:
        excess = (found.log_weights - baseline).clamp(min=0.0)
        self.clipping = self.clipping + excess.expm1().to(self.clipping)
        self.proposals = self.proposals + found.proposals.to(self.proposals)
        self.capped = self.capped | found.capped.to(self.capped)
        high = self._high(last)
        self.sure = self.sure and high is not None and bool((baseline >= high).all())
        if self.sampler.path_weights:
            options = self.sampler.path_weights, self.sampler.max_proposals
            added = path_weight_increment(found, baseline, first.log_factors, *options)
            self.log_path = self.log_path + added.to(self.log_path)

    def _baseline(
        self, again: Any, score: Any, carry: Any, x: Any, where: str, *, last: bool
    ) -> Tensor:
        sampler, n = self.sampler, self.size
        if sampler.rule == "given":
            assert callable(sampler.baseline)
            found = self._per_row(sampler.baseline(carry, x), n, f"{where}: the baseline")
            if not bool(found.isfinite().all()):
                raise ValueError(f"{where}: the baseline is not finite at some state")
            return self._bounded(found, last=last)
        rule = self._rule()
        if sampler.log_mgf is not None:
            found = baselines_from_mgf(rule, sampler.log_mgf, carry, x, n, where)
            if not bool((found > -math.inf).all()):
                raise ValueError(f"{where}: log_mgf says that no mass is left at some state")
            return self._bounded(found, last=last)
        rows = torch.arange(n)
        with self._calibration():
            A = torch.cat(
                [
                    score(again(rows, repeats), n * repeats).view(n, repeats)
                    for repeats in _pieces(sampler.num_inner, max(1, sampler.max_batch // n))
                ],
                1,
            )
        self._check(A, last=last)
        return self._bounded(baselines_from_draws(rule, A, where), last=last)

    def _score(self, taken: Pass, carry: Any, x: Any, size: int, where: str) -> Tensor:
        """A of each row: the log factors of the step and, where a carry is given, its value."""
        A = taken.log_factors
        if carry is not None:
            self.value_calls += size
            value = self._per_row(self.sampler.value(carry, x), size, f"{where}: the value")
            if not bool((value < torch.inf).all()):
                what = "NaN" if bool(value.isnan().any()) else "+inf"
                raise ValueError(f"{where}: the value is {what} for some particles")
            A = value if A is None else A + value
        return torch.zeros(size, dtype=torch.float64) if A is None else A

    def _per_row(self, value: Any, size: int, what: str) -> Tensor:
        if not isinstance(value, Tensor):
            raise TypeError(f"{what} is a {type(value).__name__}, not a tensor")
        if value.shape != (size,):
            raise ValueError(
                f"{what} has shape {tuple(value.shape)}, expected ({size},), one per particle"
            )
        return as_double(value.detach())

    def _rule(self) -> StateRule:
        sampler = self.sampler
        parts = self.messenger.num_steps + 1
        return StateRule(
            sampler.rule, sampler.epsilon / parts, sampler.budget, sampler.exchange_rate
        )

    def _high(self, last: bool) -> float | None:
        """A sure bound on A at this step."""
        if self.sampler.value_bound is None:
            return None
        high = self.sampler.value_bound[1]
        if not last:
            return high if self._plain_factors else None
        bound = self.run.proposal.log_bound
        return bound if self._plain_factors and math.isfinite(bound) else None

    def width(self) -> float | None:
        """A sure bound on the clipping of a trajectory; None where there is none."""
        if self.sure:
            return 0.0
        high, last = self._high(False), self._high(True)
        if self.sampler.value_bound is None or high is None or last is None:
            return None
        low = self.sampler.value_bound[0]
        steps = self.messenger.num_steps - 1 + self.sampler.tilt_start
        return steps * _expm1(high - low) + _expm1(last - low)

    def _bounded(self, baseline: Tensor, *, last: bool) -> Tensor:
        if self.sampler.value_bound is None:
            return baseline
        high = self._high(last)
        low = self.sampler.value_bound[0]
        return baseline.clamp(min=low, max=None if high is None else max(low, high))

    def _check(self, A: Tensor, *, last: bool) -> None:
        high = self._high(last)
        if high is not None:
            check_bound(A.reshape(-1), high)

    def _calibration(self) -> Any:
        self._stream += 1
        return seeded(derive_seed(self.run.calibration_seed, self.group, self._stream))


def _pieces(total: int, largest: int) -> list[int]:
    whole, rest = divmod(total, largest)
    return [largest] * whole + [rest] * (rest > 0)


def _expm1(x: float) -> float:
    return math.expm1(x) if x < 700.0 else math.inf
