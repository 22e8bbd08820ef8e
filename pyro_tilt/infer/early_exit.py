# SPDX-License-Identifier: Apache-2.0
"""Slots that propose until a proposal is accepted against a bound, a given number of times."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from scipy import stats
from torch import Tensor

from pyro_tilt.infer.pooled import BASE_DRAWS_KEPT, WeightSums, check_bound
from pyro_tilt.infer.proposal import Draws, ProgramProposal
from pyro_tilt.infer.sampler import Run, Sampler, check_count
from pyro_tilt.infer.weighted_samples import BaseDraws

__all__ = [
    "Attempts",
    "EarlyExit",
    "attempt",
    "check_confidence",
    "exponential_noise",
    "miss_upper",
]

# Rows proposed for slots that turn out to be filled, as a share of those that are needed.
_WASTE = 0.25
# Rows of a round that are no waste worth speaking of, as a share of all that were drawn.
_TAIL = 0.02


class EarlyExit(Sampler):
    """
    What the samplers of such slots share.

    :param program: see :class:`~pyro_tilt.infer.Sampler`, as are all options not named here.
    :param int n: proposals of a slot.
    :param float log_bound: bound on the log weights, in place of the one the program knows.
    :param float confidence: of the certificate.
    :raises ValueError: for a confidence outside (0, 1).
    """

    def __init__(
        self,
        program: Callable[..., Any],
        *,
        n: int,
        log_bound: float | None = None,
        confidence: float = 0.95,
        **options: Any,
    ) -> None:
        self.n = check_count("n", n)
        self.confidence = check_confidence(confidence)
        self.log_bound = log_bound
        super().__init__(program, **options)


@dataclass
class Attempts:
    """
    What the slots hold at the end.

    :ivar draws: one row per slot.
    :ivar hit: whether it was accepted against the bound, (N,); nowhere without one.
    :ivar proposals: proposals that the slot looked at, (N,).
    :ivar drawn: rows drawn in all.
    :ivar base: rewards of base draws.
    :ivar log_normalizer: log evidence and its standard error.
    """

    draws: Draws
    hit: Tensor
    proposals: Tensor
    drawn: int
    base: BaseDraws
    log_normalizer: tuple[float, float]

    @property
    def misses(self) -> int:
        """Slots that were not accepted."""
        return int((~self.hit).sum())


def attempt(run: Run, num: int, n: int, block: int, bound: float) -> Attempts:
    r"""
    Up to ``n`` proposals for each slot, of which the first whose noisy score exceeds ``bound`` is
    kept, otherwise the one with the largest.

    The noisy score of a proposal is its log weight A plus exponential noise, so that it exceeds
    the bound with probability :math:`e^{A - B}`: kept so, a draw follows the tilt exactly.
    With an infinite bound all ``n`` are looked at.

    :param run: gives the proposal, the stream of the noise and the progress bar.
    :param num: slots.
    :param n: proposals of a slot.
    :param block: most rows to draw at once.
    :param bound: B, or ``inf``.
    """
    proposer = _Proposer(run.proposal, bound, torch.Generator().manual_seed(run.accept_seed))
    parts, hits, counts, filled = [], [], [], 0
    with run.bar(num) as bar:
        while filled < num:
            slots = _Slots(min(num - filled, max(1, block // _first_width(n, bound))))
            slots.fill(proposer, n, block)
            parts.append(slots.held())
            hits.append(slots.hit)
            counts.append(slots.proposals)
            filled += len(slots.hit)
            bar.update(len(slots.hit))
    return Attempts(
        draws=Draws.cat(parts),
        hit=torch.cat(hits),
        proposals=torch.cat(counts),
        drawn=proposer.drawn,
        base=proposer.base_draws(),
        log_normalizer=proposer.evidence(),
    )


def check_confidence(confidence: float) -> float:
    """The confidence; ``ValueError`` unless it lies strictly between 0 and 1."""
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must lie in (0, 1), got {confidence!r}")
    return float(confidence)


def miss_upper(misses: int, num: int, confidence: float) -> float:
    """
    The upper confidence bound of a probability that showed ``misses`` times in ``num`` (Clopper
    and Pearson 1934).

    >>> round(miss_upper(0, 100, 0.95), 4), miss_upper(5, 5, 0.95)
    (0.0295, 1.0)
    """
    if misses >= num:
        return 1.0
    return float(stats.beta.ppf(confidence, misses + 1, num - misses))


def exponential_noise(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Standard exponential noise in double precision."""
    return torch.empty(shape, dtype=torch.float64).exponential_(generator=generator)


