# SPDX-License-Identifier: Apache-2.0
"""Values of all beginnings of the sequences of a table, by recursion from the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyro_tilt.language.protocols import Decoding
from pyro_tilt.rewards import log_tilt

if TYPE_CHECKING:
    from pyro_tilt.language.tabular import TabularLM

__all__ = ["mean_values", "prefix_lookup", "soft_values"]


def soft_values(model: TabularLM, rewards: Tensor, beta: float) -> list[Tensor]:
    """Log mean exponential tilts given each beginning; see :meth:`TabularLM.soft_values`."""

    def back(log_law: Tensor, later: Tensor) -> Tensor:
        return torch.logsumexp(log_law + later, -1)

    return _recursion(model, log_tilt(rewards, beta), back)


def mean_values(model: TabularLM, rewards: Tensor) -> list[Tensor]:
    """Mean rewards given each beginning; see :meth:`TabularLM.mean_values`."""

    def back(log_law: Tensor, later: Tensor) -> Tensor:
        law = log_law.exp()
        # An impossible token counts for nothing, whatever its reward.
        return torch.where(law > 0, law * later, torch.zeros_like(law)).sum(-1)

    return _recursion(model, rewards, back)


def _recursion(
    model: TabularLM, last: Tensor, back: Callable[[Tensor, Tensor], Tensor]
) -> list[Tensor]:
    size, length = model.vocabulary_size, model.length
    sequences = model.enumerate()
    dtype = torch.promote_types(last.dtype, model.log_probs[0].dtype)
    grid = torch.zeros((size,) * length, dtype=dtype, device=sequences.device)
    grid[tuple(sequences.unbind(-1))] = last.to(grid)
    values, tokens = [grid], sequences.unique(dim=0)
    for t in range(length - 1, -1, -1):
        tokens = tokens[:, :t].unique(dim=0) if t else tokens[:1, :0]
        found = back(model.next_log_probs(tokens).to(dtype), values[-1][tuple(tokens.unbind(-1))])
        table = torch.zeros((size,) * t, dtype=dtype, device=sequences.device)
        if t:
            table[tuple(tokens.unbind(-1))] = found
        else:
            table = found.reshape(())
        values.append(table)
    return values[::-1]


def prefix_lookup(model: TabularLM, values: Sequence[Tensor]) -> Callable[[Any, Any], Tensor]:
    """Looks values up by the tokens of a carry; see :meth:`TabularLM.value_function`."""
    tables = list(values)
    size = model.vocabulary_size
    for t, table in enumerate(tables):
        if tuple(table.shape) != (size,) * t:
            raise ValueError(
                f"values[{t}] must have shape {(size,) * t}, one value for every beginning of {t} "
                f"tokens, got {tuple(table.shape)}"
            )

    def value(carry: Decoding | Tensor, step: Any) -> Tensor:
        tokens = carry.tokens if isinstance(carry, Decoding) else carry
        if tokens is None:
            return tables[0]
        return tables[tokens.shape[-1]][tuple(tokens.unbind(-1))]

    return value
