# SPDX-License-Identifier: Apache-2.0
"""A hidden Markov model of two states with its evidence and smoothing laws."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_tilt import rewards
from pyro_tilt.poutine.scan import scan
from pyro_tilt.testing.step_program import StepProgram

__all__ = ["TwoStateHMM", "two_state_hmm"]


@dataclass(frozen=True)
class TwoStateHMM(StepProgram):
    r"""
    Two hidden states, Gaussian observations, a reward of the last state.

    Sites ``z_0`` and, for t = 1, ..., T, ``z_t`` with the observation ``y_t``.

    :ivar observations: :math:`y_1, \dots, y_T`, shape (T,).
    :ivar log_evidence: :math:`\log p(y_{1:T})`, without the reward.
    :ivar filtering: ``filtering[t]`` is the law of :math:`z_t` given :math:`y_{1:t}`, shape
        (T + 1, 2), without the reward.
    :ivar smoothing: ``smoothing[t]`` is the aligned law of :math:`z_t`, all observations and the
        reward included, shape (T + 1, 2).
    :ivar pairs: ``pairs[t]`` is the aligned law of :math:`(z_t, z_{t+1})`, shape (T, 2, 2).
    :ivar log_soft_values: log of :math:`E[p(y_{t+1:T} \mid z) e^{\beta r(z_T)} \mid z_t]`, shape
        (T + 1, 2).
    """

    observations: Tensor
    log_evidence: float
    filtering: Tensor
    smoothing: Tensor
    pairs: Tensor
    log_soft_values: Tensor


_INITIAL = torch.tensor([0.35, 0.65], dtype=torch.float64)
_TRANSITION = torch.tensor([[0.85, 0.15], [0.3, 0.7]], dtype=torch.float64)
_LEVELS = torch.tensor([-0.8, 1.1], dtype=torch.float64)
_NOISE = torch.tensor([0.9, 1.3], dtype=torch.float64)
_REWARD = torch.tensor([0.0, -1.0], dtype=torch.float64)


def two_state_hmm(
    *, beta: float = 0.8, length: int = 10, observations: Tensor | None = None, seed: int = 0
) -> TwoStateHMM:
    """
    A sticky chain of two states seen through noise, solved by forward-backward.

    :param beta: multiplies the reward, which is 0 in state 0 and -1 in state 1 at the end.
    :param length: the number of observations made up where none are given.
    :param observations: shape (T,).
    :param seed: of the observations made up.

    >>> case = two_state_hmm(length=4)
    >>> case.smoothing.shape, two_state_hmm(beta=0.0).kl == 0.0
    (torch.Size([5, 2]), True)
    """
    if observations is None:
        generator = torch.Generator().manual_seed(seed)
        observations = 1.3 * torch.randn(length, generator=generator, dtype=torch.float64) + 0.2
    y = observations.double()
    emission = dist.Normal(_LEVELS, _NOISE).log_prob(y.unsqueeze(-1))
    log_soft = _backward(emission, beta * _REWARD)
    log_evidence = float((_INITIAL.log() + _backward(emission, 0.0 * _REWARD)[0]).logsumexp(0))
    log_z = float((_INITIAL.log() + log_soft[0]).logsumexp(0))
    log_filter, steps = [_INITIAL.log()], _TRANSITION.log()
    for likelihood in emission:
        moved = (log_filter[-1].unsqueeze(-1) + steps).logsumexp(0) + likelihood
        log_filter.append(moved - moved.logsumexp(0))
    filtering = torch.stack(log_filter)
    smoothing = (filtering + log_soft).softmax(-1)
    pairs = filtering[:-1].unsqueeze(-1) + steps + (emission + log_soft[1:]).unsqueeze(-2)
    reward_mean = float(smoothing[-1] @ _REWARD)
    guide_logits = steps + (emission + log_soft[1:]).unsqueeze(-2)
    return TwoStateHMM(
        program=_program(_INITIAL.log(), steps.expand(len(y), 2, 2), y),
        guide=_program(_INITIAL.log() + log_soft[0], guide_logits, None),
        reward=rewards.Bounded(lambda state: _REWARD[state], low=-1.0, high=0.0),
        beta=beta,
        log_normalizer=log_z,
        kl=beta * reward_mean - (log_z - log_evidence),
        reward_mean=reward_mean,
        base_reward_mean=float(filtering[-1].exp() @ _REWARD),
        num_steps=len(y),
        initial_step=0,
        log_soft_value=lambda state, t: log_soft[t][state],
        wrong_twist=lambda state, t: 1.5 * torch.sin(2.0 * state.double() + 1.7 * t),
        observations=y,
        log_evidence=log_evidence,
        filtering=filtering.exp(),
        smoothing=smoothing,
        pairs=pairs.flatten(1).softmax(-1).reshape(-1, 2, 2),
        log_soft_values=log_soft,
    )


def _backward(emission: Tensor, terminal: Tensor) -> Tensor:
    values = [terminal]
    for likelihood in emission.flip(0):
        values.append((_TRANSITION.log() + likelihood + values[-1]).logsumexp(-1))
    return torch.stack(values[::-1])


def _program(initial: Tensor, logits: Tensor, observations: Tensor | None) -> Callable[[], Tensor]:
    def step(z: Tensor, t: int) -> Tensor:
        z = pyro.sample(f"z_{t}", dist.Categorical(logits=logits[t - 1][z]))
        if observations is not None:
            law = dist.Normal(_LEVELS[z], _NOISE[z])
            pyro.sample(f"y_{t}", law, obs=observations[t - 1])
        return z

    def hidden_markov() -> Tensor:
        z = pyro.sample("z_0", dist.Categorical(logits=initial))
        return scan("chain", step, z, range(1, len(logits) + 1))

    return hidden_markov
