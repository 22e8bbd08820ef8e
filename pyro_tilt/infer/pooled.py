# SPDX-License-Identifier: Apache-2.0
"""What the samplers on the pooled proposal engine share: acceptance, evidence, base draws.

A pooled run is one stream of proposals, cut at the last acceptance that was needed. Its evidence
comes from every proposal but that last one: given where the stream stops, the others are
exchangeable, so that the mean weight of the first N - 1 is unbiased for Z, while the mean of all
N is not (Haldane 1945). Two exceptions: where slots may be capped, the stream can stop at a
rejection and a bias of order one over the number of draws is left; and where not one of the
N - 1 has a positive weight, which takes a run for a single draw, the last one counts as well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyro_tilt.infer.certificate import Certificate
from pyro_tilt.infer.errors import AcceptanceTooLow, SamplingError, ZeroWeights
from pyro_tilt.infer.proposal import Draws, ProgramProposal
from pyro_tilt.infer.sampler import Run, Sampler
from pyro_tilt.infer.weighted_samples import BaseDraws, WeightedSamples
from pyro_tilt.ops.pool import PoolResult

__all__ = [
    "StreamMoments",
    "bound_of",
    "check_bound",
    "finite_bound",
    "gave_up",
    "iid_result",
    "refuse_shared_minibatches",
]

BASE_DRAWS_KEPT = 10_000
# Rounding in the log weight of a draw that attains the bound; anything larger is a wrong bound.
_BOUND_SLACK = 1e-4


class StreamMoments:
    """Sums over the proposals of a stream, and the first of them for pictures.

    :param float baseline: acceptance has probability :math:`\\min(1, w e^{-b})`.
    :param float min_acceptance: the stream is given up once this many proposals, as its inverse,
        were drawn and the mean acceptance probability is still below it.
    """

    def __init__(self, baseline: float, *, min_acceptance: float) -> None:
        self.baseline = baseline
        self.min_acceptance = min_acceptance
        self.count = 0
        self.accept = 0.0
        self._sums = WeightSums()
        # The last proposal stays apart: subtracting it again could cancel every digit.
        self._last: Tensor | None = None
        self._kept: list[tuple[Tensor, Tensor]] = []
        self._kept_rows = 0

    def observe(self, batch: Draws, count: int) -> bool:
        """Adds the first ``count`` rows of a block; whether the stream is to be given up."""
        rows = batch.log_weights[:count]
        self.count += count
        self.accept += float((rows - self.baseline).clamp(max=0.0).exp().sum())
        if count:
            seen = rows if self._last is None else torch.cat([self._last, rows])
            self._sums.add(seen[:-1])
            self._last = seen[-1:].clone()
        self._keep(batch, count)
        return self.hopeless

    def evidence(self, *, complete: bool) -> tuple[float, float]:
        """The log of the mean weight and its standard error.

        :param complete: whether the stream ended because every slot was filled, so that its last
            proposal does not count; a stream cut at a given number of proposals counts them all.
        """
        sums = self._sums
        if self._last is not None and (not complete or not math.isfinite(sums.log_scale)):
            sums = replace(sums)
            sums.add(self._last)
        return sums.log_mean()

    @property
    def any_positive(self) -> bool:
        """Whether a proposal had a positive weight."""
        last = self._last is not None and bool((self._last > -math.inf).all())
        return last or math.isfinite(self._sums.log_scale)

    @property
    def acceptance_rate(self) -> float:
        """Mean acceptance probability of the stream."""
        return self.accept / self.count if self.count else math.nan

    @property
    def hopeless(self) -> bool:
        """Whether the stream shows too low an acceptance to go on."""
        enough = self.count * self.min_acceptance >= 1.0
        too_low = enough and self.acceptance_rate < self.min_acceptance
        return too_low or (self.count >= 100_000 and self.accept == 0.0)

    def base_draws(self) -> BaseDraws:
        """The first proposals of the stream."""
        return BaseDraws(
            reward=torch.cat([reward for reward, _ in self._kept]),
            log_factors=torch.cat([factors for _, factors in self._kept]),
        )

    def _keep(self, batch: Draws, count: int) -> None:
        rows = min(count, BASE_DRAWS_KEPT - self._kept_rows)
        if rows > 0:
            self._kept.append((batch.reward[:rows].clone(), batch.log_factors[:rows].clone()))
            self._kept_rows += rows


@dataclass
class WeightSums:
    """Running sums of weights and of their squares, relative to the largest."""

    count: int = 0
    log_scale: float = -math.inf
    first: float = 0.0
    second: float = 0.0

    def add(self, log_weights: Tensor) -> None:
        """Adds weights given in logarithms, shape (n,)."""
        self.count += len(log_weights)
        largest = float(log_weights.max()) if len(log_weights) else -math.inf
        if largest > self.log_scale:
            ratio = math.exp(self.log_scale - largest)
            self.first, self.second = self.first * ratio, self.second * ratio**2
            self.log_scale = largest
        if math.isfinite(largest):
            weights = (log_weights - self.log_scale).exp()
            self.first += float(weights.sum())
            self.second += float(weights.square().sum())

    def log_mean(self) -> tuple[float, float]:
        """The log of the mean weight and its standard error, nan for fewer than two weights."""
        if not self.first > 0.0:
            return (-math.inf if self.count else math.nan), math.nan
        mean = self.first / self.count
        error = math.nan
        if self.count > 1:
            variance = max(self.second - self.count * mean**2, 0.0) / (self.count - 1)
            error = math.sqrt(variance / self.count) / mean
        return self.log_scale + math.log(mean), error


def refuse_shared_minibatches(run: Run) -> None:
    """Raises ``ValueError`` where the draws of a block would not be independent."""
    names = ", ".join(repr(name) for name in run.proposal.subsampled)
    if names:
        raise ValueError(
            f"the plate {names} draws a minibatch, which the particles of a block share, so that "
            "accepted draws would be neither independent nor of the target's law; pass "
            "vectorized=False, which draws one for each particle, or drop subsample_size"
        )


def gave_up(
    sampler: Sampler, moments: StreamMoments, partial: WeightedSamples, max_draws: int | None
) -> SamplingError:
    """The error for a stream that ended before every slot was filled.

    :param partial: the draws accepted by then, attached to the error if there are any.
    """
    kept = partial if len(partial) else None
    held = f"; {len(partial)} of {sampler.num_samples} draws are in .partial of this error"
    if not moments.any_positive:
        return ZeroWeights(
            f"none of {moments.count} proposals has a positive weight: the reward or an "
            "observation is -inf wherever the program sampled",
            kept,
        )
    if moments.hopeless:
        partial.certificate = _certificate_of_a_run_given_up(partial.certificate)
        return AcceptanceTooLow(
            f"after {moments.count} proposals the mean acceptance probability is "
            f"{moments.acceptance_rate:.1e}, below min_acceptance = {moments.min_acceptance:.1e}. "
            "Lower beta, give a tighter bound, use LCB or ImportanceSampler, or lower "
            "min_acceptance" + (held if kept else ""),
            kept,
        )
    return AcceptanceTooLow(
        f"max_draws = {max_draws} proposals gave {len(partial)} of {sampler.num_samples} draws"
        + (held if kept else ""),
        kept,
    )


def _certificate_of_a_run_given_up(made: Certificate) -> Certificate:
    """What is left to say: such a run was selected by the weights of its own proposals."""
    budget = "1 / min_acceptance" if made.law == "exact" else made.budget
    return Certificate(
        target=made.target,
        law="consistent",
        budget=budget or "num_calibration, with epsilon and min_acceptance to 0,",
        estimated_total_variation=made.estimated_total_variation,
        covers=made.covers,
        excludes="; ".join(
            filter(None, [made.excludes, "that the run was given up for the weights it had drawn"])
        ),
    )


def bound_of(proposal: ProgramProposal, log_bound: float | None) -> float:
    """The bound on log weights: the caller's, or the one the program knows, ``inf`` if none."""
    if log_bound is None:
        return proposal.log_bound
    if not math.isfinite(log_bound):
        raise ValueError(f"log_bound must be finite, got {log_bound}")
    return float(log_bound)


