# SPDX-License-Identifier: Apache-2.0
"""The draw with the largest noisy weight among several, which is exact once it is accepted."""

from __future__ import annotations

import math
from collections.abc import Callable
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
    exponential_noise,
    miss_upper,
)
from pyro_tilt.infer.pooled import bound_of, refuse_shared_minibatches
from pyro_tilt.infer.sampler import Run, check_count
from pyro_tilt.infer.selection.engine import EXACT_STATED, VALUES_BIASED, StepSelector
from pyro_tilt.infer.selection.groups import Choose, Selected
from pyro_tilt.infer.soft_best_of_n import warn_of_lost
from pyro_tilt.infer.weighted_samples import WeightedSamples

__all__ = ["ExpBestOfN"]


class ExpBestOfN(EarlyExit):
    r"""Of ``n`` independent draws the one with the largest :math:`\log w_i + E_i`, :math:`E_i`
    standard exponential noise.

    With a bound B on the log weights a draw whose noisy weight exceeds it is a hit: that happens
    with probability :math:`w e^{-B}`, as acceptance in rejection sampling, and a draw that hit
    follows the target exactly. Its slot looks no further. With :math:`a = E[w] e^{-B}`

    .. math:: P_n = p_n\, \text{target} + (1 - p_n)\, \text{miss}, \qquad p_n = 1 - (1 - a)^n,

    at an expected cost of :math:`p_n / a` draws (Liu, Wan and Gündüz 2026, arXiv 2609.21899; the
    law of a miss is derived here, see :func:`~pyro_tilt.language.laws.exp_best_of_n`). Without a
    bound all ``n`` are drawn, and the law is the same.

    Certificate: with a bound *bounded* in total variation by the upper confidence bound (Clopper
    and Pearson 1934) of the probability of a miss, which the slots show; ``stats["hit"]`` tells
    the exact draws. Without a bound, or where nothing hit, *consistent* in ``n``. The evidence is
    the mean weight of the first proposal of each slot (of all without a bound), unbiased.

    :param program: see :class:`~pyro_tilt.infer.Sampler`, as are all options not named here.
    :param int n: draws to choose from.
    :param float log_bound: B, in place of the one that the program knows.
    :param float confidence: of the certificate.
    :param int block: steps of a :func:`~pyro_tilt.scan` after which to choose among n copies by
        ``value`` plus noise; None chooses among whole draws. Then there is no early exit, no
        evidence, and a *search* unless ``exact_values``.
    :raises ValueError: if a proposal exceeds the bound, for values without blocks, or if the draws
        of a block would share the minibatch of a plate.
    :raises ZeroWeights: if every draw has weight zero; the draws are attached to the error.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> from pyro_tilt import rewards
        >>> def program():
        ...     return pyro.sample("x", dist.Normal(0., 1.))
        >>> reward = rewards.Bounded(lambda x: -(x - 1.0).abs(), low=-float("inf"), high=0.0)
        >>> result = ExpBestOfN(program, reward=reward, n=32, num_samples=1000, seed=0).run()
        >>> result.certificate.law, bool(result.cost.base_draws < 4000)
        ('bounded', True)
    """

    def __new__(cls, *args: Any, block: int | None = None, **options: Any) -> Any:
        if block is None:
            return super().__new__(cls)
        return ExpBlockBestOfN(*args, block=block, **options)

    def __init__(
        self,
        program: Callable[..., Any],
        *,
        n: int = 16,
        block: None = None,
        **options: Any,
    ) -> None:
        refuse_value(type(self).__name__, options)
        super().__init__(program, n=n, **options)

    def _sample(self, run: Run) -> WeightedSamples:
        refuse_shared_minibatches(run)
        bound = bound_of(run.proposal, self.log_bound)
        found = attempt(run, self.num_samples, self.n, self.block, bound)
        law = f"draws of the exp best-of-n law (n={self.n})"
        result = attempts_result(
            self, run, found, bound, self._certificate(found, bound, f"independent {law}")
        )
        warn_of_lost(result, f"all {self.n} draws to choose from")
        return result

    def _certificate(self, found: Attempts, bound: float, covers: str) -> Certificate:
        return hit_certificate(found, bound, self.confidence, covers)


