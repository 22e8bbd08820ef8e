# SPDX-License-Identifier: Apache-2.0
"""Draws of a small model, chosen so that they stand for the tilt of a large one."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

from torch import Tensor

from pyro_tilt.infer.certificate import Certificate
from pyro_tilt.infer.cost import Cost
from pyro_tilt.infer.early_exit import miss_upper
from pyro_tilt.infer.errors import SamplerWarning, ZeroWeights
from pyro_tilt.infer.evidence import equal_log_weights
from pyro_tilt.infer.sampler import Run, check_count
from pyro_tilt.infer.speculative.blocks import Value
from pyro_tilt.infer.speculative.rules import ExactRule, Rule, ThresholdRule, check_threshold
from pyro_tilt.infer.speculative.two_models import Kept, TwoModelSampler
from pyro_tilt.infer.weighted_samples import WeightedSamples
from pyro_tilt.ops.importance import log_evidence, log_mean_exp, summarize

__all__ = ["GSI"]


class GSI(TwoModelSampler):
    r"""Guided speculative inference: ``n`` draws of a draft, chosen for the tilt of a target.

    Of ``n`` draws of the draft :math:`\pi_S` one is kept by softmax of :math:`\beta\tilde r`,

    .. math:: \tilde r = r + \tfrac1\beta \log\frac{\pi_B}{\pi_S}, \qquad
        \pi_S\, e^{\beta\tilde r} = \pi_B\, e^{\beta r},

    with the probabilities that were sampled from, temperature and truncation included. If its
    :math:`\tilde r` is below the threshold u, one of ``n`` draws of the target :math:`\pi_B`,
    chosen by softmax of :math:`\beta r`, replaces it (Geuter et al. 2025, arXiv 2506.04118). With
    the soft best-of-n laws :math:`q_S` and :math:`q_B` of the two models the law is

    .. math:: P(y) = q_S(y)\, 1[\tilde r(y) \ge u] + q_S(\tilde r < u)\, q_B(y)

    (derived here; :func:`pyro_tilt.language.laws.gsi` where outcomes can be listed). For a finite u
    it does *not* tend to the tilt of the target: values above the threshold come from both
    branches. Three ways around that:

    * ``threshold=-math.inf`` never asks the target for draws;
    * ``fallback="debiased"`` draws the replacement from :math:`q_B` given :math:`\tilde r < u`;
    * ``accept="exact"`` has no threshold. A draw of the draft is accepted with probability
      :math:`\tilde w / e^{B}`, :math:`\tilde w = e^{\beta\tilde r}`, and only where all ``n`` fail
      does the target draw: :math:`P = p\,\pi^* + (1 - p)\, q_B`, with p the chance that one of n is
      accepted (derived here; the idea is that of Liu, Wan and Gündüz 2026, arXiv 2609.21899).

    Certificate: for the joint tilt of the target, *search* under a finite threshold with the
    published fallback, as its bias stays however large ``n`` is; *consistent* in ``n`` without one
    or with the debiased fallback; *bounded* with ``accept="exact"``, by the total variation
    :math:`1 - p`, whose upper confidence bound the run's own misses give. Block by block the
    rules act on plug-in values: *consistent* where these are stated to be exact, else *search*.

    The evidence is the mean of :math:`\tilde w` over draws of the draft, unbiased whatever the
    threshold; by blocks with a finite threshold there is none (``log_normalizer`` is nan).
    The base draws of the result are draws of the draft, before any choice, with weights
    :math:`\pi_B/\pi_S` towards the target. Draws of the target itself are made only where the draft
    failed, and by blocks no draw is whole before a choice, so that there are none.

    ``info`` has the rows of either model (``draft_rows``, ``target_rows``, drawn or scored, a part
    of the steps counting as that part of a row; ``draft_network_rows`` and ``target_network_rows``
    of counted modules), and ``cost.base_draws`` their sum.

    :param program: the target, a Pyro program without observations; see
        :class:`~pyro_tilt.infer.Sampler` for it and all options not named here.
    :param draft: a program of the same sites, called with the same arguments.
    :param reward: the reward, unless the target is aligned already; ``beta`` must be positive.
    :param int n: draws to choose from, of each model.
    :param float threshold: u, of :math:`\tilde r`, in units of the reward; may be infinite.
    :param str fallback: ``"published"`` or ``"debiased"``.
    :param str accept: ``"threshold"`` or ``"exact"``.
    :param float log_bound: B, a bound on :math:`\beta r + \log \pi_B/\pi_S`, for
        ``accept="exact"``; that no draw exceeds it is checked.
    :param float confidence: of the bound that ``accept="exact"`` certifies.
    :param int max_tries: choices after which the debiased fallback takes what it has
        (``stats["capped"]``, with a warning).
    :param int block: steps of a :func:`~pyro_tilt.scan` after which to choose; None for whole
        draws. Every step of both programs then holds its latent sites, and none lie outside.
    :param value: with ``block``, log value of the target's carry and of the element of ``xs`` that
        made it, such as beta times a process reward; the reward itself takes part in the last
        block.
    :param bool exact_values: whether the values are the exact log soft values.
    :raises ValueError: for sites or vocabularies that differ, a draft that excludes what the target
        does not, a beta that is not positive, a draw above the bound.
    :raises ZeroWeights: if every draw has weight zero; the draws are attached to the error.

    Example::

        >>> import pyro, torch, pyro.distributions as dist
        >>> def model(probs):
        ...     return lambda: pyro.sample("x", dist.Categorical(torch.tensor(probs)))
        >>> large, small = model([0.2, 0.8]), model([0.5, 0.5])
        >>> result = GSI(
        ...     large, draft=small, reward=lambda x: x.double(), beta=1.0, n=64,
        ...     threshold=-float("inf"), num_samples=4000, seed=0,
        ... ).run()
        >>> round(result.expectation("x").item(), 1), result.certificate.law  # .8 e / (.2 + .8 e)
        (0.9, 'consistent')
        >>> int(result.info["target_rows"]), int(result.info["draft_rows"])
        (256000, 256000)
    """

    def __init__(
        self,
        program: Callable[..., Any],
        *,
        draft: Callable[..., Any],
        n: int = 16,
        threshold: float = 0.5,
        fallback: str = "published",
        accept: str = "threshold",
        log_bound: float | None = None,
        confidence: float = 0.95,
        max_tries: int = 1000,
        block: int | None = None,
        value: Value | None = None,
        exact_values: bool = False,
        **options: Any,
    ) -> None:
        self.n = check_count("n", n)
        super().__init__(program, draft=draft, block=block, value=value, **options)
        self.beta = float(self.aligned.beta)
        if not 0.0 < self.beta < math.inf:
            raise ValueError(f"GSI needs a positive and finite beta, got {self.beta}")
        for name, given, known in (
            ("fallback", fallback, ("published", "debiased")),
            ("accept", accept, ("threshold", "exact")),
        ):
            if given not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}; got {given!r}")
        if not 0.0 < confidence < 1.0:
            raise ValueError(f"confidence must lie in (0, 1), got {confidence}")
        self.threshold = check_threshold(threshold)
        self.fallback, self.accept = fallback, accept
        self.log_bound = self._checked_bound(log_bound)
        self.confidence = confidence
        self.max_tries = check_count("max_tries", max_tries)
        self.exact_values = bool(exact_values)

    def _checked_bound(self, log_bound: float | None) -> float | None:
        if self.accept == "threshold":
            if log_bound is not None:
                raise ValueError("log_bound is of use with accept='exact' alone")
            return None
        if self.block_size is not None:
            raise ValueError(
                "accept='exact' is for whole draws: weights in the middle of a sequence have no "
                "bound that helps; leave block out"
            )
        if log_bound is None or not math.isfinite(log_bound):
            raise ValueError(
                "accept='exact' needs log_bound=, a finite bound on beta * reward + log(target / "
                f"draft) over all values; got {log_bound}"
            )
        return float(log_bound)

    @property
    def _debiased(self) -> bool:
        return self.accept == "threshold" and self.fallback == "debiased"

    def _rule(self, run: Run) -> Rule:
        if self.log_bound is not None:
            return ExactRule(self.beta, self.n, self.log_bound)
        return ThresholdRule(self.beta, self.n, self.threshold, self._debiased, self.max_tries)

    @property
    def _always_kept(self) -> bool:
        return self.log_bound is None and self.threshold == -math.inf

    def _result(self, run: Run, kept: Kept, cost: Cost, info: dict[str, float]) -> WeightedSamples:
        means = kept.log_means
        assert means is not None
        stats = {"reward": kept.reward, "accepted": kept.accepted, "capped": kept.capped}
        residual: Tensor | None = None
        if self._always_kept:
            residual, stats["lost"] = means, means == -math.inf
        if self.block_size is None or self._always_kept:
            log_z, error = log_evidence(means)
        else:
            log_z = error = means.new_tensor(math.nan)
        spread = float(summarize(means).effective_sample_size)
        if residual is not None and spread:
            info["kl_bound_estimate"] = math.log(len(means) / spread)
        result = WeightedSamples(
            kind="iid",
            samples=kept.samples,
            log_weights=equal_log_weights(log_z, len(means)),
            log_normalizer=log_z,
            log_normalizer_error=error,
            residual_log_weights=residual,
            certificate=self._certificate(kept, residual),
            cost=cost,
            stats=stats,
            beta=self.beta,
            info={**self._settings(), **info},
            base=kept.base,
            sampler=type(self).__name__,
            program=self.program,
            args=run.args,
            kwargs=run.kwargs,
        )
        self._warn(result)
        return result

    def _settings(self) -> dict[str, float]:
        """What the law of the draws depends on."""
        if self.log_bound is not None:
            return {"n": float(self.n), "accept_log_bound": self.log_bound}
        debiased = float(self._debiased)
        return {"n": float(self.n), "threshold": self.threshold, "debiased": debiased}

    def _certificate(self, kept: Kept, residual: Tensor | None) -> Certificate:
        whole = self.block_size is None
        parts = "" if whole else f", by blocks of {self.block_size} steps"
        if self.log_bound is not None:
            misses = int((kept.accepted < 1.0).sum())
            bound = miss_upper(misses, len(kept.accepted), self.confidence)
            return Certificate(
                target="joint tilt",
                law="bounded",
                total_variation=bound,
                confidence=self.confidence,
                covers=f"independent draws; of up to n={self.n} draws of the draft one is accepted "
                "exactly, else the target's soft best-of-n stands in; the bound was checked on "
                "every draw of the draft",
                excludes="whether log_bound holds where the draft did not draw",
            )
        law = f"the {self.fallback} GSI law (n={self.n}, threshold {self.threshold:g}){parts}"
        estimate = None
        if residual is not None and bool((residual > -math.inf).any()):
            ratio = (residual - log_mean_exp(residual)).exp()
            estimate = min(1.0, 0.5 * float((ratio - 1.0).abs().mean()))
        excludes = [self._bias()]
        if not whole:
            excludes.append(
                "whether the values are exact, which the user states"
                if self.exact_values
                else "the error of the values, whose bias stays however large n is"
            )
        if bool(kept.capped.any()):
            excludes.append(
                f"{int(kept.capped.sum())} draws whose fallback found nothing below the threshold "
                f"in {self.max_tries} tries"
            )
        sound = not self._bias() and (whole or self.exact_values)
        return Certificate(
            target="joint tilt",
            law="consistent" if sound else "search",
            budget="n" if sound else None,
            estimated_total_variation=estimate,
            covers=f"independent draws of {law}"
            + (
                ", which residual_log_weights correct to the joint tilt"
                if residual is not None
                else ""
            ),
            excludes="; ".join(text for text in excludes if text),
        )

    def _bias(self) -> str:
        if not math.isfinite(self.threshold) or self._debiased:
            return ""
        return (
            "the bias of the threshold, which stays however large n is: values above it come from "
            "draft and target alike"
        )

    def _warn(self, result: WeightedSamples) -> None:
        excluded = int((result.stats["reward"] == -math.inf).sum())
        lost = int(result.stats.get("lost", result.stats["reward"] == -math.inf).sum())
        if lost == len(result) or excluded == len(result):
            raise ZeroWeights(
                f"every draw has weight zero, as have all {self.n} draws to choose from: the "
                "reward is -inf wherever the models sampled",
                result,
            )
        if lost:
            warnings.warn(
                f"{lost} of {len(result)} draws have weight zero, as have all {self.n} draws to "
                "choose from; raise n",
                SamplerWarning,
                stacklevel=5,
            )
        capped = int(result.stats["capped"].sum())
        if capped:
            warnings.warn(
                f"{capped} of {len(result)} draws were rejected and max_tries={self.max_tries} "
                "choices among draws of the target gave none below the threshold; the last of "
                "them was kept (stats['capped'])",
                SamplerWarning,
                stacklevel=5,
            )
