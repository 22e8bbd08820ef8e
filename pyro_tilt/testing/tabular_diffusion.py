# SPDX-License-Identifier: Apache-2.0
"""Masked diffusion over short sequences, small enough for tables of all states."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_tilt import rewards
from pyro_tilt.poutine.scan import scan
from pyro_tilt.testing.step_program import StepProgram

__all__ = ["TabularMaskedDiffusion", "tabular_masked_diffusion"]


@dataclass(frozen=True)
class TabularMaskedDiffusion(StepProgram):
    r"""
    A masked diffusion whose kernels, laws and soft values are tables over S states.

    A state is a sequence over the vocabulary and the mask, written in base V + 1 with the mask as
    the last digit and the first position most significant. Site ``x_T`` is all masks; sites
    ``x_{T-1}``, ..., ``x_0`` follow the kernels.

    :ivar kernels: ``kernels[t][i, j]`` is the probability of :math:`x_t = j` after
        :math:`x_{t+1} = i`, shape (T, S, S).
    :ivar marginals: ``marginals[t]`` is the base law of :math:`x_t`, shape (T + 1, S).
    :ivar log_soft_values: log of :math:`E[e^{\beta r(x_0)} \mid x_t]`, shape (T + 1, S); -inf
        where nothing is left.
    :ivar targets: ``targets[t]`` is the aligned law of :math:`x_t`, shape (T + 1, S).
    :ivar optimal_kernels: the kernels of the aligned chain, shape (T, S, S); rows of states
        without future mass are those of the base.
    :ivar reward_table: the reward of each state, shape (S,); 0 for states with masks, which the
        last step never leaves.
    :ivar data: the law of sequences that the exact denoiser was made from, shape (S,). The
        chain's own law ``marginals[0]`` differs from it, as positions are unmasked in parallel.
    :ivar digits: the digits of each state, shape (S, length).
    """

    kernels: Tensor
    marginals: Tensor
    log_soft_values: Tensor
    targets: Tensor
    optimal_kernels: Tensor
    reward_table: Tensor
    data: Tensor
    digits: Tensor


def tabular_masked_diffusion(
    *,
    beta: float = 1.5,
    vocabulary: int = 3,
    length: int = 3,
    num_steps: int = 3,
    seed: int = 0,
) -> TabularMaskedDiffusion:
    r"""
    Absorbing-state diffusion with the exact denoiser of a random law of sequences.

    From time :math:`t` to :math:`s = t - 1` a masked position stays masked with probability
    :math:`s / t`, otherwise it takes a token from its conditional law given the unmasked
    positions, independently of the other positions (Sahoo et al., 2024, arXiv 2406.07524). Rewards
    of sequences lie in [-1.5, 0.5], but one of them is -inf.

    :param beta: multiplies the reward.
    :param vocabulary: the number V of tokens.
    :param length: the number of positions; there are (V + 1) ** length states.
    :param num_steps: the number T of steps.
    :param seed: of the law of sequences and the rewards.

    >>> case = tabular_masked_diffusion()
    >>> case.kernels.shape, int((case.targets[0] > 0).sum())
    (torch.Size([3, 64, 64]), 26)
    """
    generator = torch.Generator().manual_seed(seed)
    digits = torch.cartesian_prod(*[torch.arange(vocabulary + 1)] * length).reshape(-1, length)
    complete = (digits < vocabulary).all(-1)
    scores = 1.2 * torch.randn(len(digits), generator=generator, dtype=torch.float64)
    data = scores.masked_fill(~complete, -math.inf).softmax(0)
    table = 2.0 * torch.rand(len(digits), generator=generator, dtype=torch.float64) - 1.5
    table[complete.nonzero()[-2]] = -math.inf
    table[~complete] = 0.0
    wrong = torch.randn(num_steps + 1, len(digits), generator=generator, dtype=torch.float64)

    kernels = _kernels(digits, data, vocabulary, num_steps)
    initial = torch.zeros(len(digits), dtype=torch.float64)
    initial[-1] = 1.0
    marginals = [initial]
    for t in range(num_steps - 1, -1, -1):
        marginals.append(marginals[-1] @ kernels[t])
    soft = [(beta * table).exp() if beta else torch.ones_like(table)]
    for t in range(num_steps):
        soft.append(kernels[t] @ soft[-1])
    values, laws = torch.stack(soft), torch.stack(marginals[::-1])
    targets = laws * values / values[-1, -1]
    optimal = kernels * values[:-1].unsqueeze(1)
    optimal = torch.where(values[1:, :, None] > 0, optimal / values[1:, :, None], kernels)
    log_z = float(values[-1, -1].log())
    reward_mean = _mean(targets[0], table)
    return TabularMaskedDiffusion(
        program=_program(initial, kernels),
        guide=_program(initial, optimal),
        reward=rewards.Bounded(lambda state: table[state], low=-math.inf, high=0.5),
        beta=beta,
        log_normalizer=log_z,
        kl=beta * reward_mean - log_z,
        reward_mean=reward_mean,
        base_reward_mean=_mean(laws[0], table),
        num_steps=num_steps,
        initial_step=num_steps,
        log_soft_value=lambda state, t: values[t].log()[state],
        wrong_twist=lambda state, t: wrong[t][state],
        kernels=kernels,
        marginals=laws,
        log_soft_values=values.log(),
        targets=targets,
        optimal_kernels=optimal,
        reward_table=table,
        data=data,
        digits=digits,
    )


def _kernels(digits: Tensor, data: Tensor, vocabulary: int, num_steps: int) -> Tensor:
    masked = digits == vocabulary
    # consistent[i, j]: sequence j agrees with state i wherever i is unmasked.
    consistent = (masked.unsqueeze(1) | (digits.unsqueeze(1) == digits)).all(-1)
    joint = consistent * data
    given = joint / joint.sum(-1, keepdim=True)
    tokens = torch.nn.functional.one_hot(digits, vocabulary + 1).double()
    denoised = torch.einsum("ij,jlv->ilv", given, tokens)
    kernels = []
    for t in range(num_steps):
        stay = t / (t + 1)
        moved = stay * tokens + (1.0 - stay) * denoised
        law = torch.where(masked.unsqueeze(-1), moved, tokens)
        kernels.append(torch.einsum("ilv,jlv->ijl", law, tokens).prod(-1))
    return torch.stack(kernels)


def _program(initial: Tensor, kernels: Tensor) -> Callable[[], Tensor]:
    # Logits keep an impossible state impossible; probabilities are clamped away from zero.
    start, logits = initial.log(), kernels.log()

    def step(x: Tensor, t: int) -> Tensor:
        return pyro.sample(f"x_{t}", dist.Categorical(logits=logits[t][x]))

    def masked_diffusion() -> Tensor:
        x = pyro.sample(f"x_{len(kernels)}", dist.Categorical(logits=start))
        return scan("chain", step, x, range(len(kernels) - 1, -1, -1))

    return masked_diffusion


def _mean(law: Tensor, table: Tensor) -> float:
    return float((law * table)[law > 0].sum())