def finite_bound(proposal: ProgramProposal, log_bound: float | None, *, instead: str) -> float:
    """
    The bound that rejection needs; ``ValueError`` where there is none.

    :param instead: samplers that need none, for the error.
    """
    bound = bound_of(proposal, log_bound)
    if math.isfinite(bound):
        return bound
    culprits = ", ".join(repr(name) for name in proposal.unbounded) or "the reward"
    raise ValueError(
        f"rejection needs a bound on the weight, and none is known for {culprits}. Wrap the "
        "reward as rewards.Bounded(fn, low, high), pass log_bound=, or use "
        f"{instead}, which need none"
    )


def check_bound(log_weights: Tensor, bound: float) -> None:
    """Raises ``ValueError`` where a log weight lies above its bound by more than rounding."""
    excess = float(log_weights.max()) - bound if len(log_weights) else 0.0
    if excess > _BOUND_SLACK * max(1.0, abs(bound)):
        raise ValueError(
            f"a proposal has log weight {excess + bound:.6g}, above the bound {bound:.6g} by "
            f"{excess:.3g}: the bound of the reward, or log_bound, is wrong and what is said of "
            "the draws would not hold"
        )


def iid_result(
    sampler: Sampler,
    run: Run,
    pool: PoolResult[Draws],
    moments: StreamMoments,
    *,
    certificate: Certificate,
    info: dict[str, float] | None = None,
    extra_draws: int = 0,
) -> WeightedSamples:
    """The independent draws of a pooled run, with the evidence, statistics and cost of its stream.

    :param pool: what the engine returned; fewer draws than were asked for make a partial result.
    :param extra_draws: rows of the program that were drawn outside the stream.
    """
    draws: Draws = pool.batch
    log_z, error = moments.evidence(complete=len(draws) == sampler.num_samples)
    # Up to its first acceptance a stream shows rejected weights alone, whose spread misleads.
    error = error if len(draws) > 1 else math.nan
    stats = {"proposals": pool.proposals, "capped": pool.capped}
    if run.proposal.beta is not None:
        stats["reward"] = draws.reward
    weights = draws.log_weights
    return WeightedSamples(
        kind="iid",
        samples=draws.samples,
        log_weights=torch.full_like(weights, log_z),
        log_normalizer=weights.new_tensor(log_z),
        log_normalizer_error=weights.new_tensor(error),
        certificate=certificate,
        cost=run.cost(pool.drawn + extra_draws),
        stats=stats,
        beta=run.proposal.beta,
        info={
            "acceptance_rate": pool.acceptance_rate,
            "total_proposals": float(pool.total),
            "wasted": float(pool.wasted),
            **(info or {}),
        },
        base=moments.base_draws(),
        sampler=type(sampler).__name__,
        program=sampler.program,
        args=run.args,
        kwargs=run.kwargs,
    )
