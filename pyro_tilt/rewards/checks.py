# SPDX-License-Identifier: Apache-2.0
"""Checked evaluation of rewards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_tilt.rewards.base import Reward
from pyro_tilt.rewards.black_box import RewardFn, as_reward
from pyro_tilt.rewards.tensors import multiply_values


def evaluate(
    reward: Reward | RewardFn,
    value: Any,
    *,
    shape: Sequence[int] | None = None,
    name: str = "reward",
) -> Tensor:
    """
    The reward of a value, checked. A reward of ``-inf`` is legal: such a value has weight zero.

    :param reward: a reward or a plain callable.
    :param value: what the reward takes.
    :param shape: the shape that the result must have, unchecked where ``None``.
    :param name: the site or argument that an error names.
    :raises TypeError: if the reward does not return a tensor.
    :raises ValueError: if the result is of another shape, or holds NaN or ``+inf``.

    >>> import torch
    >>> evaluate(lambda x: -x.square().sum(-1), torch.ones(3, 2), shape=(3,))
    tensor([-2., -2., -2.])
    """
    result = as_reward(reward)(value)
    if not isinstance(result, Tensor):
        raise TypeError(f"{name}: the reward must return a tensor, got {type(result).__name__}")
    if shape is not None and result.shape != torch.Size(shape):
        raise ValueError(
            f"{name}: the reward must return one number per batch element, "
            f"shape {tuple(shape)}, got shape {tuple(result.shape)}; sum its event dimensions"
        )
    # The maximum shows both NaN and +inf, and is an order of magnitude faster than a comparison.
    if result.numel() and not float(result.detach().amax()) < math.inf:
        _refuse(result, name)
    return result


def _refuse(result: Tensor, name: str) -> None:
    for kind, bad in (("NaN", result.isnan()), ("+inf", result == math.inf)):
        count = int(bad.sum())
        if count:
            raise ValueError(
                f"{name}: the reward is {kind} for {count} of {result.numel()} values; "
                "a reward must be a number or -inf"
                + (", and a negative beta turns -inf into +inf" if kind == "+inf" else "")
            )


def log_tilt(values: Tensor, beta: float | Tensor) -> Tensor:
    r"""
    The log tilt :math:`\beta r`, with :math:`0 \cdot -\infty = 0`: beta = 0 is the base law.

    :param values: rewards, ``-inf`` allowed.
    :param beta: what multiplies the reward, a number or a tensor that broadcasts with ``values``.
    :raises ValueError: if a negative ``beta`` meets a reward of ``-inf``, which has no tilted law.

    >>> import torch
    >>> log_tilt(torch.tensor([1.0, -torch.inf]), 2.0)
    tensor([2., -inf])
    >>> log_tilt(torch.tensor([1.0, -torch.inf]), 0.0)
    tensor([0., 0.])
    """
    negative = bool((beta < 0).any()) if isinstance(beta, Tensor) else beta < 0
    if negative:
        count = int(
            ((values == -math.inf) & (torch.as_tensor(beta, device=values.device) < 0)).sum()
        )
        if count:
            raise ValueError(
                f"a negative beta meets a reward of -inf ({count} values), an infinite weight; "
                "restrict the base law instead"
            )
    return multiply_values(values, beta)
