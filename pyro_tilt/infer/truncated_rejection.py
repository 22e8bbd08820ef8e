# SPDX-License-Identifier: Apache-2.0
"""Rejection sampling that gives up on a slot after several proposals and says what that costs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from pyro_tilt.infer.early_exit import Attempts, EarlyExit, attempt, bound_of
from pyro_tilt.infer.exp_best_of_n import attempts_result, hit_certificate
from pyro_tilt.infer.pooled import refuse_shared_minibatches
from pyro_tilt.infer.proposal import Draws
from pyro_tilt.infer.sampler import Run
from pyro_tilt.infer.soft_best_of_n import warn_of_lost
from pyro_tilt.infer.weighted_samples import WeightedSamples

__all__ = ["TruncatedRejection"]


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
    :raises ValueError: if no bound is known, if a proposal exceeds it, or if the draws of a block
        would share the minibatch of a plate.
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

    def __init__(self, program: Callable[..., Any], *, n: int = 64, **options: Any) -> None:
        super().__init__(program, n=n, **options)

    def _sample(self, run: Run) -> WeightedSamples:
        refuse_shared_minibatches(run)
        bound = bound_of(run.proposal, self.log_bound)
        if not math.isfinite(bound):
            culprits = ", ".join(repr(name) for name in run.proposal.unbounded) or "the reward"
            raise ValueError(
                f"rejection needs a bound on the weight, and none is known for {culprits}. Wrap "
                "the reward as rewards.Bounded(fn, low, high), pass log_bound=, or use ExpBestOfN "
                "or SoftBestOfN, which need none"
            )
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
