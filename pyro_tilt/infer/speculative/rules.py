# SPDX-License-Identifier: Apache-2.0
"""Rules that keep a draw of a draft, or ask the target for another one."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, Protocol

import torch
from torch import Tensor

from pyro_tilt.infer.pooled import check_bound
from pyro_tilt.infer.speculative.candidates import Candidates, Source, draw_column
from pyro_tilt.ops.importance import log_mean_exp

__all__ = ["Choice", "ExactRule", "RewardRule", "Rule", "ThresholdRule", "check_threshold"]


def check_threshold(threshold: Any) -> float:
    """
    A threshold as a number, which may be infinite.

    :param threshold: what was given.
    :raises ValueError: for NaN and what is no number, naming the argument.
    """
    if isinstance(threshold, Tensor) and threshold.numel() == 1:
        threshold = threshold.item()
    if not isinstance(threshold, Real) or math.isnan(threshold):
        raise ValueError(f"threshold must be a number, -math.inf for none, got {threshold!r}")
    return float(threshold)


@dataclass
class Choice:
    """
    What a rule kept, one row per chain.

    :ivar kept: the rows.
    :ivar accepted: whether they come from the draft, (C,).
    :ivar capped: whether the fallback gave up on its condition, (C,).
    :ivar log_means: log mean weights of draws of the draft, unbiased for the evidence; None for a
        rule without weights.
    :ivar drafts: reward and log ratio of the draft's first draws, which no choice had part in, (M,)
        each; None where they are not scored.
    """

    kept: Candidates
    accepted: Tensor
    capped: Tensor
    log_means: Tensor | None
    drafts: tuple[Tensor, Tensor] | None = None


class Rule(Protocol):
    """Chooses for a number of chains; ``width`` is the rows of a chain that it asks for at once."""

    width: int

    def __call__(self, source: Source, chains: Tensor, generator: torch.Generator) -> Choice:
        """
        One row for each chain.

        :param source: gives the draws.
        :param chains: which chains, (C,).
        :param generator: of the choices.
        """
        ...


@dataclass
class ThresholdRule:
    r"""
    Softmax of :math:`\beta \tilde r` among draws of the draft, kept from the threshold on.

    :ivar beta: inverse temperature.
    :ivar width: draws of each model.
    :ivar threshold: u.
    :ivar debiased: whether the fallback is conditioned on :math:`\tilde r < u`.
    :ivar max_tries: choices among draws of the target after which that condition is given up.
    """

    beta: float
    width: int
    threshold: float
    debiased: bool
    max_tries: int

    def __call__(self, source: Source, chains: Tensor, generator: torch.Generator) -> Choice:
        """See :class:`Rule`."""
        drafts = source.draft(chains, self.width)
        weights = drafts.log_weights(self.beta).reshape(len(chains), self.width)
        kept = _chosen(drafts, weights, generator)
        accepted = (kept.tilted_reward(self.beta) >= self.threshold).cpu()
        capped = torch.zeros_like(accepted)
        waiting = _where(~accepted)
        for tries in range(self.max_tries):
            if not len(waiting):
                break
            other = _fallback(source, chains[waiting], self, generator)
            done = torch.ones_like(waiting, dtype=torch.bool)
            if self.debiased:
                done = (other.tilted_reward(self.beta) < self.threshold).cpu()
            if tries + 1 == self.max_tries:
                capped[waiting[~done]] = True
                done = torch.ones_like(done)
            kept.put(waiting[done], other.take(_where(done)))
            waiting = waiting[~done]
        return Choice(kept, accepted, capped, log_mean_exp(weights), _scored(drafts))


@dataclass
class ExactRule:
    r"""
    Draws of the draft accepted with probability :math:`\tilde w / \sup \tilde w`, and a softmax
    among draws of the target where all of them fail.

    :ivar beta: inverse temperature.
    :ivar width: most draws of each model.
    :ivar log_bound: :math:`\log \sup \tilde w`.
    """

    beta: float
    width: int
    log_bound: float
    debiased: bool = field(default=False, init=False)

    def __call__(self, source: Source, chains: Tensor, generator: torch.Generator) -> Choice:
        """See :class:`Rule`."""
        kept: Candidates | None = None
        accepted = torch.zeros(len(chains), dtype=torch.bool)
        log_means, scored = None, None
        waiting, looked, width = torch.arange(len(chains)), 0, 1
        while len(waiting) and looked < self.width:
            width = min(width, self.width - looked)
            drafts = source.draft(chains[waiting], width)
            weights = drafts.log_weights(self.beta)
            check_bound(weights, self.log_bound)
            weights = weights.reshape(len(waiting), width)
            log_means = log_mean_exp(weights) if log_means is None else log_means
            first, hit = self._first(weights, generator)
            rows = torch.arange(len(waiting)) * width + first
            found = drafts.take(rows)
            if kept is None:
                kept, scored = found, _scored(drafts)
            else:
                kept.put(waiting[hit], found.take(_where(hit)))
            accepted[waiting[hit]] = True
            waiting, looked, width = waiting[~hit], looked + width, 2 * width
        assert kept is not None
        if len(waiting):
            kept.put(waiting, _fallback(source, chains[waiting], self, generator))
        return Choice(kept, accepted, torch.zeros_like(accepted), log_means, scored)

    def _first(self, weights: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The first column accepted in each row, and whether there is one."""
        uniform = torch.rand(weights.shape, dtype=torch.float64, generator=generator)
        hits = (uniform.log() < weights.cpu() - self.log_bound).long()
        return hits.argmax(-1), hits.any(-1)


@dataclass
class RewardRule:
    """
    One draw of the draft, kept if its reward reaches the threshold.

    :ivar threshold: of the reward.
    :ivar scored: whether the target scores the draws of the draft, for the record alone.
    :ivar width: 1.
    """

    threshold: float
    scored: bool = False
    width: int = field(default=1, init=False)

    def __call__(self, source: Source, chains: Tensor, generator: torch.Generator) -> Choice:
        """See :class:`Rule`."""
        kept = source.draft(chains, 1, scored=self.scored)
        drafts = _scored(kept)
        accepted = kept.reward.cpu().double() >= self.threshold
        waiting = _where(~accepted)
        if len(waiting):
            kept.put(waiting, source.target(chains[waiting], 1, scored=False))
        return Choice(kept, accepted, torch.zeros_like(accepted), None, drafts)


def _fallback(
    source: Source, chains: Tensor, rule: ThresholdRule | ExactRule, generator: torch.Generator
) -> Candidates:
    """A soft best-of-n choice among draws of the target."""
    drawn = source.target(chains, rule.width, scored=rule.debiased)
    # The ratio judges the choice and takes no part in it.
    plain = Candidates(drawn.reward, None, None).log_weights(rule.beta)
    return _chosen(drawn, plain.reshape(len(chains), rule.width), generator)


def _scored(drafts: Candidates) -> tuple[Tensor, Tensor] | None:
    if drafts.log_ratio is None:
        return None
    return drafts.reward.clone(), drafts.log_ratio.clone()


def _chosen(drawn: Candidates, weights: Tensor, generator: torch.Generator) -> Candidates:
    if not float(weights.amax()) < math.inf:
        raise ValueError(
            "a draw has an infinite or NaN weight: the target gives mass to what the draft excludes"
        )
    column = draw_column(weights, generator)
    rows = torch.arange(len(column), device=column.device) * weights.shape[-1] + column
    return drawn.take(rows)


def _where(mask: Tensor) -> Tensor:
    return mask.nonzero().squeeze(-1)