def attempts_result(
    sampler: EarlyExit, run: Run, found: Attempts, bound: float, certificate: Certificate
) -> WeightedSamples:
    """The draws of slots that propose until they hit."""
    weights = found.draws.log_weights
    log_z, error = found.log_normalizer
    stats = {
        "hit": found.hit,
        "proposals": found.proposals,
        "lost": weights == -math.inf,
    }
    if run.proposal.beta is not None:
        stats["reward"] = found.draws.reward
    total = int(found.proposals.sum())
    return WeightedSamples(
        kind="iid",
        samples=found.draws.samples,
        log_weights=torch.full_like(weights, log_z),
        log_normalizer=weights.new_tensor(log_z),
        log_normalizer_error=weights.new_tensor(error),
        certificate=certificate,
        cost=run.cost(found.drawn),
        stats=stats,
        beta=run.proposal.beta,
        info={
            "n": float(sampler.n),
            "hit_rate": float(found.hit.double().mean()),
            "total_proposals": float(total),
            "wasted": float(found.drawn - total),
            **({"log_bound": bound} if math.isfinite(bound) else {}),
        },
        base=found.base,
        sampler=type(sampler).__name__,
        program=sampler.program,
        args=run.args,
        kwargs=run.kwargs,
    )


def hit_certificate(found: Attempts, bound: float, confidence: float, covers: str) -> Certificate:
    """What the share of hits proves: their law is exact, that of a miss is within one of it."""
    upper = miss_upper(found.misses, len(found.hit), confidence)
    if not math.isfinite(bound) or upper >= 1.0:
        return Certificate(target="joint tilt", law="consistent", budget="n", covers=covers)
    return Certificate(
        target="joint tilt",
        law="bounded",
        total_variation=upper,
        confidence=confidence,
        covers=f"{covers}; the probability of a miss, whose draws alone are off the target "
        "(stats['hit']); the bound was checked on every proposal",
    )


class ExpBlockBestOfN(StepSelector):
    """:class:`ExpBestOfN` after every block of steps; see there.

    :param value: log soft value, a function of the carry and of the element of ``xs`` that made
        it; None takes the twists that the program states.
    :param n: copies of a block.
    :param block: steps in a block; the last one may be shorter.
    :param exact_values: whether the values are the exact log soft values.
    """

    def __init__(
        self,
        program: Callable[..., Any],
        *,
        value: Callable[[Any, Any], Tensor] | None = None,
        n: int = 16,
        block: int = 1,
        exact_values: bool = False,
        **options: Any,
    ) -> None:
        self.n = check_count("n", n)
        steps = check_count("block", block)
        super().__init__(program, width=self.n, steps=steps, value=value, **options)
        self.exact_values = bool(exact_values)

    def _choose(self, run: Run) -> Choose:
        generator = torch.Generator().manual_seed(run.accept_seed)

        def choose(log_weights: Tensor) -> Tensor:
            noise = exponential_noise(tuple(log_weights.shape), generator)
            return (log_weights + noise.to(log_weights)).argmax(-1)

        return choose

    @property
    def _target(self) -> str:
        return "joint tilt"

    def _result(self, run: Run, selected: Selected, cost: Cost, target: str) -> WeightedSamples:
        lost = selected.log_evidence == -math.inf
        exact = self.exact_values
        return self._draws(
            run,
            selected,
            cost,
            certificate=Certificate(
                target=target,
                law="consistent" if exact else "search",
                budget="n" if exact else None,
                covers="independent draws, chosen by noisy values after every block",
                excludes=EXACT_STATED if exact else VALUES_BIASED,
            ),
            stats={"lost": lost},
            info={
                "n": float(self.n),
                "lost": float(lost.double().mean()),
                "kl_upper_bound": selected.kl_upper_bound(self.n),
            },
            sampler="ExpBestOfN",
        )

    def _warn(self, result: WeightedSamples) -> None:
        warn_of_lost(result, f"all {self.n} copies of a block")
