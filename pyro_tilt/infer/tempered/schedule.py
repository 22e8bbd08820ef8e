# SPDX-License-Identifier: Apache-2.0
"""Temperatures: how far to go at once, and what a pilot run settled on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.optimize import brentq
from torch import Tensor

from pyro_tilt.ops.importance import effective_sample_size

__all__ = ["Schedule", "Stage", "Tuning", "check_schedule", "next_temperature", "scaled"]

_TOLERANCE, _RELATIVE, _STEP = 1e-7, 1e-8, 1e-300


@dataclass(frozen=True, eq=False)
class Tuning:
    """
    How a kernel moves at one temperature.

    :ivar step_size: its step, in units of the shape.
    :ivar shape: lower Cholesky factor ``(D, D)`` or scales ``(D,)`` of the population; None for
        kernels that take theirs from the program.
    """

    step_size: float
    shape: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Stage:
    """
    One temperature and the moves made there.

    :ivar beta: temperature in (0, 1], the power of the weights.
    :ivar moves: number of moves.
    :ivar tuning: how they are made.
    """

    beta: float
    moves: int
    tuning: Tuning


@dataclass(frozen=True, eq=False)
class Schedule:
    """
    Everything that a pilot run adapted; with it frozen, the evidence is unbiased.

    :ivar stages: from the lowest temperature to one.
    :ivar kernel: the kernel that was tuned.

    >>> Schedule((Stage(1.0, 2, Tuning(0.5)),), "pcn").betas
    [1.0]
    """

    stages: tuple[Stage, ...]
    kernel: str

    @property
    def betas(self) -> list[float]:
        """The temperatures."""
        return [stage.beta for stage in self.stages]


def check_schedule(schedule: Sequence[float]) -> list[float]:
    """
    The temperatures of a list, without a leading zero.

    :param schedule: increasing numbers, the last of them 1.
    :raises ValueError: otherwise.

    >>> check_schedule([0, 0.1, 1])
    [0.1, 1.0]
    """
    betas = [float(beta) for beta in schedule]
    if betas[:1] == [0.0]:
        betas = betas[1:]
    rising = all(low < high for low, high in zip([0.0, *betas], betas))
    if not betas or not rising or betas[-1] != 1.0:
        raise ValueError(
            f"schedule must increase from above 0 to exactly 1, got {list(schedule)!r}; or pass "
            "'adaptive'"
        )
    return betas


def scaled(log_weights: Tensor, factor: float) -> Tensor:
    """
    ``factor * log_weights`` for a positive factor; weights of zero stay zero.

    :param log_weights: log weights, ``-inf`` allowed.
    :param factor: above zero.

    >>> scaled(torch.tensor([2.0, -torch.inf]), 0.5)
    tensor([1., -inf])
    """
    return log_weights * factor if factor > 0.0 else torch.zeros_like(log_weights)


def next_temperature(
    log_cumulative: Tensor, log_weights: Tensor, beta: float, threshold: float
) -> float:
    r"""
    The temperature at which the effective sample size falls to ``threshold * N``, at most one.

    The size is that of the weights as they will stand,
    :math:`W_i\, w_i^{\lambda' - \lambda}`, with :math:`W_i` those carried so far. Where
    weights of zero alone bring it below the threshold, it falls to that share of what they leave.

    :param log_cumulative: :math:`\log W_i`, ``(N,)``.
    :param log_weights: :math:`\log w_i`, ``(N,)``, at least one above ``-inf``.
    :param beta: the present temperature :math:`\lambda`.
    :param threshold: in (0, 1].

    >>> log_weights = torch.tensor([0.0, 40.0, 80.0, 120.0], dtype=torch.float64)
    >>> beta = next_temperature(torch.zeros(4), log_weights, 0.0, 0.5)
    >>> round(effective_sample_size(beta * log_weights).item(), 6)
    2.0
    """

    def size(power: float) -> float:
        return float(effective_sample_size(log_cumulative + scaled(log_weights, power)))

    alive = log_cumulative.masked_fill(log_weights == -math.inf, -math.inf)
    target, most = threshold * len(log_weights), float(effective_sample_size(alive))
    if most <= target:
        target = threshold * most
    if size(1.0 - beta) >= target:
        return 1.0
    # Short of the target by a hair, so that a threshold of one makes headway as well.
    target *= 1.0 - _TOLERANCE
    step = brentq(lambda power: size(power) - target, 0.0, 1.0 - beta, xtol=_STEP, rtol=_RELATIVE)
    return min(beta + max(step, _STEP), 1.0)
