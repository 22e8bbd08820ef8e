# SPDX-License-Identifier: Apache-2.0
"""Rejection sampling that gives up on a slot after several proposals and says what that costs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pyro_tilt.infer.best_of_n import refuse_value
from pyro_tilt.infer.certificate import Certificate
from pyro_tilt.infer.cost import Cost
from pyro_tilt.infer.early_exit import (
    Attempts,
    EarlyExit,
    attempt,
    check_confidence,
    exponential_noise,
    miss_upper,
)
from pyro_tilt.infer.exp_best_of_n import attempts_result, hit_certificate
from pyro_tilt.infer.pooled import check_bound, finite_bound, refuse_shared_minibatches
from pyro_tilt.infer.proposal import Draws
from pyro_tilt.infer.sampler import Run, check_count
from pyro_tilt.infer.selection.engine import EXACT_STATED, VALUES_BIASED, StepSelector
from pyro_tilt.infer.selection.groups import Choose, Selected
from pyro_tilt.infer.selection.messenger import Value
from pyro_tilt.infer.soft_best_of_n import warn_of_lost
from pyro_tilt.infer.weighted_samples import WeightedSamples

__all__ = ["TruncatedRejection"]

INSTEAD = "ExpBestOfN or SoftBestOfN"


class TruncatedRejection(EarlyExit):
    r"""Rejection from the program with at most ``n`` proposals a draw, then a fresh draw of it.

    A proposal is accepted with probability :math:`w e^{-B}`. With :math:`a = E[w] e^{-B}`

    .. math:: P_n = p_n\, \text{target} + (1 - p_n)\, \text{program}, \qquad p_n = 1 - (1 - a)^n.

    The distance to the target is :math:`1 - p_n` times that of the program.

    Certificate: *bounded* in total variation by the upper confidence bound (Clopper and Pearson
    1934) of the probability of giving up; ``stats["hit"]`` tells the exact draws. Where nothing was
    accepted, *consistent* in ``n``. The evidence is the mean weight of the first proposal of each
    draw, unbiased.

    :param program: see :class:`~pyro_tilt.infer.Sampler`, as are all options not named here.
    :param int n: proposals before the fallback.
    :param float log_bound: B, in place of the one that the program knows.
    :param float confidence: of the certificate.
    :param int block: steps of a :func:`~pyro_tilt.scan` after which to accept one of n copies by
        ``value``, or a fresh one after n rejections; None does so once, with whole draws. By blocks
        all n + 1 copies are drawn together and there is no evidence; with ``exact_values`` the
        bound is that of the share of draws with any fallback, otherwise the draws are a *search*.
    :raises ValueError: if no bound is known, if a proposal exceeds it, for values without blocks,
        or if the draws of a block would share the minibatch of a plate.
    :raises ZeroWeights: if every draw has weight zero; the draws are attached to the error.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> from pyro_tilt import rewards
        >>> def program():
        ...     return pyro.sample("x", dist.Bernoulli(0.5))
        >>> reward = rewards.Bounded(lambda x: x, low=0.0, high=1.0)
        >>> result = TruncatedRejection(
        ...     program, reward=reward, beta=2.1972, n=1, num_samples=40_000, seed=0
        ... ).run()
        >>> round(result.expectation("x").item(), 2)  # 5/9 of .9 and 4/9 of .5
        0.72
        >>> round(result.info["hit_rate"], 2), result.cost.base_draws > 50_000
        (0.55, True)
    """

    def __new__(cls, *args: Any, block: int | None = None, **options: Any) -> Any:
        if block is None:
            return super().__new__(cls)
        return TruncatedBlockRejection(*args, block=block, **options)

    def __init__(
        self, program: Callable[..., Any], *, n: int = 64, block: None = None, **options: Any
    ) -> None:
        refuse_value(type(self).__name__, options)
        super().__init__(program, n=n, **options)

    def _sample(self, run: Run) -> WeightedSamples:
        refuse_shared_minibatches(run)
        bound = finite_bound(run.proposal, self.log_bound, instead=INSTEAD)
        found = self._with_fresh(run, attempt(run, self.num_samples, self.n, self.block, bound))
        covers = f"independent draws; after {self.n} rejections a fresh draw of the program"
        certificate = hit_certificate(found, bound, self.confidence, covers)
        result = attempts_result(self, run, found, bound, certificate)
        warn_of_lost(result, f"fallbacks after {self.n} rejections")
        return result

    def _with_fresh(self, run: Run, found: Attempts) -> Attempts:
        """A fresh draw of the program in every slot that was given up."""
        missed = (~found.hit).nonzero().squeeze(-1)
        if not len(missed):
            return found
        parts = [run.proposal.draw(len(rows)) for rows in missed.split(self.block)]
        place = torch.arange(len(found.hit))
        place[missed] = len(found.hit) + torch.arange(len(missed))
        draws = Draws.cat([found.draws, *parts])
        return replace(
            found,
            draws=draws.index(place.to(draws.log_weights.device)),
            proposals=found.proposals + (~found.hit).long(),
            drawn=found.drawn + len(missed),
        )


class TruncatedBlockRejection(StepSelector):
    r"""
    :class:`TruncatedRejection` after every block of steps.

    Of ``n`` copies of a block the first is kept that is accepted with probability
    :math:`f e^{V - B}`, with :math:`f` the factors of the block itself and :math:`V` the value of
    the state after it, which the reward replaces at the end. After ``n`` rejections a copy that was
    drawn for the purpose stands in. All ``n + 1`` copies are drawn together, so that a hit saves
    nothing here; there is no evidence.

    Certificate: with exact values a draw without a fallback follows the target at every block, so
    that the distance to it is *bounded* by the upper confidence bound of the share of draws with
    any fallback (a coupling, derived here). Other values leave a bias however large ``n`` is: a
    *search*.

    :param program: a program with one :func:`~pyro_tilt.scan`.
    :param value: log soft value, a function of the carry and of the element of ``xs`` that made
        it; None takes the twists that the program states.
    :param n: copies of a block before the fallback.
    :param block: steps in a block; the last one may be shorter.
    :param exact_values: whether the values are the exact log soft values.
    :param log_bound: B, above the weight of every block; by default the bound that the program
        knows of its whole weight, which exact values of a reward alone do not exceed.
    :param confidence: of the certificate.
    :raises ValueError: if no bound is known or a block exceeds it.
    """

    def __init__(
        self,
        program: Callable[..., Any],
        *,
        value: Value | None = None,
        n: int = 64,
        block: int = 1,
        exact_values: bool = False,
        log_bound: float | None = None,
        confidence: float = 0.95,
        **options: Any,
    ) -> None:
        self.n = check_count("n", n)
        self.confidence = check_confidence(confidence)
        self.log_bound = log_bound
        self.exact_values = bool(exact_values)
        steps = check_count("block", block)
        super().__init__(program, width=self.n + 1, steps=steps, value=value, **options)

    def _choose(self, run: Run) -> Choose:
        bound = finite_bound(run.proposal, self.log_bound, instead=INSTEAD)
        generator = torch.Generator().manual_seed(run.accept_seed)

        def choose(log_weights: Tensor) -> Tensor:
            check_bound(log_weights, bound)
            tried = log_weights[:, : self.n]
            noise = exponential_noise(tuple(tried.shape), generator)
            hit = tried + noise.to(tried) > bound
            return torch.where(hit.any(-1), hit.int().argmax(-1), self.n)

        return choose

    @property
    def _target(self) -> str:
        return "joint tilt"

    def _result(self, run: Run, selected: Selected, cost: Cost, target: str) -> WeightedSamples:
        fallbacks = (selected.columns == self.n).sum(-1)
        return self._draws(
            run,
            selected,
            cost,
            certificate=self._certificate(fallbacks > 0, target),
            stats={"hit": fallbacks == 0, "fallbacks": fallbacks, "lost": selected.lost},
            info={
                "n": float(self.n),
                "hit_rate": float((fallbacks == 0).double().mean()),
                # No outcome of a block is more than n + 1 times as likely as before.
                "kl_upper_bound": selected.columns.shape[-1] * math.log(self.n + 1),
                "log_bound": finite_bound(run.proposal, self.log_bound, instead=INSTEAD),
            },
            sampler="TruncatedRejection",
        )

    def _certificate(self, missed: Tensor, target: str) -> Certificate:
        covers = (
            f"independent draws; after {self.n} rejections of a block a fresh draw of it "
            "(stats['fallbacks'])"
        )
        if not self.exact_values:
            return Certificate(target=target, law="search", covers=covers, excludes=VALUES_BIASED)
        excludes = EXACT_STATED
        upper = miss_upper(int(missed.sum()), len(missed), self.confidence)
        if upper >= 1.0:
            return Certificate(
                target=target, law="consistent", budget="n", covers=covers, excludes=excludes
            )
        return Certificate(
            target=target,
            law="bounded",
            total_variation=upper,
            confidence=self.confidence,
            covers=f"{covers}; the bound was checked on every block",
            excludes=excludes,
        )

    def _warn(self, result: WeightedSamples) -> None:
        warn_of_lost(result, f"fallbacks after {self.n} rejections")
