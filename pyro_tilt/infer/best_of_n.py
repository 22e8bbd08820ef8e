# SPDX-License-Identifier: Apache-2.0
"""The best of several whole draws of a program: the baseline of every search."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch

from pyro_tilt.infer.certificate import Certificate
from pyro_tilt.infer.errors import SamplerWarning, ZeroWeights
from pyro_tilt.infer.pooled import BASE_DRAWS_KEPT, refuse_shared_minibatches
from pyro_tilt.infer.proposal import Draws, ProgramProposal
from pyro_tilt.infer.sampler import Run, Sampler, check_count
from pyro_tilt.infer.weighted_samples import BaseDraws, WeightedSamples
from pyro_tilt.poutine import align
from pyro_tilt.poutine.align import Of

__all__ = ["BestOfN"]


class BestOfN(Sampler):
    r"""Of ``n`` independent draws of the program, the one with the largest reward.

    A draw falls in the class :math:`C` of values with the same reward with probability

    .. math:: P(C) = F(r_C)^n - F(r_C^-)^n, \qquad F(s) = p(r \le s),\; F(s^-) = p(r < s),

    and within the class it follows the program; of equal rewards the first drawn is kept, which for
    independent draws gives the same law as a random choice. The Kullback-Leibler divergence from
    the program is at most :math:`\log n - (n - 1)/n`, attained by a reward without ties (Beirami et
    al. 2024, arXiv 2401.01879). A reward of -inf is the lowest class.

    Certificate: *exact*, for this order-statistic law. It is no joint tilt for any beta, so that
    there is neither a beta nor an evidence (``log_normalizer`` is nan).

    :param program: a Pyro program without observations; see :class:`~pyro_tilt.infer.Sampler`
        for it and all options not named here.
    :param reward: the reward, of which only the order counts.
    :param of: what the reward reads, as in :func:`~pyro_tilt.poutine.align`: a site or several; by
        default the return value.
    :param int n: draws to choose from.
    :param int block: steps of a :func:`~pyro_tilt.scan` after which to choose by ``value``; the
        sampler is then a :class:`~pyro_tilt.infer.BlockBestOfN`, whose options it takes. None
        chooses among whole draws.
    :raises TypeError: for a beta.
    :raises ValueError: if the program has observations, factors or an alignment of its own, of
        which a choice by reward alone would take no notice, or a plate whose minibatch the draws
        of a block would share.
    :raises ZeroWeights: if every draw has reward -inf; the draws are attached to the error.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> def program():
        ...     return pyro.sample("x", dist.Normal(0., 1.))
        >>> result = BestOfN(program, reward=lambda x: x, n=2, num_samples=50_000, seed=0).run()
        >>> result.certificate.target, result.cost.base_draws
        ('best-of-n law (n=2)', 100000)
        >>> round(result.expectation("x").item(), 2)  # 1 / sqrt(pi)
        0.56
    """

    def __new__(cls, *args: Any, block: int | None = None, **options: Any) -> Any:
        if block is None:
            return super().__new__(cls)
        # Blocks build on what is defined here.
        from pyro_tilt.infer.selection.block_best_of_n import BlockBestOfN

        return BlockBestOfN(*args, block=block, **{"n": 16, **options})

    def __init__(
        self,
        program: Callable[..., Any],
        *,
        reward: Any,
        of: Of = None,
        n: int = 16,
        block: None = None,
        **options: Any,
    ) -> None:
        refuse_value(type(self).__name__, options)
        self.n = check_count("n", n)
        program = align_for_choice(type(self).__name__, program, reward, of, options)
        super().__init__(program, **options)

    def _sample(self, run: Run) -> WeightedSamples:
        refuse_factors(type(self).__name__, run.proposal)
        refuse_shared_minibatches(run)
        kept: list[tuple[torch.Tensor, torch.Tensor]] = []
        draws, index, filled = [], [], 0
        with run.bar(self.num_samples) as bar:
            while filled < self.num_samples:
                count = min(self.num_samples - filled, max(1, self.block // self.n))
                best, place = self._best(run.proposal, count, kept)
                draws.append(best)
                index.append(place)
                filled += count
                bar.update(count)
        whole = Draws.cat(draws)
        result = WeightedSamples(
            kind="iid",
            samples=whole.samples,
            log_weights=torch.zeros_like(whole.log_weights),
            log_normalizer=whole.log_weights.new_tensor(math.nan),
            log_normalizer_error=whole.log_weights.new_tensor(math.nan),
            certificate=Certificate(
                target=f"best-of-n law (n={self.n})",
                law="exact",
                covers="independent draws; of equal rewards the first drawn",
            ),
            cost=run.cost(self.num_samples * self.n),
            stats={"reward": whole.reward, "index": torch.cat(index)},
            info={"n": float(self.n), "kl_upper_bound": math.log(self.n) - 1.0 + 1.0 / self.n},
            base=BaseDraws(
                reward=torch.cat([reward for reward, _ in kept])[:BASE_DRAWS_KEPT],
                log_factors=torch.cat([factors for _, factors in kept])[:BASE_DRAWS_KEPT],
            ),
            sampler=type(self).__name__,
            program=self.program,
            args=run.args,
            kwargs=run.kwargs,
        )
        warn_of_excluded(result, f"all {self.n} draws")
        return result

    def _best(
        self,
        proposal: ProgramProposal,
        count: int,
        kept: list[tuple[torch.Tensor, torch.Tensor]],
    ) -> tuple[Draws, torch.Tensor]:
        """The best of ``n`` for ``count`` slots, in several blocks where one slot needs them."""
        best, place, start = None, None, 0
        while start < self.n:
            width = min(self.n - start, max(1, self.block // count))
            batch = proposal.draw(count * width)
            if sum(len(reward) for reward, _ in kept) < BASE_DRAWS_KEPT:
                kept.append((batch.reward.clone(), batch.log_factors.clone()))
            # The first of equal maxima is what argmax returns.
            column = batch.reward.reshape(count, width).argmax(-1)
            rows = torch.arange(count, device=column.device)
            batch, column = batch.index(rows * width + column), column + start
            if best is not None and place is not None:
                later = (batch.reward > best.reward).long()
                batch = Draws.cat([best, batch]).index(rows + count * later)
                column = torch.stack([place, column])[later, rows]
            best, place, start = batch, column, start + width
        assert best is not None and place is not None
        return best, place


def align_for_choice(
    name: str, program: Callable[..., Any], reward: Any, of: Of, options: dict[str, Any]
) -> Callable[..., Any]:
    """
    The program with the reward that a choice goes by.

    :param name: of the sampler, for errors.
    :param program: a Pyro program.
    :param reward: the reward.
    :param of: what it reads.
    :param options: of the sampler, which may hold no beta.
    :raises TypeError: for a beta.
    :raises ValueError: without a reward.
    """
    refuse_beta(name, options)
    if reward is None:
        raise ValueError(f"{name} chooses by the reward alone: give reward=")
    return align(program, reward, 1.0, of=of)


def refuse_beta(name: str, options: dict[str, Any]) -> None:
    """Raises ``TypeError`` for a beta, which a choice of the largest reward has no use for."""
    if "beta" in options:
        raise TypeError(
            f"{name} has no beta: only the order of the rewards counts; n sets how far it goes"
        )


def refuse_value(name: str, options: dict[str, Any]) -> None:
    """Raises ``ValueError`` for options that only a choice by blocks has a use for."""
    given = [option for option in ("value", "exact_values") if option in options]
    if given:
        raise ValueError(
            f"{name} chooses among whole draws and has no use for "
            f"{' and '.join(given)}; give block= as well to choose after blocks of steps"
        )


def refuse_factors(name: str, proposal: ProgramProposal) -> None:
    """Raises ``ValueError`` where more than the reward weighs the draws of a program."""
    sites = proposal._sites
    if len(sites.tilts) != 1:
        raise ValueError(
            f"{name} chooses by one reward, but the program has {len(sites.tilts)} tilts; pass the "
            "base program and add the rewards up"
        )
    weighing = [*sites.factors, *(n for n in sites.unbounded if n in sites.latents)]
    tilt = next(n for n in reversed(sites.factors))
    others = [n for n in weighing if n != tilt]
    if others:
        raise ValueError(
            f"{name} chooses among draws of the program by reward alone, which would ignore the "
            f"observations, factors or weights of {others}; draw from the posterior first, add "
            "their log probability to the reward, or use a sampler that weighs them, such as "
            "ImportanceSampler or SMC"
        )


def warn_of_excluded(result: WeightedSamples, chosen_from: str) -> None:
    """Warns of draws whose reward is -inf; ``ZeroWeights`` where there are no others."""
    excluded = int((result.stats["reward"] == -math.inf).sum())
    if excluded == len(result):
        raise ZeroWeights(
            f"every draw has reward -inf: {chosen_from} of each were excluded by the reward", result
        )
    if excluded:
        warnings.warn(
            f"{excluded} of {len(result)} draws have reward -inf, where {chosen_from} had; raise "
            "n, or drop them by result.stats['reward']",
            SamplerWarning,
            stacklevel=5,
        )
