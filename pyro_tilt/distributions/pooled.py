# SPDX-License-Identifier: Apache-2.0
"""Draws of a tilt without a law of its own: rejection under a bound or a learned baseline."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyro_tilt.distributions.inspection import pilot_draws
from pyro_tilt.ops.baselines import chernoff_bound
from pyro_tilt.ops.importance import as_double, log_mean_exp
from pyro_tilt.ops.log_mgf import log_mgf
from pyro_tilt.ops.pool import MAX_BLOCK, PoolExhausted
from pyro_tilt.ops.pool_batched import pooled_rejection_batched
from pyro_tilt.rewards import Reward, evaluate, log_tilt

# Clipped mass that the learned baseline aims at, and the base draws that it learns from.
EPSILON = 0.01
PILOT_ROWS = 4096
PILOT_VALUES = 1 << 21
EXPONENTS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
MIN_EFFECTIVE = 50.0

# Proposals per law that a call may take, whatever it asks for, and more per draw.
MIN_PROPOSALS = 2_000_000
PROPOSALS_PER_DRAW = 10_000


@dataclass(frozen=True)
class Baseline:
    """
    What the log tilt is compared with, of the batch shape, and whether it bounds it.

    :ivar value: the baseline b; draws have law proportional to :math:`p\\,e^{\\min(A, b)}`.
    :ivar exact: whether b bounds the log tilt A, so that nothing is clipped.
    """

    value: Tensor
    exact: bool

    def expand(self, batch_shape: torch.Size) -> Baseline:
        return Baseline(self.value.expand(batch_shape), self.exact)


def upper_bound(reward: Reward, beta: float | Tensor) -> float | Tensor:
    """The bound of beta times the reward, for each beta of its own; ``inf`` where none is known."""
    low, high = reward.lower_bound, reward.upper_bound
    if not isinstance(beta, Tensor):
        return 0.0 if beta == 0 else beta * (high if beta > 0 else low)
    beta = as_double(beta.detach())
    bound = torch.where(beta > 0, beta * high, beta * low)
    return torch.where(beta == 0, torch.zeros_like(beta), bound)


def is_bounded(reward: Reward, beta: float | Tensor) -> bool:
    """Whether beta times the reward has a finite upper bound for every beta."""
    bound = upper_bound(reward, beta)
    return bool((bound < math.inf).all()) if isinstance(bound, Tensor) else bound < math.inf


def find_baseline(base: TorchDistributionMixin, reward: Reward, beta: float | Tensor) -> Baseline:
    """
    The bound of the log tilt where one is known, otherwise a learned Chernoff baseline.

    :param base: the base law.
    :param reward: the reward without beta.
    :param beta: what multiplies it.
    :raises ValueError: if a learned baseline meets a reward that is ``-inf`` on every base draw.
    """
    if is_bounded(reward, beta):
        bound = torch.as_tensor(upper_bound(reward, beta), dtype=torch.float64)
        return Baseline(bound.expand(base.batch_shape), True)
    values = (base.batch_shape + base.event_shape).numel()
    rows = min(PILOT_ROWS, PILOT_VALUES // max(1, values))
    draws = pilot_draws(base, max(rows, 512))
    with torch.no_grad():
        shape = draws.shape[: 1 + len(base.batch_shape)]
        log_tilts = log_tilt(evaluate(reward, draws, shape=shape, name="Tilted"), beta)
    log_tilts = as_double(log_tilts)
    if bool((log_tilts == -math.inf).all(0).any()):
        raise ValueError(
            f"Tilted: the reward is -inf for all of {len(draws)} draws of the base "
            "(in some batch element): the tilt has no mass there"
        )
    return Baseline(learned_baseline(log_tilts), False)


def learned_baseline(log_tilts: Tensor, epsilon: float = EPSILON) -> Tensor:
    r"""
    The smallest sharpened Chernoff baseline that the draws can support.

    .. math::

        b_\lambda = \tfrac1\lambda\bigl[\psi(1+\lambda) - \psi(1)
        + \log\frac{\lambda^\lambda}{(1+\lambda)^{1+\lambda}\,\epsilon}\bigr],
        \qquad \psi(s) = \log \mathbb{E}_p\, e^{sA},

    clips at most epsilon of the target's mass, since
    :math:`(1-e^{-u})_+ \le c_\lambda e^{\lambda u}`. An exponent counts only where the effective
    sample size of :math:`e^{(1+\lambda)A}` is large enough to estimate its mean; where none is, the
    largest log tilt seen takes its place. The baseline never lies below :math:`\psi(1)`, where
    it would clip mass and save nothing.

    Source: after S. Madhow et al., 2026, arXiv:2602.07738; the sharpened constant is ours.

    :param log_tilts: log tilts A of base draws, shape ``(n,) + batch_shape``.
    :param epsilon: clipped mass under the target that b may cost.

    >>> import torch
    >>> learned_baseline(torch.zeros(100)).item()
    0.0
    """
    values = log_tilts.movedim(0, -1)
    log_z = log_mean_exp(values)
    lam = values.new_tensor(EXPONENTS)
    psi = log_mgf(values, 1 + lam)
    bounds = chernoff_bound(psi.value, log_z.unsqueeze(-1), lam, epsilon)
    best = torch.where(psi.trusted(MIN_EFFECTIVE), bounds, math.inf).amin(-1)
    best = torch.where(best < math.inf, best, values.amax(-1))
    return torch.maximum(best, log_z)


@dataclass(frozen=True)
class TiltSampler:
    """
    Pooled rejection from the base, every batch element filling slots of its own.

    :ivar base: proposals.
    :ivar reward: the reward without beta.
    :ivar beta: what multiplies it.
    :ivar baseline: what the log tilt is compared with.
    """

    base: TorchDistributionMixin
    reward: Reward
    beta: float | Tensor
    baseline: Baseline

    def sample(self, sample_shape: torch.Size) -> Tensor:
        """
        Draws of shape sample + batch + event.

        :param sample_shape: shape of independent draws.
        :raises RuntimeError: if the allowance of proposals is spent, naming the acceptance rate.
        :raises ValueError: if the reward was ``-inf`` for every one of them.
        """
        num = sample_shape.numel()
        batch_shape = self.base.batch_shape
        seen = [-math.inf]

        def log_accept(values: Tensor) -> Tensor:
            shape = values.shape[: 1 + len(batch_shape)]
            rewards = evaluate(self.reward, values, shape=shape, name="Tilted")
            log_tilts = as_double(log_tilt(rewards, self.beta))
            if seen[0] == -math.inf:
                seen[0] = float(log_tilts.amax())
            return log_tilts - self.baseline.value.to(log_tilts)

        try:
            drawn = pooled_rejection_batched(
                lambda n: self.base.sample(torch.Size([n])),
                log_accept,
                batch_shape,
                num,
                max_block=max(1, MAX_BLOCK // max(1, self.base.event_shape.numel() // 8)),
                max_total=MIN_PROPOSALS + PROPOSALS_PER_DRAW * num,
            )
        except PoolExhausted as error:
            raise self._explain(error, seen[0]) from error
        return drawn.values.reshape(sample_shape + batch_shape + self.base.event_shape)

    def _explain(self, error: PoolExhausted, largest: float) -> Exception:
        rate = float(error.partial.acceptance_rate.min())
        tried = f"{error.partial.drawn} proposals of {type(self.base).__name__}"
        if largest == -math.inf:
            return ValueError(f"Tilted: the reward is -inf for all of {tried}: no mass is left")
        return RuntimeError(
            f"Tilted: {tried} did not fill the draws, the acceptance rate is {rate:.3g} "
            "(of the slowest batch element); lower beta, tighten the reward's upper bound, or "
            "sample a program aligned by align"
        )

    @staticmethod
    def describe(
        base: TorchDistributionMixin, reward: Reward, beta: float | Tensor
    ) -> tuple[str, str]:
        """The word and the reason for how a tilt without a law of its own is sampled."""
        if is_bounded(reward, beta):
            return "rejection", "the reward has an upper bound, so pooled rejection is exact"
        return (
            "lcb",
            "the reward has no known upper bound, so pooled rejection uses a Chernoff baseline "
            f"learned from base draws: consistent, aiming at {EPSILON} of clipped mass",
        )
