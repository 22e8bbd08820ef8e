# SPDX-License-Identifier: Apache-2.0
"""What the samplers on the pooled proposal engine share: acceptance, evidence, base draws.

A pooled run is one stream of proposals, cut at the last acceptance that was needed. Its evidence
comes from every proposal but that last one: given where the stream stops, the others are
exchangeable, so that the mean weight of the first N - 1 is unbiased for Z, while the mean of all
N is not.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_tilt.infer.certificate import Certificate
from pyro_tilt.infer.errors import AcceptanceTooLow, ZeroWeights
from pyro_tilt.infer.proposal import Draws
from pyro_tilt.infer.sampler import Run, Sampler
from pyro_tilt.infer.weighted_samples import BaseDraws, WeightedSamples
from pyro_tilt.ops.pool import PoolResult

__all__ = ["StreamMoments", "iid_result"]

BASE_DRAWS_KEPT = 10_000


class StreamMoments:
    """Sums over the proposals of a stream, and the first of them for pictures.

    :param float baseline: weights are summed relative to :math:`e^b`.
    :param float min_acceptance: the stream stops with an error once this many proposals, as its
        inverse, were drawn and the mean acceptance probability is still below it.
    """

    def __init__(self, baseline: float, *, min_acceptance: float) -> None:
        self.baseline = baseline
        self.min_acceptance = min_acceptance
        self.count = 0
        self.log_scale = -math.inf
        self.first = self.second = self.accept = self.clipped = 0.0
        self._kept: list[tuple[Tensor, Tensor]] = []
        self._kept_rows = 0

    def observe(self, batch: Draws, count: int) -> None:
        """Adds the first ``count`` rows of a block."""
        relative = batch.log_weights[:count] - self.baseline
        self._rescale(float(relative.max()) if count else -math.inf)
        if math.isfinite(self.log_scale):
            weights = (relative - self.log_scale).exp()
            self.first += float(weights.sum())
            self.second += float(weights.square().sum())
            if self.log_scale > 0.0:
                self.clipped += float((weights - math.exp(-self.log_scale)).clamp(min=0.0).sum())
        self.accept += float(relative.clamp(max=0.0).exp().sum())
        self.count += count
        self._keep(batch, count)
        self._stop_if_hopeless()

    def evidence(self, last: float) -> tuple[float, float]:
        r"""The log of the mean weight of all proposals but the last, and its standard error.

        :param float last: log weight of the last proposal of the stream.
        """
        scaled = math.exp(last - self.baseline - self.log_scale)
        n, first, second = self.count - 1, self.first - scaled, self.second - scaled**2
        if n < 1 or first <= 0.0:
            return self.baseline + self.log_scale + math.log(self.first / self.count), math.nan
        mean = first / n
        variance = max(second / n - mean**2, 0.0)
        error = math.sqrt(variance / n) / mean if n > 1 else math.nan
        return self.baseline + self.log_scale + math.log(mean), error

    @property
    def acceptance_rate(self) -> float:
        """Mean acceptance probability of the stream."""
        return self.accept / self.count

    @property
    def clipped_mass(self) -> float:
        r"""Target mass above the baseline, :math:`\sum (w - e^b)_+ / \sum w`."""
        return self.clipped / self.first if self.first > 0.0 else 0.0

    def base_draws(self) -> BaseDraws:
        """The first proposals of the stream."""
        return BaseDraws(
            reward=torch.cat([reward for reward, _ in self._kept]),
            log_factors=torch.cat([factors for _, factors in self._kept]),
        )

    def _rescale(self, log_largest: float) -> None:
        if log_largest > self.log_scale:
            ratio = math.exp(self.log_scale - log_largest) if self.count else 0.0
            self.first, self.second = self.first * ratio, self.second * ratio**2
            self.clipped, self.log_scale = self.clipped * ratio, log_largest

    def _keep(self, batch: Draws, count: int) -> None:
        rows = min(count, BASE_DRAWS_KEPT - self._kept_rows)
        if rows > 0:
            self._kept.append((batch.reward[:rows].clone(), batch.log_factors[:rows].clone()))
            self._kept_rows += rows

    def _stop_if_hopeless(self) -> None:
        if self.count >= 100_000 and self.accept == 0.0:
            raise ZeroWeights(
                f"none of {self.count} proposals has a positive weight: the reward or an "
                "observation is -inf wherever the program sampled"
            )
        if self.count * self.min_acceptance >= 1.0 and self.acceptance_rate < self.min_acceptance:
            raise AcceptanceTooLow(
                f"after {self.count} proposals the mean acceptance probability is "
                f"{self.acceptance_rate:.1e}, below min_acceptance = {self.min_acceptance:.1e}. "
                "Lower beta, give a tighter bound, use LCB or ImportanceSampler, or lower "
                "min_acceptance"
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

    :param extra_draws: rows of the program that were drawn outside the stream.
    """
    draws: Draws = pool.batch
    num = len(draws.log_weights)
    log_z, error = moments.evidence(float(draws.log_weights[-1])) if num else (math.nan, math.nan)
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
