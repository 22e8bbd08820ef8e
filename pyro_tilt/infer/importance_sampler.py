# SPDX-License-Identifier: Apache-2.0
"""Self-normalised importance sampling over a whole program, with Pareto smoothing."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch

from pyro_tilt.infer.certificate import Certificate
from pyro_tilt.infer.errors import SamplerWarning, ZeroWeights
from pyro_tilt.infer.proposal import Draws
from pyro_tilt.infer.sampler import Run, Sampler
from pyro_tilt.infer.tail_words import judged_tail
from pyro_tilt.infer.weighted_samples import BaseDraws, WeightedSamples
from pyro_tilt.ops.importance import summarize
from pyro_tilt.ops.psis import khat_threshold, pareto_smooth

__all__ = ["ImportanceSampler"]


class ImportanceSampler(Sampler):
    r"""Weighted draws of the joint tilt: base draws :math:`x_i`, weights :math:`e^{\beta r(x_i)}`.

    .. math::

        \mathbb E_q f \approx \sum_i \frac{w_i}{\sum_j w_j} f(x_i), \qquad
        \hat Z = \frac1N \sum_i w_i, \qquad w_i = e^{\beta r(x_i)} \ell(x_i)

    with :math:`\ell` the program's observations and other factors. :math:`\hat Z` is unbiased.
    The weights' largest values are replaced by quantiles of a fitted generalised Pareto law
    (Vehtari, Simpson, Gelman, Yao and Gabry 2024, arXiv 1507.02646); its shape ``pareto_k`` says
    whether the sample is large enough: above ``min(.7, 1 - 1/log10 N)`` the run warns.

    Certificate: *consistent* in the number of draws. Self-normalisation has a bias of order 1/N
    and no bound holds without one on the weights.

    :param program: see :class:`~pyro_tilt.infer.Sampler`, as are all options not named here.
    :param guide: a Pyro guide to propose from in place of the program's own latent sites.
    :param bool pareto_smoothing: smooth the largest weights and report ``pareto_k``, which is inf
        where the tail holds fewer than five weights (no Pareto law can be fitted, as with few
        draws) and nan where it is flat.
    :raises ZeroWeights: if every weight is zero; the draws are attached to the error.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> from pyro_tilt.infer import ImportanceSampler
        >>> def program():
        ...     return pyro.sample("x", dist.Normal(0., 1.))
        >>> sampler = ImportanceSampler(program, reward=lambda x: x, num_samples=20_000, seed=0)
        >>> result = sampler.run()
        >>> round(result.expectation("x").item(), 1)
        1.0
        >>> round(result.log_normalizer.item(), 1)
        0.5
    """

    def __init__(
        self,
        program: Callable[..., Any],
        *,
        guide: Callable[..., Any] | None = None,
        pareto_smoothing: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(program, **options)
        self.guide = guide
        self.pareto_smoothing = pareto_smoothing

    def _sample(self, run: Run) -> WeightedSamples:
        draws = self._draw(run)
        log_weights = draws.log_weights
        # What long tensors cost is first of all the memory they are given.
        work = torch.empty_like(log_weights)
        log_z, log_z_error, ess = summarize(log_weights, work=work)
        if run.proposal.subsampled:
            # The weights of a block share their minibatch, so that their spread tells no error.
            log_z_error = torch.full_like(log_z, math.nan)
        smoothed, pareto_k = None, None
        if self.pareto_smoothing:
            smoothed, shape = pareto_smooth(log_weights, out=work)
            pareto_k = float(shape)
        result = WeightedSamples(
            kind="weighted",
            samples=draws.samples,
            log_weights=log_weights,
            log_normalizer=log_z,
            log_normalizer_error=log_z_error,
            certificate=self._certificate(pareto_k, run.proposal.subsampled),
            cost=run.cost(self.num_samples),
            stats={"reward": draws.reward} if run.proposal.beta is not None else {},
            beta=run.proposal.beta,
            psis_log_weights=smoothed,
            pareto_k=pareto_k,
            base=BaseDraws(reward=draws.reward, log_factors=draws.log_factors)
            if self.guide is None
            else None,
            sampler=type(self).__name__,
            program=self.program,
            args=run.args,
            kwargs=run.kwargs,
        )
        if not torch.isfinite(log_z):
            raise ZeroWeights(
                f"all {self.num_samples} weights are zero: the reward or an observation is -inf "
                "wherever the program sampled. Draw more, widen the program, or soften the "
                "constraint; the draws are in .partial of this error",
                result,
            )
        self._warn(float(ess), pareto_k)
        return result

    def _stream(self) -> int:
        # There is nothing to draw beside the proposals.
        return 0

    def _draw(self, run: Run) -> Draws:
        if self.num_samples <= self.block:
            return run.proposal.draw(self.num_samples)
        parts = []
        with run.bar(self.num_samples) as bar:
            for start in range(0, self.num_samples, self.block):
                size = min(self.block, self.num_samples - start)
                parts.append(run.proposal.draw(size))
                bar.update(size)
        return Draws.cat(parts)

    def _certificate(self, pareto_k: float | None, subsampled: list[str]) -> Certificate:
        return Certificate(
            target="joint tilt",
            law="consistent",
            budget="num_samples",
            covers="self-normalised expectations; the evidence is unbiased",
            excludes="the error at this number of draws, which pareto_k and the effective sample "
            "size describe but do not bound"
            + judged_tail(pareto_k, self.num_samples)
            + (
                f"; the minibatch of {subsampled[0]!r}, shared by a whole block"
                if subsampled
                else ""
            ),
        )

    def _warn(self, ess: float, pareto_k: float | None) -> None:
        if pareto_k is None:
            return
        threshold = khat_threshold(self.num_samples)
        # Without a fitted tail, as for rewards with few levels, the sample size has to speak.
        if math.isinf(pareto_k):
            heavy = self.num_samples >= 5 and ess < max(0.1 * self.num_samples, 1.05)
        else:
            heavy = pareto_k > threshold
        if heavy:
            warnings.warn(
                f"importance weights are too heavy for {self.num_samples} draws: pareto_k = "
                f"{pareto_k:.2f} against {threshold:.2f}, effective sample size {ess:.1f}. Draw "
                "more, lower beta, or use LCB",
                SamplerWarning,
                stacklevel=5,
            )
