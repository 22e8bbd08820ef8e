# SPDX-License-Identifier: Apache-2.0
"""Steps of a small model where their reward is good enough, else those of a large one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from pyro_tilt.infer.best_of_n import align_for_choice, warn_of_excluded
from pyro_tilt.infer.certificate import Certificate
from pyro_tilt.infer.cost import Cost
from pyro_tilt.infer.sampler import Run
from pyro_tilt.infer.speculative.blocks import Value
from pyro_tilt.infer.speculative.rules import RewardRule, Rule, check_threshold
from pyro_tilt.infer.speculative.two_models import Kept, TwoModelSampler
from pyro_tilt.infer.weighted_samples import WeightedSamples
from pyro_tilt.poutine.align import Of

__all__ = ["RewardGuided"]


class RewardGuided(TwoModelSampler):
    r"""Reward-guided speculative decoding: a draw of the draft if its reward is at least
    :math:`\delta`, otherwise a draw of the target.

    .. math:: P = 1[r \ge \delta]\, \pi_S + \pi_S(r < \delta)\, \pi_B

    (Liao et al. 2025, arXiv 2501.19324; :func:`pyro_tilt.language.laws.reward_guided`). The mean
    reward exceeds that of the draft if and only if the target's mean reward exceeds that of the
    draft's rejected draws (derived here). A block at a time, the rule acts on values of the carry.

    Certificate: *exact*, for this law, block by block as well. It is no tilt of either model for
    any beta, so that there is neither a beta nor an evidence (``log_normalizer`` is nan).

    :param program: the target, a Pyro program without observations; see
        :class:`~pyro_tilt.infer.Sampler` for it and all options not named here.
    :param draft: a program of the same sites; it may exclude what the target does not.
    :param reward: the reward.
    :param of: what it reads, as in :func:`~pyro_tilt.poutine.align`.
    :param float threshold: :math:`\delta`; may be infinite.
    :param int block: steps of a :func:`~pyro_tilt.scan` after which to judge; None for whole draws.
    :param value: with ``block``, what is judged before the last block: a function of the target's
        carry and of the element of ``xs`` that made it, such as a process reward.
    :param bool score_drafts: of whole draws, whether the target scores the draft's draws as well:
        a row of the target for each, and a draft that covers the target, in return for base draws
        by which the divergence of the law from the target can be estimated.
    :raises TypeError: for a beta.
    :raises ValueError: for sites or vocabularies that differ, a NaN threshold.
    :raises ZeroWeights: if every draw has reward -inf; the draws are attached to the error.

    Example::

        >>> import pyro, torch, pyro.distributions as dist
        >>> def model(probs):
        ...     return lambda: pyro.sample("x", dist.Categorical(torch.tensor(probs)))
        >>> result = RewardGuided(
        ...     model([0.2, 0.8]), draft=model([0.5, 0.5]), reward=lambda x: x.double(),
        ...     threshold=0.5, num_samples=20_000, seed=0,
        ... ).run()
        >>> round(result.expectation("x").item(), 1), result.certificate.law  # .5 + .5 * .8
        (0.9, 'exact')
    """

    def __init__(
        self,
        program: Callable[..., Any],
        *,
        draft: Callable[..., Any],
        reward: Any,
        of: Of = None,
        threshold: float = 0.7,
        block: int | None = None,
        value: Value | None = None,
        score_drafts: bool = False,
        **options: Any,
    ) -> None:
        if score_drafts and block is not None:
            raise ValueError("score_drafts is for whole draws; leave block out")
        program = align_for_choice(type(self).__name__, program, reward, of, options)
        super().__init__(program, draft=draft, block=block, value=value, **options)
        self.threshold = check_threshold(threshold)
        self._weighs = bool(score_drafts)

    def _rule(self, run: Run) -> Rule:
        return RewardRule(self.threshold, self._weighs)

    def _result(self, run: Run, kept: Kept, cost: Cost, info: dict[str, float]) -> WeightedSamples:
        zeros = torch.zeros(len(kept.reward), dtype=torch.float64, device=kept.reward.device)
        parts = "" if self.block_size is None else f", blocks of {self.block_size} steps"
        result = WeightedSamples(
            kind="iid",
            samples=kept.samples,
            log_weights=zeros,
            log_normalizer=zeros.new_tensor(math.nan),
            log_normalizer_error=zeros.new_tensor(math.nan),
            certificate=Certificate(
                target=f"reward-guided law (threshold {self.threshold:g}{parts})",
                law="exact",
                covers="independent draws",
                excludes="any tilt of either model, which this law is not",
            ),
            cost=cost,
            stats={"reward": kept.reward, "accepted": kept.accepted},
            info={"threshold": self.threshold, **info},
            base=kept.base,
            sampler=type(self).__name__,
            program=self.program,
            args=run.args,
            kwargs=run.kwargs,
        )
        warn_of_excluded(result, "draft and target")
        return result
