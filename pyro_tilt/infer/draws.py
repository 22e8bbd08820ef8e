# SPDX-License-Identifier: Apache-2.0
"""Draws of a proposal with their weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class Draws:
    """
    Draws of a proposal with their weights.

    :ivar samples: values of latent and deterministic sites, ``(n,)`` + shape in a plain run.
    :ivar reward: ``(n,)``; ``beta * reward`` is the log tilt. Sums over plates are float64.
    :ivar log_factors: ``(n,)`` float64, from observations, other factors and the guide.
    :ivar log_weights: ``(n,)`` float64, ``log_factors + beta * reward``.

    >>> zeros = torch.zeros(3, dtype=torch.float64)
    >>> draws = Draws({"x": torch.arange(3.0)}, torch.ones(3), zeros, zeros + 2.0)
    >>> draws.index([2, 0]).samples["x"]
    tensor([2., 0.])
    >>> len(Draws.cat([draws, draws]))
    6
    """

    samples: dict[str, Tensor]
    reward: Tensor
    log_factors: Tensor
    log_weights: Tensor

    def __len__(self) -> int:
        return len(self.log_weights)

    def index(self, indices: Any) -> "Draws":
        """
        The draws at ``indices``.

        :param indices: a tensor of indices, a boolean mask or a slice.
        """
        return Draws(
            {name: value[indices] for name, value in self.samples.items()},
            self.reward[indices],
            self.log_factors[indices],
            self.log_weights[indices],
        )

    @staticmethod
    def cat(parts: Sequence["Draws"]) -> "Draws":
        """
        The draws of all parts, in order.

        :param parts: draws of one proposal, at least one.
        :raises ValueError: if there are none.
        """
        if not parts:
            raise ValueError("Draws.cat: no parts")
        return Draws(
            {name: torch.cat([p.samples[name] for p in parts]) for name in parts[0].samples},
            torch.cat([p.reward for p in parts]),
            torch.cat([p.log_factors for p in parts]),
            torch.cat([p.log_weights for p in parts]),
        )
