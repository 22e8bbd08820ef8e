# SPDX-License-Identifier: Apache-2.0
"""Programs whose aligned law is known exactly, to test samplers against.

Each is asymmetric on purpose: a symmetric target hides a wrong sign. All rewards are bounded above
by a bound the reward itself states, so that exact rejection runs through them as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_tilt import rewards
from pyro_tilt.poutine import align

__all__ = [
    "ConjugateGaussian",
    "ExactProgram",
    "TwoCategoricals",
    "conjugate_gaussian",
    "two_categoricals",
]


@dataclass(frozen=True)
class ExactProgram:
    """A program, a reward and a beta with the aligned law beside them.

    :ivar program: the base program.
    :ivar reward: the reward of its return value.
    :ivar beta: multiplies the reward.
    :ivar log_normalizer: exact log evidence of the joint tilt, observations included.
    :ivar kl: exact KL divergence of the aligned law from the program with its observations.
    :ivar reward_mean: exact mean reward under the aligned law.
    :ivar base_reward_mean: exact mean reward under the program with its observations.
    """

    program: Callable[..., Any]
    reward: rewards.Reward
    beta: float
    log_normalizer: float
    kl: float
    reward_mean: float
    base_reward_mean: float

    def aligned(self) -> Callable[..., Any]:
        """The aligned program."""
        return align(self.program, self.reward, self.beta)


@dataclass(frozen=True)
class TwoCategoricals(ExactProgram):
    """Two dependent categorical sites ``a`` and ``b``: 12 states, one of them excluded.

    :ivar log_base: log of the base joint of (a, b), shape (12,), with the observation's
        likelihood if there is one.
    :ivar log_tilt: beta times the reward, shape (12,).
    """

    log_base: Tensor
    log_tilt: Tensor

    @property
    def probabilities(self) -> Tensor:
        """The aligned law over states, shape (12,)."""
        return (self.log_base + self.log_tilt).softmax(0)

    @staticmethod
    def state(samples: dict[str, Tensor]) -> Tensor:
        """The state of each draw, shape (N,)."""
        return samples["a"] * 4 + samples["b"]


_PRIOR = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
_CONDITIONAL = torch.tensor(
    [[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1], [0.7, 0.1, 0.1, 0.1]], dtype=torch.float64
)
_LIKELIHOOD = torch.tensor(
    [[0.9, 0.5, 0.2, 0.6], [0.3, 0.8, 0.7, 0.4], [0.2, 0.6, 0.9, 0.5]], dtype=torch.float64
)
_REWARD = torch.tensor(
    [[0.0, -1.2, -0.4, -2.0], [-0.3, -math.inf, -0.9, -0.1], [-1.5, -0.2, -0.7, -1.1]],
    dtype=torch.float64,
)


def two_categoricals(*, beta: float = 1.5, observed: bool = False) -> TwoCategoricals:
    """Two categorical sites with a reward table, one entry of it -inf; optionally an observation.

    >>> case = two_categoricals()
    >>> case.probabilities.shape, float(case.probabilities[5])
    (torch.Size([12]), 0.0)
    """
    log_base = (_PRIOR.unsqueeze(-1) * _CONDITIONAL).log()
    if observed:
        log_base = log_base + _LIKELIHOOD.log()
    log_base = log_base.flatten()
    log_tilt = rewards.log_tilt(_REWARD.flatten(), beta)
    return TwoCategoricals(
        program=_observed_categoricals if observed else _categoricals,
        reward=rewards.Bounded(_table_reward, low=-math.inf, high=0.0),
        beta=beta,
        log_base=log_base,
        log_tilt=log_tilt,
        **_summaries(log_base, log_tilt, _REWARD.flatten()),
    )


def _summaries(log_base: Tensor, log_tilt: Tensor, reward: Tensor) -> dict[str, float]:
    def mean(log_law: Tensor, values: Tensor) -> float:
        law = log_law.softmax(0)
        return float((law * values)[law > 0.0].sum())

    log_z = float((log_base + log_tilt).logsumexp(0))
    log_evidence = float(log_base.logsumexp(0))
    aligned = log_base + log_tilt
    return {
        "log_normalizer": log_z,
        "kl": mean(aligned, log_tilt) - (log_z - log_evidence),
        "reward_mean": mean(aligned, reward),
        "base_reward_mean": mean(log_base, reward),
    }


def _categoricals() -> tuple[Tensor, Tensor]:
    a = pyro.sample("a", dist.Categorical(_PRIOR))
    b = pyro.sample("b", dist.Categorical(_CONDITIONAL[a]))
    return a, b


def _observed_categoricals() -> tuple[Tensor, Tensor]:
    a, b = _categoricals()
    success = torch.ones((), dtype=torch.float64)
    pyro.sample("y", dist.Bernoulli(_LIKELIHOOD[a, b]), obs=success)
    return a, b


def _table_reward(value: tuple[Tensor, Tensor]) -> Tensor:
    return _REWARD[value]


@dataclass(frozen=True)
class ConjugateGaussian(ExactProgram):
    """Two Gaussian sites ``z`` and ``x`` with a concave quadratic reward of ``x``.

    :ivar mean: aligned mean of (z, x), shape (2,).
    :ivar covariance: aligned covariance of (z, x), shape (2, 2).
    """

    mean: Tensor
    covariance: Tensor


_OFFSET, _SLOPE, _SCALE, _GOAL = 0.3, 0.5, 0.8, 1.2


def conjugate_gaussian(*, beta: float = 1.3) -> ConjugateGaussian:
    r"""z ~ N(0, 1), x | z ~ N(.3 + .5 z, .8), reward :math:`-(x - 1.2)^2`; all Gaussian.

    >>> case = conjugate_gaussian(beta=0.0)
    >>> round(case.mean[1].item(), 12), round(case.kl, 12) == 0.0
    (0.3, True)
    """
    base_mean = torch.tensor([0.0, _OFFSET], dtype=torch.float64)
    base_covariance = torch.tensor([[1.0, _SLOPE], [_SLOPE, _SLOPE**2 + _SCALE**2]]).double()
    pick = torch.tensor([0.0, 1.0], dtype=torch.float64)
    precision = base_covariance.inverse() + 2.0 * beta * torch.outer(pick, pick)
    covariance = precision.inverse()
    mean = covariance @ (base_covariance.inverse() @ base_mean + 2.0 * beta * _GOAL * pick)
    spread = float(base_covariance[1, 1])
    log_z = -0.5 * math.log1p(2.0 * beta * spread) - beta * (_OFFSET - _GOAL) ** 2 / (
        1.0 + 2.0 * beta * spread
    )
    reward_mean = -((float(mean[1]) - _GOAL) ** 2) - float(covariance[1, 1])
    return ConjugateGaussian(
        program=_two_gaussians,
        reward=rewards.Quadratic(
            torch.tensor(-1.0), torch.tensor(2.0 * _GOAL), torch.tensor(-(_GOAL**2))
        ),
        beta=beta,
        log_normalizer=log_z,
        kl=beta * reward_mean - log_z,
        reward_mean=reward_mean,
        base_reward_mean=-((_OFFSET - _GOAL) ** 2) - spread,
        mean=mean,
        covariance=covariance,
    )


def _two_gaussians() -> Tensor:
    z = pyro.sample("z", dist.Normal(torch.tensor(0.0), torch.tensor(1.0)))
    return pyro.sample("x", dist.Normal(_OFFSET + _SLOPE * z, torch.tensor(_SCALE)))
