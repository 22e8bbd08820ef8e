# SPDX-License-Identifier: Apache-2.0
"""Structured rewards with their batch and event dimensions rearranged."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

from pyro_tilt.rewards import Linear, LinearIn, Quadratic

StructuredT = TypeVar("StructuredT", Linear, LinearIn, Quadratic)


def batched(reward: StructuredT) -> StructuredT:
    """The reward with a batch dimension of size one more, the last, for what has components."""

    def insert(tensor: Tensor, event_dim: int) -> Tensor:
        return tensor.unsqueeze(-1 - event_dim) if tensor.dim() > event_dim else tensor

    k = reward.event_dim
    if isinstance(reward, Linear):
        return Linear(insert(reward.theta, k), k, offset=insert(reward.offset, 0))
    if isinstance(reward, LinearIn):
        parts = {name: insert(value, k) for name, value in reward.coefficients.items()}
        return LinearIn(k, offset=insert(reward.offset, 0), **parts)
    A, b = insert(reward.A, 2 * k), insert(reward.b, k)
    return Quadratic(A, b, insert(reward.c, 0), event_dim=k)


def separated(reward: Linear | LinearIn, count: int) -> Linear | LinearIn:
    """
    The reward of each independent part: ``count`` event dimensions become batch dimensions.

    The constant is left out, as the parts share it.
    """
    inner = reward.event_dim - count
    if isinstance(reward, Linear):
        return Linear(reward.theta, inner)
    return LinearIn(inner, **reward.coefficients)


def pulled_back(reward: Linear, loc: Tensor, scale: Tensor) -> Linear:
    """The linear reward of ``loc + scale * x`` as one of ``x``."""
    theta = reward.theta
    shape = torch.broadcast_shapes(theta.shape, loc.shape, scale.shape)
    constant = (theta * loc).expand(shape)
    if reward.event_dim:
        constant = constant.flatten(-reward.event_dim).sum(-1)
    return Linear((theta * scale).expand(shape), reward.event_dim, offset=reward.offset + constant)
