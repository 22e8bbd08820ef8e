# SPDX-License-Identifier: Apache-2.0
"""One of several draws of a program, kept with probability by its weight."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pyro_tilt.infer.best_of_n import refuse_value
from pyro_tilt.infer.certificate import Certificate
from pyro_tilt.infer.early_exit import exponential_noise
from pyro_tilt.infer.errors import SamplerWarning, ZeroWeights
from pyro_tilt.infer.pooled import BASE_DRAWS_KEPT, refuse_shared_minibatches
from pyro_tilt.infer.proposal import Draws, ProgramProposal
from pyro_tilt.infer.sampler import Run, Sampler, check_count
from pyro_tilt.infer.selection.groups import Selected
from pyro_tilt.infer.selection.soft_best_of_m import SoftBestOfM
from pyro_tilt.infer.weighted_samples import BaseDraws, WeightedSamples
from pyro_tilt.ops.importance import log_evidence, log_mean_exp, summarize

__all__ = ["SoftBestOfN"]


class SoftBestOfN(Sampler):
    r"""Of ``n`` independent draws one, kept with probability :math:`w_i / \sum_j w_j`.

    The draws follow the soft best-of-n law exactly
    (:func:`~pyro_tilt.language.laws.soft_best_of_n` where outcomes can be listed), which is a
    blend of program and target: with :math:`\mathrm{CV}^2` the relative variance of the weights

    .. math:: \mathrm{KL}(\text{target} \,\|\, P_n) \le \log(1 + \mathrm{CV}^2 / n)

    (derived here; Verdun et al. 2025, arXiv 2505.03156, introduce the rule). ``n=1`` is the
    program itself. Weights are :math:`e^{\beta r}` times observations and other factors.

    Certificate: *consistent* in ``n`` for the joint tilt, with a bias in expectations of order
    1/n. The mean weight of each group of ``n`` is its draw's ``residual_log_weights``, which
    correct the draws to the target as ``num_samples`` grows; their mean is the evidence, unbiased.

    :param program: see :class:`~pyro_tilt.infer.Sampler`, as are all options not named here.
    :param int n: draws to choose from.
    :param int block: steps of a :func:`~pyro_tilt.scan` after which to choose, n copies at a time
        that go on from the one kept before; None chooses among whole draws. The result is then
        that of :class:`~pyro_tilt.infer.SoftBestOfM` with blocks for steps, whose options
        ``value`` and ``exact_values`` it takes.
    :raises ValueError: if the draws of a block would share the minibatch of a plate, for values
        without blocks.
    :raises ZeroWeights: if every weight is zero; the draws are attached to the error.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> def program():
        ...     return pyro.sample("x", dist.Bernoulli(0.5))
        >>> result = SoftBestOfN(
        ...     program, reward=lambda x: x, beta=2.1972, n=2, num_samples=40_000, seed=0
        ... ).run()
        >>> round(result.expectation("x").item(), 2)  # half of the time 0 and 1 meet, at 1 : 9
        0.7
        >>> round(result.expectation("x", corrected=True).item(), 2)
        0.9
        >>> result.certificate.law, result.cost.base_draws
        ('consistent', 80000)
    """

    def __new__(cls, *args: Any, block: int | None = None, **options: Any) -> Any:
        if block is None:
            return super().__new__(cls)
        return SoftBlockBestOfN(*args, block=block, **options)

    def __init__(
        self, program: Callable[..., Any], *, n: int = 16, block: None = None, **options: Any
    ) -> None:
        refuse_value(type(self).__name__, options)
        self.n = check_count("n", n)
        super().__init__(program, **options)

    def _sample(self, run: Run) -> WeightedSamples:
        refuse_shared_minibatches(run)
        generator = torch.Generator().manual_seed(run.accept_seed)
        groups = _Groups(run.proposal, self.n, self.block, generator)
        draws, means, filled = [], [], 0
        with run.bar(self.num_samples) as bar:
            while filled < self.num_samples:
                count = min(self.num_samples - filled, max(1, self.block // self.n))
                chosen, mean = groups.choose(count)
                draws.append(chosen)
                means.append(mean)
                filled += count
                bar.update(count)
        result = self._result(run, Draws.cat(draws), torch.cat(means), groups.base_draws())
        warn_of_lost(result, f"all {self.n} draws to choose from")
        return result

    def _result(self, run: Run, draws: Draws, means: Tensor, base: BaseDraws) -> WeightedSamples:
        log_z, error = log_evidence(means)
        lost = means == -math.inf
        stats = {"lost": lost}
        if run.proposal.beta is not None:
            stats["reward"] = draws.reward
        estimate, spread = None, float(summarize(means).effective_sample_size)
        if not bool(lost.all()):
            ratio = (means - log_mean_exp(means)).exp()
            estimate = min(1.0, 0.5 * float((ratio - 1.0).abs().mean()))
        return WeightedSamples(
            kind="iid",
            samples=draws.samples,
            log_weights=log_z.expand(len(draws)).clone(),
            log_normalizer=log_z,
            log_normalizer_error=error,
            residual_log_weights=means,
            certificate=Certificate(
                target="joint tilt",
                law="consistent",
                budget="n",
                estimated_total_variation=estimate,
                covers=f"independent draws of the soft best-of-n law (n={self.n}), which "
                "residual_log_weights correct to the joint tilt",
            ),
            cost=run.cost(self.num_samples * self.n),
            stats=stats,
            beta=run.proposal.beta,
            info={
                "n": float(self.n),
                "lost": float(lost.double().mean()),
                # The relative variance of means of n weights is that of the weights over n.
                "kl_bound_estimate": math.log(len(draws) / spread) if spread else math.nan,
            },
            base=base,
            sampler=type(self).__name__,
            program=self.program,
            args=run.args,
            kwargs=run.kwargs,
        )


class _Groups:
    """Groups of proposals, one of each kept by weight."""

    def __init__(
        self, proposal: ProgramProposal, n: int, block: int, generator: torch.Generator
    ) -> None:
        self.proposal, self.n, self.block, self.generator = proposal, n, block, generator
        self._kept: list[tuple[Tensor, Tensor]] = []

    def choose(self, count: int) -> tuple[Draws, Tensor]:
        """One draw for each of ``count`` slots, and the log mean weight of its group."""
        held, best, parts, start = None, None, [], 0
        while start < self.n:
            width = min(self.n - start, max(1, self.block // count))
            batch = self.proposal.draw(count * width)
            self._keep(batch)
            weights = batch.log_weights.reshape(count, width)
            parts.append(weights)
            # The largest after Gumbel noise falls by weight; where all are zero the first stays.
            noise = exponential_noise((count, width), self.generator).clamp_(min=1e-300).log_()
            score, column = (weights - noise.to(weights)).max(-1)
            column = torch.where(score > -math.inf, column, torch.zeros_like(column))
            rows = torch.arange(count, device=column.device)
            batch = batch.index(rows * width + column)
            if held is not None and best is not None:
                later = score > best
                batch = Draws.cat([held, batch]).index(rows + count * later.long())
                score = torch.where(later, score, best)
            held, best, start = batch, score, start + width
        assert held is not None
        return held, log_mean_exp(torch.cat(parts, -1))

    def base_draws(self) -> BaseDraws:
        """The first proposals."""
        reward, factors = (torch.cat(each)[:BASE_DRAWS_KEPT] for each in zip(*self._kept))
        return BaseDraws(reward=reward, log_factors=factors)

    def _keep(self, batch: Draws) -> None:
        if sum(len(reward) for reward, _ in self._kept) < BASE_DRAWS_KEPT:
            self._kept.append((batch.reward.clone(), batch.log_factors.clone()))


class SoftBlockBestOfN(SoftBestOfM):
    """:class:`SoftBestOfN` after every block of steps; see there.

    :param n: copies of a block.
    :param block: steps in a block; the last one may be shorter.
    :param options: see :class:`~pyro_tilt.infer.SoftBestOfM`.
    """

    def __init__(
        self, program: Callable[..., Any], *, n: int = 16, block: int = 1, **options: Any
    ) -> None:
        self.n = check_count("n", n)
        super().__init__(program, m=self.n, **options)
        self.steps = check_count("block", block)

    def _certificate(self, selected: Selected, target: str) -> Certificate:
        made = super()._certificate(selected, target)
        return replace(
            made,
            budget="n" if made.budget else None,
            excludes=made.excludes.replace("however large m is", "however large n is"),
        )


def warn_of_lost(result: WeightedSamples, chosen_from: str) -> None:
    """Warns of draws of weight zero; ``ZeroWeights`` where there are no others."""
    lost = int(result.stats["lost"].sum())
    if lost == len(result):
        raise ZeroWeights(
            f"every draw has weight zero, as have {chosen_from}: the reward or an observation is "
            "-inf wherever the program sampled",
            result,
        )
    if lost:
        warnings.warn(
            f"{lost} of {len(result)} draws have weight zero, as have {chosen_from} "
            "(stats['lost']); raise n",
            SamplerWarning,
            stacklevel=5,
        )
