# SPDX-License-Identifier: Apache-2.0
"""Groups of rows of which one goes on, and what they have gathered so far."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_tilt.infer.stepwise.reentry import Pass
from pyro_tilt.ops.importance import log_mean_exp
from pyro_tilt.rewards import log_tilt

Choose = Callable[[Tensor], Tensor]
"""Maps log weights (N, m) to the column kept in each row, (N,)."""


@dataclass
class Selected:
    """
    What a choice kept, one row per group.

    :ivar values: sites outside steps and of the last step.
    :ivar reward: the reward, or the log tilt where several betas occur; None without any.
    :ivar log_evidence: the sum over pieces of the log mean weight over the value that entered,
        (N,); -inf once all rows of a piece had weight zero.
    :ivar columns: which row of its group was kept at each choice so far, (N, choices).
    :ivar lost: whether a row of weight zero was kept at one of them, (N,).
    """

    values: dict[str, Tensor]
    reward: Tensor | None
    log_evidence: Tensor
    columns: Tensor
    lost: Tensor

    def __len__(self) -> int:
        return len(self.log_evidence)

    def kl_upper_bound(self, n: int) -> float:
        r"""
        A bound on the divergence from the program of a largest noisy score among n at every choice.

        A choice of row and noise is best-of-n, which costs :math:`\log n - (n - 1)/n` at most, and
        the row alone is no further away (derived here). Choices add up by the chain rule.

        :param n: rows that a choice is made from.
        """
        return self.columns.shape[-1] * (math.log(n) - 1.0 + 1.0 / n)


class Groups:
    """
    N groups of m rows: weights of the piece they are in, rewards and evidence up to here.

    :param count: the number N of groups.
    :param width: the number m of rows in each.
    :param choose: maps log weights (N, m) to columns.
    :ivar outer: values of the sites before the scan, of all rows.
    :ivar keep: the rows kept at the last choice, (N,).
    :ivar repeated: every group m times, (N * m,).
    """

    def __init__(self, count: int, width: int, choose: Choose) -> None:
        self.count, self.width, self.choose = count, width, choose
        self.outer: dict[str, Tensor] = {}
        self.keep = torch.arange(count) * width
        self.repeated = torch.arange(count).repeat_interleave(width)
        self._weights: Tensor | None = None
        self._entered: Tensor | None = None
        self._evidence: Tensor | None = None
        self._rewards: dict[Any, Tensor] = {}
        self._columns: list[Tensor] = []
        self._lost = torch.zeros(count, dtype=torch.bool)

    def __len__(self) -> int:
        return self.count

    def gather(self, taken: Pass) -> None:
        """
        Adds the factors and rewards of a part of the piece.

        :param taken: what the part drew, for all rows.
        """
        factors, weights = taken.log_factors, self._weights
        if factors is not None:
            self._weights = factors if weights is None else weights + factors
        for reward, beta in taken.rewards:
            old = self._rewards.get(float(beta))
            self._rewards[float(beta)] = reward if old is None else old + reward

    def choose_rows(self, value: Tensor | None, values: dict[str, Tensor], where: str) -> Selected:
        """
        Ends the piece: keeps a row of each group, from which all its rows go on.

        :param value: log value of the rows; None after the last piece.
        :param values: sites of the last part.
        :param where: names the place in an error.
        """
        weights, self._weights = self._weights, None
        if value is not None:
            weights = value if weights is None else weights + value
        if weights is None:
            like = next(iter(values.values()), torch.empty(0))
            weights = torch.zeros(len(self.repeated), dtype=torch.float64, device=like.device)
        if not float(weights.amax()) < math.inf:
            raise ValueError(f"{where}: the log weights hold NaN or +inf")
        groups = weights.reshape(self.count, self.width)
        column = self.choose(groups)
        self._columns.append(column)
        kept_weight = groups.gather(-1, column.unsqueeze(-1)).squeeze(-1)
        self._lost = self._lost.to(column.device) | (kept_weight == -math.inf)
        self.keep = torch.arange(self.count, device=column.device) * self.width + column
        mean = log_mean_exp(groups)
        if self._entered is not None:
            mean = mean - self._entered[:: self.width]
        self._evidence = mean if self._evidence is None else self._evidence + mean
        # A group that is lost goes on, with an evidence of zero whatever comes.
        self._entered = None if value is None else value.masked_fill(value == -math.inf, 0.0)
        kept = {name: _rows(each, self.keep) for name, each in {**self.outer, **values}.items()}
        self._rewards = {beta: _rows(each, self.keep) for beta, each in self._rewards.items()}
        columns = torch.stack(self._columns, -1)
        selected = Selected(kept, self._reward(), self._evidence, columns, self._lost)
        self._spread()
        return selected

    def _reward(self) -> Tensor | None:
        if len(self._rewards) <= 1:
            return next(iter(self._rewards.values()), None)
        return torch.stack([log_tilt(each, beta) for beta, each in self._rewards.items()]).sum(0)

    def _spread(self) -> None:
        """Gives all rows of a group what the kept one has."""
        index = self.keep[self.repeated.to(self.keep.device)]
        repeated = self.repeated
        if self._entered is not None:
            self._entered = _rows(self._entered, index)
        self.outer = {name: _rows(each, index) for name, each in self.outer.items()}
        self._rewards = {beta: _rows(each, repeated) for beta, each in self._rewards.items()}


def _rows(value: Tensor, index: Tensor) -> Tensor:
    return value.index_select(0, index.to(value.device))
