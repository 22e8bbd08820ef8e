# SPDX-License-Identifier: Apache-2.0
"""Rejection with learned Chernoff baselines, one-shot, over a whole program."""

from __future__ import annotations

import math
import numbers
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from pyro_tilt.infer.errors import SamplerWarning, ZeroWeights
from pyro_tilt.infer.lcb_certificate import Clipping, clipping, lcb_certificate
from pyro_tilt.infer.pooled import (
    StreamMoments,
    check_bound,
    gave_up,
    iid_result,
    refuse_shared_minibatches,
)
from pyro_tilt.infer.proposal import Draws
from pyro_tilt.infer.sampler import Run, Sampler, check_count
from pyro_tilt.infer.seeding import seeded
from pyro_tilt.infer.weighted_samples import WeightedSamples
from pyro_tilt.ops.baselines import (
    Baseline,
    budget_baseline,
    chernoff_baseline,
    exchange_baseline,
)
from pyro_tilt.ops.calibration import calibrate
from pyro_tilt.ops.pool import PoolExhausted, PoolResult, pooled_rejection

__all__ = ["LCB"]

Rule = Literal["chernoff", "budget", "exchange"]


class LCB(Sampler):
    r"""Independent draws, accepted with probability :math:`\min(1, e^{A - b})`, where the baseline
    :math:`b` is learned from base draws.

    :math:`A = \beta r` plus the log likelihood of observations and other factors. The draws follow

    .. math:: q_b \propto p\, e^{\min(A, b)}, \qquad
        \mathrm{TV}(q_b, q) \le \kappa(b) = \mathbb E_q (1 - e^{b - A})_+ ,

    :math:`\kappa` being the clipped mass. A sharpened Chernoff bound under the target,

    .. math:: b = \min_\lambda \frac1\lambda \Bigl[ \psi(1 + \lambda) - \psi(1)
        + \log\frac{c_\lambda}{\epsilon} \Bigr], \qquad
        \psi(s) = \log \mathbb E_p e^{sA}, \quad
        c_\lambda = \frac{\lambda^\lambda}{(1 + \lambda)^{1 + \lambda}},

    gives :math:`\kappa \le \epsilon`. The log-moment generating function comes from base draws, for
    the :math:`\lambda` at which their effective sample size allows it; the baseline is raised until
    held-out draws agree, and never lies below :math:`\log Z` nor above every weight seen.

    Certificate, for the unweighted draws: *bounded* in total variation by the upper confidence
    bound of the clipped mass (empirical Bernstein, Maurer and Pontil 2009, arXiv 0907.3740) where
    the weight has a known upper bound; *exact* where the baseline reaches that bound; otherwise
    *consistent* (epsilon to 0, base draws to infinity) with the distance estimated, since no bound
    from samples is valid for unbounded weights. ``residual_log_weights`` :math:`= (A - b)_+` make
    the draws exact for the target under self-normalisation.

    After Madhow, Y. Liang, Shroff, Yingbin Liang and Wang 2026, *Learnable Chernoff baselines for
    inference-time alignment*, arXiv 2602.07738; the target-side and sharpened bounds and the
    certificate are this project's.

    :param program: see :class:`~pyro_tilt.infer.Sampler`, as are all options not named here.
    :param float epsilon: largest clipped mass that rule ``"chernoff"`` aims at.
    :param baseline: ``"chernoff"``; ``"budget"``, :math:`b = \log Z + \log` of ``budget``;
        ``"exchange"``, the b that minimises proposals plus ``exchange_rate`` times clipped mass; or
        a number, taken as it is.
    :param float budget: proposals per draw that rule ``"budget"`` aims at.
    :param float exchange_rate: proposals that a unit of clipped mass is worth.
    :param int num_calibration: base draws to learn the baseline from; half of them held out.
    :param float confidence: of the certificate.
    :param int max_proposals: most proposals for one draw, after which it takes the last rejected
        one, flagged in ``stats["capped"]`` and paid for in the certificate.
    :param float min_acceptance: as in :class:`~pyro_tilt.infer.Rejection`.
    :param int max_draws: most proposals of a chain; None for no limit.
    :param value: log soft value of a program with steps, a function of carry and step; the
        result is then a :class:`~pyro_tilt.infer.StepwiseLCB`, which takes options of its own.
    :raises ValueError: if a weight exceeds its stated bound, or if the draws of a block would
        share the minibatch of a plate.
    :raises ZeroWeights: if no calibration draw has a positive weight.
    :raises AcceptanceTooLow: see ``min_acceptance`` and ``max_draws``.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> from pyro_tilt.infer import LCB
        >>> def program():
        ...     return pyro.sample("x", dist.Normal(0., 1.))
        >>> result = LCB(program, reward=lambda x: x, num_samples=4000, epsilon=0.02, seed=0).run()
        >>> round(result.expectation("x", corrected=True).item(), 1)
        1.0
        >>> result.certificate.law
        'consistent'
    """

    def __new__(cls, *args: Any, value: Any = None, **options: Any) -> Any:
        if value is None:
            return super().__new__(cls)
        from pyro_tilt.infer.stepwise import StepwiseLCB

        return StepwiseLCB(*args, value=value, **options)

    def __init__(
        self,
        program: Callable[..., Any],
        *,
        value: None = None,
        epsilon: float = 0.05,
        baseline: Rule | float = "chernoff",
        budget: float = 10.0,
        exchange_rate: float = 100.0,
        num_calibration: int = 4000,
        confidence: float = 0.95,
        max_proposals: int | None = None,
        min_acceptance: float = 1e-6,
        max_draws: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(program, **options)
        _check_between("epsilon", epsilon, 0.0, 1.0)
        _check_between("confidence", confidence, 0.0, 1.0)
        _check_between("min_acceptance", min_acceptance, 0.0, 1.0)
        _check_between("budget", budget, 1.0, math.inf)
        _check_between("exchange_rate", exchange_rate, 0.0, math.inf)
        named = isinstance(baseline, str) and baseline in ("chernoff", "budget", "exchange")
        if not named and not (isinstance(baseline, numbers.Real) and math.isfinite(baseline)):
            raise ValueError(
                "baseline must be 'chernoff', 'budget', 'exchange' or a finite number, "
                f"got {baseline!r}"
            )
        self.epsilon = epsilon
        self.baseline = baseline
        self.budget = budget
        self.exchange_rate = exchange_rate
        self.num_calibration = check_count("num_calibration", num_calibration, at_least=100)
        self.confidence = confidence
        self.max_proposals = (
            None if max_proposals is None else check_count("max_proposals", max_proposals)
        )
        self.min_acceptance = min_acceptance
        self.max_draws = None if max_draws is None else check_count("max_draws", max_draws)

    def _sample(self, run: Run) -> WeightedSamples:
        refuse_shared_minibatches(run)
        baseline, calibration = self._fit(run)
        moments = StreamMoments(baseline.value, min_acceptance=self.min_acceptance)
        bound = run.proposal.log_bound

        def log_accept(batch: Draws) -> Tensor:
            check_bound(batch.log_weights, bound)
            return batch.log_weights - baseline.value

        with run.bar(self.num_samples) as bar:
            try:
                pool = pooled_rejection(
                    run.proposal.draw,
                    log_accept,
                    self.num_samples,
                    max_block=self.block,
                    max_proposals=self.max_proposals,
                    max_total=self.max_draws,
                    generator=torch.Generator().manual_seed(run.accept_seed),
                    observe=moments.observe,
                    progress=bar.update,
                )
            except PoolExhausted as error:
                partial = self._result(run, error.partial, moments, baseline, calibration)
                raise gave_up(self, moments, partial, self.max_draws) from error
        return self._result(run, pool, moments, baseline, calibration)

    def _fit(self, run: Run) -> tuple[Baseline, int]:
        """The baseline, and how many base draws it took."""
        if not isinstance(self.baseline, str):
            return Baseline(float(self.baseline), "given", math.nan), 0
        with seeded(run.calibration_seed):
            log_weights = torch.cat(
                [
                    run.proposal.draw(min(self.max_batch, self.num_calibration - start)).log_weights
                    for start in range(0, self.num_calibration, self.max_batch)
                ]
            )
        if not bool((log_weights > -math.inf).any()):
            raise ZeroWeights(
                f"none of {self.num_calibration} calibration draws has a positive weight: the "
                "reward or an observation is -inf wherever the program sampled"
            )
        return self._choose(log_weights, run.proposal.log_bound), self.num_calibration

    def _choose(self, log_weights: Tensor, log_bound: float) -> Baseline:
        if self.baseline == "budget":
            return budget_baseline(log_weights, self.budget, upper_bound=log_bound)
        if self.baseline == "exchange":
            return exchange_baseline(log_weights, self.exchange_rate, upper_bound=log_bound)
        fitted, held_out = log_weights[0::2], log_weights[1::2]
        if not bool((held_out > -math.inf).any()):
            held_out = log_weights
        if not bool((fitted > -math.inf).any()):
            fitted = log_weights
        # Where few exponents can be trusted the Chernoff bound lies far above every weight seen.
        ceiling = min(log_bound, float(log_weights.max()))
        found = chernoff_baseline(fitted, self.epsilon, upper_bound=ceiling)
        if not found.trusted:
            warnings.warn(
                f"{len(fitted)} calibration draws are too few to learn the baseline: the largest "
                "effective sample size of exp((1 + lambda) A) is "
                f"{found.effective_sample_size:.1f}. The largest log weight seen is used instead. "
                "Raise num_calibration or lower beta",
                SamplerWarning,
                stacklevel=6,
            )
            found = replace(found, value=max(found.log_z, ceiling))
        # A Chernoff bound is conservative; where the held-out draws disagree it was fitted to luck.
        checked = calibrate(found, held_out, self.epsilon, upper_bound=ceiling)
        return checked if checked.value > found.value else found

    def _result(
        self,
        run: Run,
        pool: PoolResult[Draws],
        moments: StreamMoments,
        baseline: Baseline,
        calibration: int,
    ) -> WeightedSamples:
        bound = run.proposal.log_bound
        found = clipping(
            pool.batch.log_weights.clamp(max=bound),
            pool.capped,
            baseline=baseline.value,
            log_bound=bound,
            confidence=self.confidence,
            may_cap=self.max_proposals is not None,
            complete=len(pool.batch) == self.num_samples,
        )
        result = iid_result(
            self,
            run,
            pool,
            moments,
            certificate=lcb_certificate(found),
            info={"baseline": baseline.value, **found.info()},
            extra_draws=calibration,
        )
        excess = (pool.batch.log_weights - baseline.value).clamp(min=0.0)
        result.residual_log_weights = excess.masked_fill(pool.capped, -math.inf)
        self._warn(found)
        return result

    def _warn(self, found: Clipping) -> None:
        if found.num_capped:
            warnings.warn(
                f"{found.num_capped} of {found.num_draws} draws hit max_proposals = "
                f"{self.max_proposals} and hold a rejected proposal; they are flagged in "
                'stats["capped"] and counted in the certificate',
                SamplerWarning,
                stacklevel=6,
            )
        if self.baseline == "chernoff" and found.excess_score(self.epsilon) > 4.0:
            warnings.warn(
                f"the clipped mass is estimated at {found.clipped_mass:.3g}, above epsilon = "
                f"{self.epsilon:g}: the calibration draws missed the rewards that matter. Raise "
                "num_calibration, or use residual_log_weights",
                SamplerWarning,
                stacklevel=6,
            )


def _check_between(name: str, value: float, low: float, high: float) -> None:
    if not low < value < high:
        raise ValueError(f"{name} must lie in ({low:g}, {high:g}), got {value!r}")
