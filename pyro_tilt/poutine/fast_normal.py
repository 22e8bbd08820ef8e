# SPDX-License-Identifier: Apache-2.0
"""Draws and densities of a Normal with fewer passes over memory than torch makes.

Gaussian kernels and observations are the inner loop of most programs with steps, and torch
spends nine operations on a log density where six do.
"""

import math
from typing import Any

import torch
from pyro.distributions import Normal
from torch import Tensor

INVERSE_ROOT = 1.0 / math.sqrt(2.0 * math.pi)


def draws_plainly(fn: object) -> bool:
    """Whether ``fn`` is a Normal that nobody differentiates through."""
    return type(fn) is Normal and not torch.is_grad_enabled()


def is_plain_normal(fn: object) -> bool:
    """Whether ``fn`` is a Normal that nobody differentiates through or validates values of."""
    return draws_plainly(fn) and not fn._validate_args  # type: ignore[attr-defined]


def draw(fn: Normal, room: Tensor | None = None) -> Tensor:
    """
    What ``fn.rsample()`` draws, bit for bit, in the memory of the noise alone.

    :param fn: any Normal.
    :param room: a contiguous tensor to draw into, passed over where shape or dtype do not fit.

    >>> fn = Normal(torch.arange(3.0), torch.tensor(2.0))
    >>> state = torch.get_rng_state()
    >>> first = fn.rsample()
    >>> torch.set_rng_state(state)
    >>> bool((draw(fn) == first).all())
    True
    """
    loc = fn.loc
    if room is None or room.shape != loc.shape or room.dtype != loc.dtype:
        room = torch.empty_like(loc, memory_format=torch.contiguous_format)
    return room.normal_().mul_(fn.scale).add_(loc)


def log_prob(fn: Normal, value: Tensor) -> Tensor:
    """
    ``fn.log_prob(value)`` up to rounding.

    :param fn: any Normal.
    :param value: broadcasts against its batch shape.

    >>> fn = Normal(torch.tensor(1.0), torch.tensor(2.0))
    >>> torch.allclose(log_prob(fn, torch.tensor(3.0)), fn.log_prob(torch.tensor(3.0)))
    True
    """
    scale = fn.scale
    if not any(scale.stride()):
        # One number that was expanded to the batch.
        scale = scale.as_strided((), ())
    standardized = value - fn.loc
    scale = scale.to(standardized.dtype)
    standardized.div_(scale)
    return torch.addcmul((INVERSE_ROOT / scale).log_(), standardized, standardized, value=-0.5)


def density(fn: Any, value: Tensor) -> Tensor:
    """
    ``fn.log_prob(value)``, the fast way for a plain Normal.

    :param fn: any distribution.
    :param value: a value of it.
    """
    return log_prob(fn, value) if is_plain_normal(fn) else fn.log_prob(value)
