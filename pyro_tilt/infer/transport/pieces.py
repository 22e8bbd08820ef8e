# SPDX-License-Identifier: Apache-2.0
"""Rewards whose proximal maps are known beyond those of pyro_tilt.rewards."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_tilt.rewards import Reward, as_reward

__all__ = ["MaxOf", "TokenScores"]


class TokenScores(Reward):
    r"""
    A score for every token at every position, added up: :math:`r(x) = \sum_i \varphi_i(x_i)`.

    :param scores: :math:`\varphi`, shape (length, vocabulary).
    :raises ValueError: for another number of dimensions, or a NaN or ``+inf``.

    >>> reward = TokenScores(torch.tensor([[0.0, 3.0], [1.0, 0.0]]))
    >>> reward(torch.tensor([[1, 0], [0, 1]]))
    tensor([4., 0.])
    """

    event_dim: int = 1

    def __init__(self, scores: Tensor) -> None:
        scores = torch.as_tensor(scores)
        if scores.dim() != 2 or not scores.is_floating_point():
            raise ValueError(
                "scores must be a floating point tensor of shape (length, vocabulary), got shape "
                f"{tuple(scores.shape)}"
            )
        if not bool((scores < torch.inf).all()):
            raise ValueError("scores must be numbers or -inf")
        self.scores = scores

    def __call__(self, value: Any) -> Tensor:
        length, vocabulary = self.scores.shape
        if value.shape[-1:] != (length,):
            raise ValueError(
                f"TokenScores takes {length} tokens, got a value of shape {tuple(value.shape)}"
            )
        index = value.long()
        if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < vocabulary:
            raise ValueError(f"tokens must lie between 0 and {vocabulary - 1}")
        picked = self.scores.expand(*index.shape, vocabulary).gather(-1, index.unsqueeze(-1))
        return picked.squeeze(-1).sum(-1)

    @property
    def lower_bound(self) -> float:
        return float(self.scores.amin(-1).sum())

    @property
    def upper_bound(self) -> float:
        return float(self.scores.amax(-1).sum())

    def _times(self, scale: float | Tensor) -> Reward | None:
        plain = not isinstance(scale, Tensor) and scale > 0
        return TokenScores(self.scores * scale) if plain else None

    def __repr__(self) -> str:
        return f"TokenScores(scores of shape {tuple(self.scores.shape)})"


class MaxOf(Reward):
    r"""
    The largest of several rewards: :math:`r(x) = \max_j r_j(x)`.

    Its proximal map is the best of the maps of its pieces.

    :param pieces: rewards or callables, at least one.
    :raises ValueError: for none.

    >>> from pyro_tilt import rewards
    >>> reward = MaxOf(rewards.Linear(torch.ones(2)), rewards.Linear(-torch.ones(2)))
    >>> reward(torch.tensor([[1.0, 2.0], [-3.0, 1.0]]))
    tensor([3., 2.])
    """

    def __init__(self, *pieces: Any) -> None:
        if not pieces:
            raise ValueError("MaxOf needs at least one reward")
        self.pieces = tuple(as_reward(piece) for piece in pieces)
        self.event_dim = self.pieces[0].event_dim

    def __call__(self, value: Any) -> Tensor:
        return torch.stack([piece(value) for piece in self.pieces]).amax(0)

    @property
    def lower_bound(self) -> float:
        return max(piece.lower_bound for piece in self.pieces)

    @property
    def upper_bound(self) -> float:
        return max(piece.upper_bound for piece in self.pieces)

    @property
    def convex(self) -> bool | None:
        return True if all(piece.convex for piece in self.pieces) else None

    def _times(self, scale: float | Tensor) -> Reward | None:
        plain = not isinstance(scale, Tensor) and scale >= 0
        return MaxOf(*(piece * scale for piece in self.pieces)) if plain else None

    def __repr__(self) -> str:
        return f"MaxOf({', '.join(repr(piece) for piece in self.pieces)})"
