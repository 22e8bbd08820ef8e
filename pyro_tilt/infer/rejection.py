# SPDX-License-Identifier: Apache-2.0
"""Exact rejection sampling, where an upper bound on the weight is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_tilt.infer.certificate import Certificate
from pyro_tilt.infer.pooled import (
    StreamMoments,
    check_bound,
    finite_bound,
    gave_up,
    iid_result,
    refuse_shared_minibatches,
)
from pyro_tilt.infer.proposal import Draws
from pyro_tilt.infer.sampler import Run, Sampler, check_count
from pyro_tilt.infer.weighted_samples import WeightedSamples
from pyro_tilt.ops.pool import PoolExhausted, PoolResult, pooled_rejection

__all__ = ["Rejection"]


class Rejection(Sampler):
    r"""Independent exact draws of the joint tilt, accepted with probability
    :math:`e^{\log w(x) - B}`.

    :math:`\log w = \beta r` plus the log likelihood of observations and other factors, and
    :math:`B` a bound on it. The bound of the reward comes from the reward itself
    (:class:`~pyro_tilt.rewards.Bounded`, :class:`~pyro_tilt.rewards.Constraint`, a concave
    quadratic), that of a discrete observation is 0; any other factor needs ``log_bound``.

    Certificate: *exact*. The draws are independent and follow the target, because each proposal
    is accepted with probability proportional to its weight; that no weight exceeded the bound is
    checked on every proposal.

    :param program: see :class:`~pyro_tilt.infer.Sampler`, as are all options not named here.
    :param float log_bound: a bound on :math:`\log w`, in place of the one the program knows.
    :param float min_acceptance: the run stops with an error when, after as many proposals as the
        inverse of this, the mean acceptance probability is below it.
    :param int max_draws: most proposals of a chain; None for no limit.
    :raises ValueError: if no bound is known, if a proposal exceeds it, or if the draws of a block
        would share the minibatch of a plate.
    :raises AcceptanceTooLow: see ``min_acceptance`` and ``max_draws``; the draws accepted by then
        are attached.
    :raises ZeroWeights: if no proposal of a run that was given up has a positive weight.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> from pyro_tilt import rewards
        >>> from pyro_tilt.infer import Rejection
        >>> def program():
        ...     return pyro.sample("x", dist.Normal(0., 1.))
        >>> reward = rewards.Bounded(lambda x: -(x - 1.0) ** 2, low=-float("inf"), high=0.0)
        >>> result = Rejection(program, reward=reward, beta=1.5, num_samples=500, seed=0).run()
        >>> result.certificate.law, len(result)
        ('exact', 500)
    """

    def __init__(
        self,
        program: Callable[..., Any],
        *,
        log_bound: float | None = None,
        min_acceptance: float = 1e-6,
        max_draws: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(program, **options)
        if log_bound is not None and not math.isfinite(log_bound):
            raise ValueError(f"log_bound must be finite, got {log_bound}")
        if not 0.0 < min_acceptance < 1.0:
            raise ValueError(f"min_acceptance must lie in (0, 1), got {min_acceptance}")
        self.log_bound = log_bound
        self.min_acceptance = min_acceptance
        self.max_draws = None if max_draws is None else check_count("max_draws", max_draws)

    def _sample(self, run: Run) -> WeightedSamples:
        refuse_shared_minibatches(run)
        instead = "LCB or ImportanceSampler"
        bound = finite_bound(run.proposal, self.log_bound, instead=instead)
        moments = StreamMoments(bound, min_acceptance=self.min_acceptance)

        def log_accept(batch: Draws) -> Tensor:
            check_bound(batch.log_weights, bound)
            return batch.log_weights - bound

        with run.bar(self.num_samples) as bar:
            try:
                pool = pooled_rejection(
                    run.proposal.draw,
                    log_accept,
                    self.num_samples,
                    max_block=self.block,
                    max_total=self.max_draws,
                    generator=torch.Generator().manual_seed(run.accept_seed),
                    observe=moments.observe,
                    progress=bar.update,
                )
            except PoolExhausted as error:
                partial = self._result(run, error.partial, moments, bound)
                raise gave_up(self, moments, partial, self.max_draws) from error
        return self._result(run, pool, moments, bound)

    def _result(
        self, run: Run, pool: PoolResult[Draws], moments: StreamMoments, bound: float
    ) -> WeightedSamples:
        certificate = Certificate(
            target="joint tilt",
            law="exact",
            covers="independent draws; the bound was checked on every proposal",
        )
        return iid_result(
            self, run, pool, moments, certificate=certificate, info={"log_bound": bound}
        )
