# SPDX-License-Identifier: Apache-2.0
"""What a distribution or a reward shows of itself: dtype, batch shape, draws without a trace."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Transform

from pyro_tilt.rewards import Reward, Scaled, Sum

PILOT_SEED = 1009


def parameters_of(base: Distribution) -> Iterator[Tensor]:
    """The tensors that a distribution holds, those of its parts included."""
    return _tensors(base, set())


def _tensors(part: Any, seen: set[int]) -> Iterator[Tensor]:
    if isinstance(part, Tensor):
        yield part
    elif isinstance(part, (list, tuple)):
        for item in part:
            yield from _tensors(item, seen)
    # A transform and its inverse hold each other.
    elif isinstance(part, (Distribution, Transform)) and id(part) not in seen:
        seen.add(id(part))
        for item in vars(part).values():
            yield from _tensors(item, seen)


def blank(base: Distribution, shape: torch.Size) -> Tensor:
    """Zeros of the dtype and device of a distribution's parameters."""
    for tensor in parameters_of(base):
        if tensor.is_floating_point():
            return torch.zeros(shape, dtype=tensor.dtype, device=tensor.device)
    return torch.zeros(shape)


def reward_batch_shape(reward: Reward) -> torch.Size:
    """The batch shape of a reward's own parameters; empty for a black box."""
    if isinstance(reward, Scaled):
        parts, constant = [reward.reward], reward.scale
    elif isinstance(reward, Sum):
        parts, constant = list(reward.terms), reward.offset
    else:
        return torch.Size(getattr(reward, "batch_shape", ()))
    shapes = [reward_batch_shape(part) for part in parts]
    if isinstance(constant, Tensor):
        shapes.append(constant.shape)
    return torch.broadcast_shapes(*shapes)


@contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """Random numbers from a fixed seed, the global random state left as it was found."""
    if device.type == "cuda":
        with torch.random.fork_rng(devices=[device]):
            torch.cuda.default_generators[device.index or 0].manual_seed(PILOT_SEED)
            torch.default_generator.manual_seed(PILOT_SEED)
            yield
        return
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(PILOT_SEED)
    try:
        yield
    finally:
        torch.set_rng_state(state)


def pilot_draws(base: Distribution, num: int) -> Tensor:
    """
    Draws of the base that no caller can notice: a fixed seed, and no random state advanced.

    :param base: the law to draw from.
    :param num: how many, along a new leftmost dimension.
    """
    device = blank(base, torch.Size()).device
    with torch.no_grad(), undisturbed(device):
        return base.sample(torch.Size([num]))
