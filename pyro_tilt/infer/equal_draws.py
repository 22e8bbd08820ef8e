# SPDX-License-Identifier: Apache-2.0
"""Equally weighted draws out of weighted ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyro_tilt.ops.resampling import systematic

if TYPE_CHECKING:
    from pyro_tilt.infer.weighted_samples import WeightedSamples


def equal_draws(
    result: WeightedSamples,
    num_samples: int | None = None,
    group_by_chain: bool = False,
    *,
    weights: str = "auto",
    seed: int | None = None,
) -> Tensor | None:
    """
    Indices of equally weighted draws.

    :param result: the draws.
    :param num_samples: how many, per chain where ``group_by_chain``; by default all of them,
        or the size of the smallest chain.
    :param group_by_chain: one row of indices per chain.
    :param weights: see :meth:`WeightedSamples.analysis_log_weights`.
    :param seed: of the resampling; by default torch's global random state.
    :returns: ``(num_samples,)`` or ``(num_chains, num_samples)``; None for all draws as they are.
    :raises ValueError: for a negative number or where every weight is zero.
    """
    if num_samples is not None and num_samples < 0:
        raise ValueError(f"num_samples must not be negative; got {num_samples}")
    log_weights = result.analysis_log_weights(weights)
    if log_weights is None and num_samples is None and not group_by_chain:
        return None
    device = result.log_weights.device
    generator = None if seed is None else torch.Generator(device).manual_seed(seed)
    sizes = result.chain_sizes if group_by_chain else (len(result),)
    num = min(sizes) if num_samples is None else num_samples
    rows, start = [], 0
    for size in sizes:
        if log_weights is None:
            row = _take(size, num, result.kind, generator, device)
        else:
            row = systematic(log_weights[start : start + size], num, generator)
        rows.append(row + start)
        start += size
    return torch.stack(rows) if group_by_chain else rows[0]


def _take(
    size: int, num: int, kind: str, generator: torch.Generator | None, device: torch.device
) -> Tensor:
    if num > size:
        return torch.randint(size, (num,), generator=generator, device=device)
    if kind == "chain" and num:
        # Neighbours in a Markov chain repeat each other.
        return torch.arange(num, device=device) * size // num
    return torch.arange(num, device=device)
