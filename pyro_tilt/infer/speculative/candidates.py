# SPDX-License-Identifier: Apache-2.0
"""Draws of two models that wait for a choice, and where they come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from pyro_tilt.ops.importance import as_double
from pyro_tilt.rewards import log_tilt

__all__ = ["Candidates", "Source", "draw_column"]


@dataclass
class Candidates:
    r"""
    Rows to choose from, those of a chain side by side.

    :ivar reward: r of each row, (N,), or value / beta in the middle of a sequence.
    :ivar log_ratio: :math:`\log \pi_B / \pi_S` of what the row added; None where only one of the
        models was asked.
    :ivar payload: what the source needs of the rows.
    """

    reward: Tensor
    log_ratio: Tensor | None
    payload: Any

    def log_weights(self, beta: float) -> Tensor:
        r"""Weights towards the tilt of the target, :math:`\beta r + \log \pi_B/\pi_S`."""
        tilts = as_double(log_tilt(self.reward, beta))
        return tilts if self.log_ratio is None else tilts + self.log_ratio

    def tilted_reward(self, beta: float) -> Tensor:
        r""":math:`\tilde r = r + \frac1\beta \log \pi_B/\pi_S`, exactly r for equal models."""
        reward = as_double(self.reward)
        return reward if self.log_ratio is None else reward + self.log_ratio / beta

    def take(self, rows: Tensor) -> Candidates:
        """
        Some of the rows.

        :param rows: indices.
        """
        ratio = None if self.log_ratio is None else self.log_ratio[rows.to(self.log_ratio.device)]
        reward = self.reward[rows.to(self.reward.device)]
        return Candidates(reward, ratio, self.payload.take(rows))

    def put(self, rows: Tensor, new: Candidates) -> None:
        """
        Replaces rows.

        :param rows: which.
        :param new: as many rows.
        """
        place = rows.to(self.reward.device)
        self.reward = self.reward.index_copy(0, place, new.reward.to(self.reward))
        self.payload = self.payload.put(rows, new.payload)


class Source(Protocol):
    """
    Gives draws of a draft and of a target, for chains that share nothing but the models.

    :ivar reward_calls: rows that the reward was evaluated at.
    """

    reward_calls: int

    def draft(self, chains: Tensor, n: int, *, scored: bool = True) -> Candidates:
        """
        Draws of the draft.

        :param chains: for which, (C,).
        :param n: draws of each; row ``c * n + i`` is draw i of ``chains[c]``.
        :param scored: whether the target scores them.
        """
        ...

    def target(self, chains: Tensor, n: int, *, scored: bool) -> Candidates:
        """
        Draws of the target.

        :param chains: for which.
        :param n: draws of each.
        :param scored: whether the draft scores them.
        """
        ...


def draw_column(log_weights: Tensor, generator: torch.Generator) -> Tensor:
    """
    One column of each row, by its weight; the first where all weights are zero.

    :param log_weights: shape (C, n).
    :param generator: of the noise.
    """
    noise = torch.empty(log_weights.shape, dtype=torch.float64)
    noise = noise.exponential_(generator=generator).clamp_(min=1e-300).log_()
    # The largest after Gumbel noise falls by weight.
    return (log_weights - noise.to(log_weights)).argmax(-1)