def _first_width(n: int, bound: float) -> int:
    return 1 if math.isfinite(bound) else n


@dataclass
class _Proposer:
    """Draws proposals with their noisy scores, and keeps account of them."""

    proposal: ProgramProposal
    bound: float
    generator: torch.Generator
    drawn: int = 0
    hits: int = 0
    firsts: WeightSums = field(default_factory=WeightSums)
    all: WeightSums = field(default_factory=WeightSums)
    kept: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def draw(self, slots: int, width: int, *, first: bool) -> tuple[Draws, Tensor]:
        batch = self.proposal.draw(slots * width)
        check_bound(batch.log_weights, self.bound)
        self.drawn += len(batch)
        self.all.add(batch.log_weights)
        # Whether a slot goes on depends on its first weights, so that later ones are no fair
        # sample; without a bound every slot looks at all of them.
        if first or not math.isfinite(self.bound):
            self.firsts.add(batch.log_weights)
        if sum(len(reward) for reward, _ in self.kept) < BASE_DRAWS_KEPT:
            self.kept.append((batch.reward.clone(), batch.log_factors.clone()))
        noise = exponential_noise((slots, width), self.generator)
        weights = batch.log_weights.reshape(slots, width)
        return batch, weights + noise.to(weights)

    def width(self, waiting: int, left: int, block: int) -> int:
        """Proposals for each waiting slot: the more, the fewer of them are accepted."""
        most = min(left, max(1, block // waiting))
        if not math.isfinite(self.bound):
            return most
        rate = (self.hits + 1) / (self.drawn + 1)
        # The last slots would take many rounds of a few rows, next to which some waste is nothing.
        wide = max(_WASTE / rate, _TAIL * self.drawn / waiting)
        return min(most, max(1, int(wide)))

    def evidence(self) -> tuple[float, float]:
        log_z, error = self.firsts.log_mean()
        if math.isfinite(log_z):
            return log_z, error
        return self.all.log_mean()

    def base_draws(self) -> BaseDraws:
        return BaseDraws(
            reward=torch.cat([reward for reward, _ in self.kept])[:BASE_DRAWS_KEPT],
            log_factors=torch.cat([factors for _, factors in self.kept])[:BASE_DRAWS_KEPT],
        )


class _Slots:
    """Slots that are filled together."""

    def __init__(self, count: int) -> None:
        self.hit = torch.zeros(count, dtype=torch.bool)
        self.proposals = torch.zeros(count, dtype=torch.long)
        self._score = torch.full((count,), -math.inf, dtype=torch.float64)
        self._held: Draws | None = None

    def held(self) -> Draws:
        assert self._held is not None
        return self._held

    def fill(self, proposer: _Proposer, n: int, block: int) -> None:
        done, waiting = 0, torch.arange(len(self.hit))
        while done < n and len(waiting):
            first = done == 0
            width = proposer.width(len(waiting), n - done, block)
            if first and math.isfinite(proposer.bound):
                width = 1
            batch, score = proposer.draw(len(waiting), width, first=first)
            score = score.to(self._score)
            hit = score > proposer.bound
            any_hit = hit.any(-1)
            # The first True, and otherwise the largest score; the first of equal ones.
            column = torch.where(any_hit, hit.int().argmax(-1), score.argmax(-1))
            self._put(waiting, batch, score, column, any_hit, first=first)
            self.proposals[waiting] += torch.where(any_hit, column + 1, width)
            self.hit[waiting] = any_hit
            proposer.hits += int(any_hit.sum())
            waiting = waiting[~any_hit]
            done += width

    def _put(
        self,
        waiting: Tensor,
        batch: Draws,
        score: Tensor,
        column: Tensor,
        any_hit: Tensor,
        *,
        first: bool,
    ) -> None:
        """Keeps the chosen proposal of each waiting slot that hit or beats what it holds."""
        width = score.shape[-1]
        rows = torch.arange(len(waiting)) * width + column
        new = score.gather(-1, column.unsqueeze(-1)).squeeze(-1)
        if first:
            self._held = batch.index(rows.to(batch.log_weights.device))
            self._score[waiting] = new
            return
        better = any_hit | (new > self._score[waiting])
        place = torch.arange(len(self.hit))
        place[waiting[better]] = len(self.hit) + rows[better]
        held = self.held()
        self._held = Draws.cat([held, batch]).index(place.to(batch.log_weights.device))
        self._score[waiting[better]] = new[better]
