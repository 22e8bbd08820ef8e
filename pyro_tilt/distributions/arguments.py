# SPDX-License-Identifier: Apache-2.0
"""Checks of the arguments of a tilted distribution."""

from __future__ import annotations

import math
import numbers
from typing import Any

import torch
from pyro.distributions.torch_distribution import MaskedDistribution
from torch import Tensor
from torch.distributions import Distribution

from pyro_tilt.distributions.inspection import reward_batch_shape
from pyro_tilt.rewards import Reward


def check_base(base: Any) -> None:
    """Refuses what is no law."""
    if not isinstance(base, Distribution):
        raise TypeError(f"Tilted: base must be a distribution, got {type(base).__name__}")
    if isinstance(base, MaskedDistribution):
        raise ValueError(
            "Tilted: the base is masked, so it is no law; tilt first and mask after: "
            "Tilted(base, reward).mask(mask)"
        )


def check_event_dim(base: Distribution, reward: Reward) -> None:
    """Refuses a reward that sums over other dimensions than the events of the base."""
    if reward.event_dim is not None and reward.event_dim != len(base.event_shape):
        raise ValueError(
            f"Tilted: the reward has event_dim={reward.event_dim}, but the base has event shape "
            f"{tuple(base.event_shape)}, event_dim={len(base.event_shape)} "
            f"(batch shape {tuple(base.batch_shape)}); give the reward that event_dim, "
            "or move dimensions of the base by to_event"
        )


def checked_beta(beta: Any) -> float | Tensor:
    """A finite beta, numbers as floats."""
    if isinstance(beta, Tensor):
        if not bool(beta.isfinite().all()):
            raise ValueError(f"Tilted: beta must be finite, got {beta}")
        return beta
    if not isinstance(beta, numbers.Real):
        raise TypeError(f"Tilted: beta must be a number or a tensor, got {type(beta).__name__}")
    if not math.isfinite(beta):
        raise ValueError(f"Tilted: beta must be finite, got {beta}")
    return float(beta)


def checked_normalizer(given: Any) -> Any:
    """A normaliser of one of the types that are read later."""
    if isinstance(given, str):
        if given != "constant":
            raise ValueError(f'log_normalizer: the only word is "constant", got {given!r}')
        return given
    if given is not None and not (isinstance(given, (Tensor, numbers.Real)) or callable(given)):
        raise TypeError(
            "log_normalizer must be a tensor, a callable of the base or the word "
            f'"constant", got {type(given).__name__}'
        )
    return given


def joint_batch_shape(
    base: Distribution, reward: Reward, beta: float | Tensor, given: Any
) -> torch.Size:
    """What the batch shapes of all arguments broadcast to."""
    shapes = {"base": base.batch_shape, "reward": reward_batch_shape(reward)}
    shapes.update(
        {k: v.shape for k, v in {"beta": beta, "log_normalizer": given}.items() if _is_tensor(v)}
    )
    try:
        return torch.broadcast_shapes(*shapes.values())
    except RuntimeError as error:
        shown = ", ".join(f"{name} {tuple(shape)}" for name, shape in shapes.items())
        raise ValueError(f"Tilted: batch shapes do not broadcast: {shown}") from error


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)
