# SPDX-License-Identifier: Apache-2.0
"""The weights of a population of particles, from step to step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_tilt.infer.errors import ZeroWeights
from pyro_tilt.infer.smc.errors import TwistError
from pyro_tilt.ops.importance import as_double
from pyro_tilt.ops.resampling import by_weight
from pyro_tilt.rewards import log_tilt

SCHEMES = tuple(sorted(by_weight))


class Population:
    r"""
    Log weights, evidence and lineage of ``size`` particles.

    With increments :math:`g_t` and twists :math:`\psi_t` the weight grows by
    :math:`g_t \psi_t / \psi_{t-1}`; at a resampling its mean enters the evidence and the weights
    start again from one, so that

    .. math:: \hat Z = \prod_k \frac1N \sum_i w^{(i)}_{t_k}

    over the resampling steps :math:`t_k` and the end is unbiased under every rule for when to
    resample that looks at the past alone (Del Moral, Doucet and Jasra 2012, arXiv 1203.0464).

    :param size: number of particles.
    :param scheme: resampling scheme, one of ``SCHEMES``.
    :param threshold: resample below this share of ``size``; 1 always, 0 never.
    :param generator: of the resampling, apart from the program's random numbers.
    :param schedule: whether to resample at each step, in place of the threshold.
    """

    def __init__(
        self,
        size: int,
        *,
        scheme: str = "systematic",
        threshold: float = 0.5,
        generator: torch.Generator | None = None,
        schedule: Sequence[bool] | None = None,
    ) -> None:
        self.size = size
        self.scheme = scheme
        self.threshold = threshold * size
        self.always = threshold >= 1.0
        self.generator = generator
        self.schedule = schedule
        self.log_z = 0.0
        self.log_weights: Tensor | None = None
        self.twist: Tensor | None = None
        self.rewards: dict[float, Tensor] = {}
        self.roots: Tensor | None = None
        self._before: Tensor | None = None
        self._killed: Tensor | None = None
        self.resamplings = 0
        self.ess: list[float] = []
        self.log_normalizer: list[float] = []
        self.resampled: list[bool] = []
        self.parents: list[int | Tensor] = []

    def advance(self, increment: Tensor | None, twist: Tensor | None, where: str) -> Tensor | None:
        """
        Ends a step, and says who goes on.

        :param increment: log weight that the step adds, ``(size,)`` or 0-dim.
        :param twist: the new log twist, ``(size,)``; None keeps the old one.
        :param where: names the step in errors.
        :returns: ancestors ``(size,)``, or None where nobody is resampled.
        :raises ZeroWeights: if no particle has a weight.
        :raises TwistError: if the twist contradicts itself.
        """
        grown = log_weights = self._grown(increment)
        killed = None
        if twist is not None:
            twist = as_double(twist)
            log_weights = log_weights + (twist if self.twist is None else twist - self.twist)
        top, total, square, weights = _sums(log_weights)
        if not -math.inf < top < math.inf:
            # Off the hot path: NaN, inf or no weight at all, whatever the reason.
            log_weights, killed = self._untangle(increment, twist, where)
            top, total, square, weights = _sums(log_weights)
        if twist is not None:
            self.twist, self._before, self._killed = twist, grown, killed
        self.log_weights = log_weights
        if top == -math.inf:
            self._note(0.0, -math.inf, None)
            raise ZeroWeights(
                f"{where}: all {self.size} weights are zero: an observation, a reward or a twist "
                "is -inf for every particle. Draw more, steer the particles by a twist or a guide, "
                "or soften the constraint; the particles are in .partial of this error"
            )
        ess = total * total / square
        log_normalizer = self.log_z + top + math.log(total / self.size)
        if not self._due(ess):
            self._note(ess, log_normalizer, None)
            return None
        index = by_weight[self.scheme](weights, self.size, self.generator)
        self._note(ess, log_normalizer, index)
        self.log_z = log_normalizer
        # Nobody of weight zero is chosen, so that no twist of -inf is left.
        self.log_weights = self._before = self._killed = None
        self._move(index)
        return index

    def add_reward(self, reward: Tensor, beta: float) -> None:
        """Adds to the reward that each particle has earned so far under ``beta``."""
        old = self.rewards.get(beta)
        self.rewards[beta] = reward if old is None else old + reward

    def finish(self, increment: Tensor | None) -> Tensor:
        """
        The final log weights, ``(size,)``: what came after the last step in, the twist out.

        :param increment: log weight of what came after the last step.
        :raises TwistError: if a twist of ``-inf`` meets a weight that is not zero.
        """
        log_weights = self._grown(increment)
        if self.twist is not None:
            dead = self.twist == -math.inf
            log_weights = log_weights - self.twist
            if bool(dead.any()):
                alive = self._killed_by_twist(self.twist)
                alive = alive if increment is None else alive & (increment > -math.inf)
                if bool(alive.any()):
                    raise TwistError(
                        f"the last twist is -inf for {int(alive.sum())} of {self.size} particles "
                        "whose true weight is not zero, so that -inf would be taken from -inf; a "
                        "twist may be -inf only where no later factor leaves any mass"
                    )
                log_weights = log_weights.masked_fill(dead, -math.inf)
        log_weights = log_weights + self.log_z
        if not float(log_weights.amax()) < math.inf:
            bad = int((~(log_weights < math.inf)).sum())
            raise ValueError(f"the log weights of {bad} of {self.size} particles are NaN or +inf")
        return log_weights

    def interim(self) -> Tensor:
        """Log weights after the last step without the twist, for a run that broke off."""
        log_weights = self._grown(None)
        if self.twist is not None:
            gap = log_weights - self.twist
            log_weights = gap.masked_fill(self.twist == -math.inf, -math.inf)
        return log_weights + self.log_z

    def evidence_variance(self, log_weights: Tensor) -> Tensor | None:
        r"""
        Relative variance of the evidence from the genealogy of one run.

        .. math::

            \hat V = 1 - \Bigl(\frac{N}{N-1}\Bigr)^{R+1} \Bigl(1 - \sum_e M_e^2\Bigr)

        where :math:`M_e` is the final share of weight of the descendants of the initial particle
        e and R the number of resamplings. :math:`\hat Z^2 \hat V` is an unbiased estimate of the
        variance of :math:`\hat Z` where the steps of resampling are fixed (Lee and Whiteley 2018,
        arXiv 1509.00394, after Chan and Lai 2013); it may be negative. It asks for multinomial
        resampling; where no resampling occurred it is the usual variance of a mean.

        :param log_weights: the final log weights.
        :returns: a 0-dim tensor, or None where the scheme tells no error.
        """
        if self.resamplings and self.scheme != "multinomial":
            return None
        if self.size < 2 or not bool((log_weights > -math.inf).any()):
            return None
        share = log_weights.softmax(0)
        if self.roots is not None:
            share = torch.zeros_like(share).index_add_(0, self.roots.to(share.device), share)
        factor = (self.size / (self.size - 1)) ** (self.resamplings + 1)
        return 1.0 - factor * (1.0 - share.square().sum())

    def evidence_error(self, log_weights: Tensor) -> Tensor | None:
        """
        Standard error of the log evidence, from :meth:`evidence_variance`.

        :param log_weights: the final log weights.
        :returns: a 0-dim tensor, or None where the scheme tells no error.
        """
        variance = self.evidence_variance(log_weights)
        return None if variance is None else variance.clamp(min=0.0).sqrt()

    def reward(self, like: Tensor) -> tuple[Tensor | None, float | None]:
        """The reward of each particle and the beta that multiplies it; None without rewards."""
        if not self.rewards:
            return None, None
        if len(self.rewards) == 1:
            ((beta, reward),) = self.rewards.items()
            return reward.expand(self.size), beta
        tilts = [as_double(log_tilt(value, beta)) for beta, value in self.rewards.items()]
        return torch.stack([tilt.expand(self.size) for tilt in tilts]).sum(0), 1.0

    def steps(self) -> dict[str, Tensor]:
        """What each step looked like, by name; each ``(T,)``."""
        return {
            "ess": torch.tensor(self.ess, dtype=torch.float64),
            "log_normalizer": torch.tensor(self.log_normalizer, dtype=torch.float64),
            "resampled": torch.tensor(self.resampled, dtype=torch.bool),
            "unique_ancestors": torch.tensor([int(n) for n in self.parents], dtype=torch.int64),
        }

    def _grown(self, increment: Tensor | None) -> Tensor:
        log_weights = self.log_weights
        if increment is None:
            if log_weights is None:
                if self.twist is not None:
                    return torch.zeros_like(self.twist)
                return torch.zeros(self.size, dtype=torch.float64)
            return log_weights
        if log_weights is None:
            return as_double(increment if increment.dim() else increment.expand(self.size))
        return log_weights + increment

    def _due(self, ess: float) -> bool:
        if self.schedule is not None:
            step = len(self.ess)
            return step < len(self.schedule) and bool(self.schedule[step])
        return self.always or ess < self.threshold

    def _move(self, index: Tensor) -> None:
        self.resamplings += 1
        self.roots = index if self.roots is None else self.roots.index_select(0, index)
        if self.twist is not None:
            self.twist = self.twist.index_select(0, index.to(self.twist.device))
        for beta, value in self.rewards.items():
            if value.dim():
                self.rewards[beta] = value.index_select(0, index.to(value.device))

    def _note(self, ess: float, log_normalizer: float, index: Tensor | None) -> None:
        self.ess.append(ess)
        self.log_normalizer.append(log_normalizer)
        self.resampled.append(index is not None)
        self.parents.append(self.size if index is None else torch.bincount(index).count_nonzero())

    def _killed_by_twist(self, twist: Tensor) -> Tensor:
        """Who has weight zero because of the twist alone, and not by a factor as well."""
        if self._killed is not None:
            return self._killed
        if self._before is None:
            return torch.zeros_like(twist, dtype=torch.bool)
        return (twist == -math.inf) & (self._before > -math.inf)

    def _untangle(
        self, increment: Tensor | None, twist: Tensor | None, where: str
    ) -> tuple[Tensor, Tensor | None]:
        """The same sum where NaN, infinities or no weights at all are among the terms."""
        if twist is not None:
            for kind, bad in (("NaN", twist.isnan()), ("+inf", twist == math.inf)):
                if bool(bad.any()):
                    raise TwistError(
                        f"{where}: the twist is {kind} for {int(bad.sum())} of {self.size} "
                        "particles; it is the log of an expectation, finite or -inf"
                    )
        log_weights = self._grown(increment)
        if not float(log_weights.amax()) < math.inf:
            count = int((~(log_weights < math.inf)).sum())
            raise ValueError(
                f"{where}: the log weights of {count} of {self.size} particles are NaN or +inf, "
                "from an observation, a factor or a proposal of that step"
            )
        if twist is None:
            return log_weights, None
        if self.twist is None:
            return log_weights + twist, None
        dead = self.twist == -math.inf
        killed = self._killed_by_twist(self.twist)
        if increment is not None:
            killed = killed & (increment > -math.inf)
        risen = killed & (twist > -math.inf)
        if bool(risen.any()):
            raise TwistError(
                f"{where}: the twist of {int(risen.sum())} of {self.size} particles was -inf (no "
                "later mass) and is finite now, so that -inf would be taken from -inf; a twist may "
                "be -inf only where no later factor leaves any mass"
            )
        killed = killed | ((twist == -math.inf) & (log_weights > -math.inf))
        return (log_weights + twist - self.twist).masked_fill(dead, -math.inf), killed


def _sums(log_weights: Tensor) -> tuple[float, float, float, Tensor]:
    """Largest log weight, sum and sum of squares of the weights relative to it, and these."""
    top = log_weights.amax()
    weights = (log_weights - top).exp_()
    sums = top, weights.sum(), torch.dot(weights, weights)
    if weights.is_cpu:
        return sums[0].item(), sums[1].item(), sums[2].item(), weights
    # One transfer instead of three.
    values: Any = torch.stack(sums).tolist()
    return values[0], values[1], values[2], weights
