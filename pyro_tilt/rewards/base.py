# SPDX-License-Identifier: Apache-2.0
"""The base class of rewards."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor

from pyro_tilt.rewards.moving import move

R = TypeVar("R", bound="Reward")


class Reward(ABC):
    r"""
    A real function of a value whose exponential tilts a law.

    .. math::

        q(x) \propto p(x)\, e^{\beta r(x)}

    A reward maps a value to a tensor of the batch shape of that value: its event dimensions are
    already summed. Rewards add (``r1 + r2``, ``r + number``, ``r + callable``), scale
    (``r * c``, ``-r``, ``r / c``) and keep their structure wherever it survives, because what can
    be sampled exactly depends on it. A tensor ``c`` is aligned with the rightmost batch
    dimensions, never with event dimensions.

    :ivar event_dim: the number of rightmost dimensions of a value that one number summarises,
        ``None`` where it is unknown.

    >>> import torch
    >>> from pyro_tilt.rewards import Linear
    >>> 2.0 * (Linear(torch.tensor(1.0)) + Linear(torch.tensor(0.5)))
    Linear(theta=tensor(3.0), event_dim=0)
    """

    event_dim: int | None = None

    # numpy scalars on the left of an operator hand it to the reward.
    __array_ufunc__ = None

    @abstractmethod
    def __call__(self, value: Any) -> Tensor:
        """
        The reward of a value.

        :param value: a tensor of shape batch + event, or what a callable reward takes.
        """

    @property
    def lower_bound(self) -> float:
        """A number that the reward never falls below; ``-inf`` where none is known."""
        return -math.inf

    @property
    def upper_bound(self) -> float:
        """A number that the reward never exceeds; ``inf`` where none is known."""
        return math.inf

    @property
    def convex(self) -> bool | None:
        """Whether the reward is convex in its value, ``None`` where that is unknown."""
        return None

    @property
    def concave(self) -> bool | None:
        """Whether the reward is concave in its value, ``None`` where that is unknown."""
        return None

    def to(self: R, *args: Any, **kwargs: Any) -> R:
        """
        A copy whose tensors are moved or cast as by :meth:`torch.Tensor.to`; as there, the reward
        itself where nothing changes.

        Modules inside callables (the callable itself, attributes, closures, partial arguments)
        are copied and moved too. Only floating point tensors change their dtype.
        """
        return move(self, *args, **kwargs)

    def _plus(self, other: Reward) -> Reward | None:
        """The structured sum with another reward, ``None`` where there is none."""
        return None

    def _times(self, scale: float | Tensor) -> Reward | None:
        """The structured multiple, ``None`` where there is none."""
        return None

    def _shifted(self, offset: float | Tensor) -> Reward | None:
        """The structured sum with a constant, ``None`` where there is none."""
        return None

    def __add__(self, other: Reward | Callable[[Any], Tensor] | float | Tensor) -> Reward:
        from pyro_tilt.rewards.combine import add

        return add(self, other)

    __radd__ = __add__

    def __mul__(self, scale: float | Tensor) -> Reward:
        from pyro_tilt.rewards.combine import multiply

        return multiply(self, scale)

    __rmul__ = __mul__

    def __truediv__(self, scale: float | Tensor) -> Reward:
        return self * (1 / scale)

    def __neg__(self) -> Reward:
        return self * -1.0

    def __sub__(self, other: Reward | Callable[[Any], Tensor] | float | Tensor) -> Reward:
        from pyro_tilt.rewards.combine import negate

        return self + negate(other)

    def __rsub__(self, other: Reward | Callable[[Any], Tensor] | float | Tensor) -> Reward:
        return -self + other
