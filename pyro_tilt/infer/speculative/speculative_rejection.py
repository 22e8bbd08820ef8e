# SPDX-License-Identifier: Apache-2.0
"""Best-of-n that gives up early on what begins badly."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pyro_tilt.infer.best_of_n import align_for_choice, refuse_factors, warn_of_excluded
from pyro_tilt.infer.certificate import Certificate
from pyro_tilt.infer.pooled import refuse_shared_minibatches
from pyro_tilt.infer.proposal import ProgramProposal
from pyro_tilt.infer.sampler import Run, Sampler, check_count
from pyro_tilt.infer.stepwise.reentry import Pass, ReentryMessenger, Step
from pyro_tilt.infer.weighted_samples import WeightedSamples
from pyro_tilt.ops.importance import as_double
from pyro_tilt.ops.reindex import reindex
from pyro_tilt.poutine.align import Of

__all__ = ["SpeculativeRejection"]

Score = Callable[[Any, Any], Tensor]


class SpeculativeRejection(Sampler):
    r"""Best-of-n whose draws are cut down along the way by rewards of their beginnings.

    Of ``n`` draws of a program with steps, the :math:`\mathrm{round}((1 - \alpha) m)` best of the m
    that are left go on after every check (at least one), and of those that reach the end the one
    with the largest reward is kept (Sun et al. 2024, arXiv 2410.20290). Of equal scores the first
    drawn stay. ``alpha=0`` is :class:`~pyro_tilt.infer.BestOfN`, and so is every ``alpha`` where
    the scores order the draws as the rewards will.

    Certificate: *search*, for the best-of-n law: how often a cut drops what would have been best
    has no bound.

    ``info`` has the rows of single steps that were run (``step_rows``), their share of those of
    best-of-n (``share_of_rows``) and the ``survivors`` of each group; a row that is ``finished``
    runs on, and ``tokens`` counts the others. ``cost.base_draws`` is the rows in whole draws.

    :param program: a Pyro program with one :func:`~pyro_tilt.scan` and no observations; see
        :class:`~pyro_tilt.infer.Sampler` for it and all options not named here.
    :param reward: the reward of whole draws.
    :param of: what it reads, as in :func:`~pyro_tilt.poutine.align`.
    :param score: a function of the carry and of the element of ``xs`` that made it to one number
        per particle, the reward of a beginning, of which only the order counts; may be left out
        where ``alpha`` is 0.
    :param int n: draws to start with.
    :param float alpha: share dropped at a check, in [0, 1).
    :param checks: steps between two checks, or the numbers of steps after which to check; by
        default after one and two thirds of the steps.
    :param finished: a function of the carry to whether a particle is at its end, (N,), for the
        count of tokens alone.
    :raises TypeError: for a beta.
    :raises ValueError: for a program with observations or without steps, an ``alpha`` outside of
        [0, 1), checks that lie outside of the steps, scores that are NaN or of a wrong shape.
    :raises ZeroWeights: if every draw has reward -inf; the draws are attached to the error.

    Example::

        >>> from pyro_tilt.language import TabularLM
        >>> lm = TabularLM.random(3, 6, order=1)
        >>> result = SpeculativeRejection(
        ...     lm.program(), reward=lambda y: y.sum(-1).double(),
        ...     score=lambda carry, t: carry.tokens.sum(-1), n=16, num_samples=100, seed=0,
        ... ).run()
        >>> result.certificate.law, round(result.info["share_of_rows"], 3)  # 16, 8, 4 in thirds
        ('search', 0.583)
    """

    def __init__(
        self,
        program: Callable[..., Any],
        *,
        reward: Any,
        of: Of = None,
        score: Score | None = None,
        n: int = 64,
        alpha: float = 0.5,
        checks: int | Sequence[int] | None = None,
        finished: Callable[[Any], Tensor] | None = None,
        **options: Any,
    ) -> None:
        self.n = check_count("n", n)
        name = type(self).__name__
        super().__init__(align_for_choice(name, program, reward, of, options), **options)
        if not 0.0 <= alpha < 1.0:
            raise ValueError(f"alpha must lie in [0, 1), got {alpha!r}")
        if score is None and alpha > 0.0:
            raise ValueError(f"{name} drops draws by the reward of their beginnings: give score=")
        for option, fn in (("score", score), ("finished", finished)):
            if fn is not None and not callable(fn):
                raise TypeError(f"{option} must be callable, got {type(fn).__name__}")
        if not self.vectorized:
            raise NotImplementedError(f"{name} has no vectorized=False; use BestOfN")
        if self.n > self.max_batch:
            raise ValueError(f"the {self.n} draws do not fit into max_batch={self.max_batch}")
        self.alpha, self.score, self.checks, self.finished = float(alpha), score, checks, finished

    def _sample(self, run: Run) -> WeightedSamples:
        refuse_factors(type(self).__name__, run.proposal)
        refuse_shared_minibatches(run)
        parts, filled = [], 0
        with run.bar(self.num_samples) as bar:
            while filled < self.num_samples:
                count = min(self.num_samples - filled, max(1, self.max_batch // self.n))
                parts.append(_Halving(run.proposal, self, count).run())
                filled += count
                bar.update(count)
        return self._result(run, parts)

    def _result(self, run: Run, parts: list[_Best]) -> WeightedSamples:
        reward = torch.cat([part.reward for part in parts])
        zeros = torch.zeros(len(reward), dtype=torch.float64, device=reward.device)
        step_rows, steps = sum(part.step_rows for part in parts), parts[0].num_steps
        rows = math.ceil(step_rows / steps)
        cost = replace(
            run.cost(rows),
            reward_calls=sum(part.survivors * len(part.reward) for part in parts),
            value_calls=sum(part.score_calls for part in parts),
        )
        result = WeightedSamples(
            kind="iid",
            samples={k: torch.cat([p.values[k] for p in parts]) for k in parts[0].values},
            log_weights=zeros,
            log_normalizer=zeros.new_tensor(math.nan),
            log_normalizer_error=zeros.new_tensor(math.nan),
            certificate=Certificate(
                target=f"best-of-n law (n={self.n})",
                law="search",
                covers="independent draws; of equal rewards the first drawn",
                excludes="draws dropped by the score of their beginning that would have been best",
            ),
            cost=cost,
            stats={"reward": reward, "index": torch.cat([part.index for part in parts])},
            info={
                "n": float(self.n),
                # No draw is more than n times as likely as before.
                "kl_upper_bound": math.log(self.n),
                "alpha": self.alpha,
                "survivors": float(parts[0].survivors),
                "step_rows": float(step_rows),
                "share_of_rows": step_rows / (self.n * steps * len(reward)),
                "tokens": float(sum(part.tokens for part in parts)),
            },
            sampler=type(self).__name__,
            program=self.program,
            args=run.args,
            kwargs=run.kwargs,
        )
        warn_of_excluded(result, f"all survivors of {self.n} draws")
        return result


@dataclass
class _Best:
    """What groups kept, and the rows of steps that this took."""

    values: dict[str, Tensor]
    reward: Tensor
    index: Tensor
    survivors: int
    num_steps: int
    step_rows: int
    tokens: int
    score_calls: int


class _Halving(ReentryMessenger):
    """Runs ``count`` groups of ``n`` rows, which shrink at every check."""

    def __init__(
        self, proposal: ProgramProposal, options: SpeculativeRejection, count: int
    ) -> None:
        super().__init__(proposal)
        self.options, self.count = options, count
        self.places = torch.arange(options.n).expand(count, options.n)
        self.outer: dict[str, Tensor] = {}
        self.step_rows = self.tokens = self.score_calls = 0

    def run(self) -> _Best:
        """The best of every group."""
        self._run(self.count * self.options.n, None, self._steps)
        end = self._taken(None)
        ((reward, _),) = end.rewards
        width = self.places.shape[-1]
        # The first of equal maxima is what argmax returns.
        column = reward.reshape(self.count, width).argmax(-1)
        rows = torch.arange(self.count, device=column.device) * width + column
        values = {**self.outer, **end.values}
        shapes = {name: site.shape for name, site in self.proposal._sites.recorded.items()}
        return _Best(
            values={
                k: v[rows.to(v.device)].reshape(self.count, *shapes[k]) for k, v in values.items()
            },
            reward=reward[rows],
            index=self.places.gather(-1, column.cpu().unsqueeze(-1)).squeeze(-1),
            survivors=width,
            num_steps=self.num_steps,
            step_rows=self.step_rows,
            tokens=self.tokens,
            score_calls=self.score_calls,
        )

    def _steps(self, name: str, step: Step, carry: Any, xs: list[Any]) -> Any:
        self.num_steps = len(xs)
        checks = check_points(self.options.checks, len(xs))
        before = self._taken(carry)
        if before.rewards or before.log_factors is not None:
            raise ValueError("a reward or factor stands before the scan; read it at the end")
        self.outer.update(before.values)
        for k, x in enumerate(xs):
            self.where = f"scan '{name}', step {k}"
            size = self.count * self.places.shape[-1]
            self._account(carry, size, k)
            taken = self.step(step, carry, x, size, k)
            carry = taken.carry
            self.outer.update(taken.values)
            if k + 1 in checks and self.options.alpha:
                carry = self._cut(carry, x, size)
        self._fresh(self.count * self.places.shape[-1])
        return carry

    def _account(self, carry: Any, size: int, k: int) -> None:
        self.step_rows += size
        done = 0
        if self.options.finished is not None and k:
            done = int(self.options.finished(carry).sum())
        self.tokens += size - done

    def _cut(self, carry: Any, x: Any, size: int) -> Any:
        """The carry of the rows that go on."""
        assert self.options.score is not None
        score = self.options.score(carry, x)
        self.score_calls += size
        if not isinstance(score, Tensor) or score.shape != (size,):
            shape = tuple(score.shape) if isinstance(score, Tensor) else type(score).__name__
            raise ValueError(
                f"{self.where}: score must give one number per particle, shape ({size},), got "
                f"{shape}"
            )
        score = as_double(score.detach()).reshape(self.count, -1)
        if bool(score.isnan().any()):
            raise ValueError(f"{self.where}: the score is NaN; it must be a number or -inf")
        width = score.shape[-1]
        keep = max(1, round((1.0 - self.options.alpha) * width))
        # A stable sort keeps the first of equals; in their old order they are still the first.
        columns = score.sort(dim=-1, descending=True, stable=True).indices[:, :keep].sort(-1).values
        columns = columns.cpu()
        self.places = self.places.gather(-1, columns)
        rows = (torch.arange(self.count).unsqueeze(-1) * width + columns).flatten()
        self.outer = {k: v[rows.to(v.device)] for k, v in self.outer.items()}
        for capture in self._captures():
            held = capture.values.items()
            capture.values = {
                k: v if v.shape[:1] != (size,) else v[rows.to(v.device)] for k, v in held
            }
        return reindex(carry, rows, size=size, path="carry")

    def _check_step(self, taken: Pass, index: int) -> None:
        # A cut among equal copies changes nothing, so that any kernel will do.
        for site in taken.values:
            if self._claimed.setdefault(site, index) != index:
                raise RuntimeError(f"multiple sample sites named '{site}' (in two steps)")


def check_points(checks: int | Sequence[int] | None, num_steps: int) -> set[int]:
    """
    The numbers of steps after which to check.

    :param checks: see :class:`SpeculativeRejection`.
    :param num_steps: of the program.
    :raises ValueError: for a number outside of the steps.

    >>> sorted(check_points(None, 6)), sorted(check_points(2, 6)), sorted(check_points([1], 6))
    ([2, 4], [2, 4], [1])
    """
    if checks is None:
        return {k for k in (round(num_steps / 3), round(2 * num_steps / 3)) if 0 < k < num_steps}
    if isinstance(checks, int):
        return set(range(check_count("checks", checks), num_steps, checks))
    points = {check_count("checks", point) for point in checks}
    if any(point >= num_steps for point in points):
        raise ValueError(
            f"checks must lie before the last of the {num_steps} steps, got {sorted(points)}"
        )
    return points
