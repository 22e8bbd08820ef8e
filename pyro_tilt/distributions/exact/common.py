# SPDX-License-Identifier: Apache-2.0
"""What the closed-form rules share: shapes, refusals, the result."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

from pyro_tilt.distributions.registry import ExactTilt
from pyro_tilt.rewards import Linear, LinearIn, Reward

# The abstract class, typed so that a rule for all rewards can be registered.
EVERY_REWARD: type[Any] = Reward


class Slope(NamedTuple):
    """A linear reward on a base law: slope of shape batch + event, and constant."""

    theta: Tensor
    offset: Tensor


def slope_of(base: Distribution, reward: Linear) -> Slope | None:
    """
    The slope and constant of a linear reward, None where it sums over other dimensions than the
    events of the base.

    :raises ValueError: if the shapes do not fit.
    """
    return Slope(reward.theta, reward.offset) if fits(base, reward) else None


def coefficients_of(base: Distribution, reward: LinearIn, *allowed: str) -> list[Tensor] | None:
    """
    The coefficients of a reward linear in statistics in the order of ``allowed``, zero where
    absent. None where the reward has another statistic or sums over other dimensions.

    :raises ValueError: if the shapes do not fit.
    """
    given = reward.coefficients
    used = {name for name, coefficient in given.items() if bool(coefficient.any())}
    if not used <= set(allowed) or not fits(base, reward):
        return None
    absent = reward.offset.new_zeros(base.event_shape)
    return [given.get(name, absent) for name in allowed]


def fits(base: Distribution, reward: Any) -> bool:
    """
    Whether a reward summarises the events of the base, no more and no fewer dimensions.

    :raises ValueError: if event shapes differ or batch shapes do not broadcast.
    """
    if reward.event_dim != len(base.event_shape):
        return False
    name = type(base).__name__
    if reward.event_shape != base.event_shape:
        raise ValueError(
            f"reward: its event shape {tuple(reward.event_shape)} is not that of the base "
            f"{name}, {tuple(base.event_shape)}"
        )
    try:
        torch.broadcast_shapes(reward.batch_shape, base.batch_shape)
    except RuntimeError:
        raise ValueError(
            f"reward: its batch shape {tuple(reward.batch_shape)} does not broadcast with that of "
            f"the base {name}, {tuple(base.batch_shape)}"
        ) from None
    return True


def promoted(*tensors: Tensor) -> list[Tensor]:
    """Tensors in their common dtype, as matrix products do not promote."""
    dtype = tensors[0].dtype
    for tensor in tensors[1:]:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return [tensor.to(dtype) for tensor in tensors]


def closed_form(
    base: Distribution,
    law: Any,
    log_normalizer: Tensor,
    *,
    method: str = "closed form",
    error: float = 0.0,
) -> ExactTilt:
    """The result, law and normaliser expanded to one batch shape."""
    shape = torch.broadcast_shapes(base.batch_shape, log_normalizer.shape)
    if law is not None:
        shape = torch.broadcast_shapes(shape, law.batch_shape)
        if law.batch_shape != shape:
            law = law.expand(shape)
        # Set on the law, so that it checks values exactly where the base does.
        law._validate_args = base._validate_args
    return ExactTilt(law, log_normalizer.expand(shape), method, error)


def require(holds: Tensor, base: Any, condition: str, **values: Tensor) -> None:
    """
    Refuse a tilt that does not exist.

    :param holds: where the tilt exists, one truth value per element.
    :param base: the base law, or its name.
    :param condition: what must hold, in words and with its bound.
    :param values: the offending quantities, broadcast with ``holds``; the first element at which
        the condition fails is shown.
    :raises ValueError: naming the element and its values.
    """
    if bool(holds.all()):
        return
    name = base if isinstance(base, str) else type(base).__name__
    index = tuple((~holds).nonzero()[0].tolist())
    parts = []
    for key, value in values.items():
        entry = value.detach().expand(holds.shape)[index]
        parts.append(f"{key.replace('_', ' ')} = {entry.item():.6g}")
    where = f" at index {index} of shape {tuple(holds.shape)}" if holds.dim() else ""
    raise ValueError(
        f"this tilt of {name} does not exist: it needs {condition}, but {', '.join(parts)}{where}"
    )


def log1mexp(x: Tensor) -> Tensor:
    r""":math:`\log(1 - e^x)` for negative ``x``, accurate at both ends."""
    near = x > -0.6931
    close, far = torch.where(near, x, -1.0), torch.where(near, -1.0, x)
    return torch.where(near, torch.log(-torch.expm1(close)), torch.log1p(-torch.exp(far)))
