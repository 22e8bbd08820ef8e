# SPDX-License-Identifier: Apache-2.0
"""Rewards of which nothing but their values is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_tilt.rewards.base import Reward
from pyro_tilt.rewards.tensors import call, show

RewardFn = Callable[[Any], Tensor]


class BlackBox(Reward):
    """
    A callable as a reward; what a plain callable becomes.

    :param fn: maps a value (a tensor, a dict of them, whatever the program hands over) to a
        tensor of its batch shape. Integer and boolean results are cast to the default dtype.
    :param event_dim: the number of rightmost dimensions of a value that one number summarises,
        where there is such a number.
    :raises TypeError: if ``fn`` is not callable; on evaluation, if it does not return a tensor.

    >>> import torch
    >>> reward = BlackBox(torch.sin)
    >>> reward(torch.zeros(2))
    tensor([0., 0.])
    """

    def __init__(self, fn: RewardFn, event_dim: int | None = None) -> None:
        if not callable(fn):
            raise TypeError(
                f"{type(self).__name__} takes a callable, got {type(fn).__name__}; "
                "a tensor of slopes is written Linear(theta)"
            )
        self.fn = fn
        self.event_dim = event_dim

    def __call__(self, value: Any) -> Tensor:
        result = call(self.fn, value)
        return result if result.is_floating_point() else result.to(torch.get_default_dtype())

    def __repr__(self) -> str:
        event = "" if self.event_dim is None else f", event_dim={self.event_dim}"
        return f"{type(self).__name__}({show(self.fn)}{self._options()}{event})"

    def _options(self) -> str:
        return ""


def as_reward(obj: Reward | RewardFn) -> Reward:
    """
    A reward as it is, a callable as a :class:`BlackBox`.

    :param obj: a reward or a callable of a value.
    :raises TypeError: for anything else.

    >>> import torch
    >>> as_reward(torch.cos)
    BlackBox(cos)
    """
    return obj if isinstance(obj, Reward) else BlackBox(obj)
