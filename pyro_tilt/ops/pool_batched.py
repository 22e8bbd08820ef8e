# SPDX-License-Identifier: Apache-2.0
"""Pooled rejection for a batch of laws that are proposed together."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .pool import MAX_BLOCK, PoolExhausted, _check_sizes, accept, acceptance_generator, next_block


@dataclass(frozen=True)
class BatchedPoolResult:
    """
    The draws of :func:`pooled_rejection_batched` and their cost.

    :ivar values: shape ``(num,) + batch_shape + event_shape``.
    :ivar proposals: proposals that each slot consumed, shape ``(num,) + batch_shape``;
        0 in a slot left empty (a partial result only).
    :ivar acceptance_rate: acceptances per proposal of each law, shape ``batch_shape``.
    :ivar drawn: rows drawn, each of them one proposal for every law.
    :ivar blocks: calls of ``propose``.
    """

    values: Tensor
    proposals: Tensor
    acceptance_rate: Tensor
    drawn: int
    blocks: int


def pooled_rejection_batched(
    propose: Callable[[int], Tensor],
    log_accept: Callable[[Tensor], Tensor],
    batch_shape: Sequence[int],
    num: int,
    *,
    max_block: int = MAX_BLOCK,
    max_total: int | None = None,
    max_rounds: int | None = None,
    generator: torch.Generator | None = None,
) -> BatchedPoolResult:
    r"""
    Rejection sampling where every law of a batch fills ``num`` slots of its own.

    Each batch element keeps its first ``num`` acceptances, in order, so its draws
    are independent and of law :math:`\propto p\,e^{\min(A, b)}`. Rows are drawn until the
    slowest law is done.

    :param propose: ``propose(n)`` gives a tensor of shape ``(n,) + batch_shape + event_shape``.
    :param log_accept: log acceptance probabilities, shape ``(n,) + batch_shape``; positive
        values count as 0.
    :param batch_shape: shape of the batch of laws, ``()`` for a single one.
    :param num: slots of each law.
    :param max_block: most proposals to hold at once, counted over the whole batch.
    :param max_total: most rows to draw; None for no limit.
    :param max_rounds: most calls of ``propose``; None for no limit.
    :param generator: source of the acceptance uniforms, by default
        :func:`~pyro_tilt.ops.acceptance_generator`.
    :raises PoolExhausted: where a limit is met before every slot is filled; ``partial`` of the
        error holds what there is.
    :raises ValueError: for a nan, a wrong shape, or a size below 1.

    >>> _ = torch.manual_seed(0)
    >>> high = torch.tensor([0.5, 0.1])
    >>> result = pooled_rejection_batched(
    ...     lambda n: torch.rand(n, 2), lambda u: torch.where(u < high, 0.0, -torch.inf), (2,), 100
    ... )
    >>> result.values.shape, bool((result.values < high).all())
    (torch.Size([100, 2]), True)
    """
    _check_sizes(num, max_block=max_block, max_total=max_total, max_rounds=max_rounds)
    batch_shape = torch.Size(batch_shape)
    laws = batch_shape.numel()
    if num == 0 or laws == 0:
        return _empty(propose(1), batch_shape, num)
    generator = acceptance_generator() if generator is None else generator
    max_rows = max(1, max_block // laws)
    rows = next_block(num, 0, 0, max_rows)
    rows = rows if max_total is None else min(rows, max_total)
    block = propose(rows)
    slots = _Slots.like(block, batch_shape, num)
    while True:
        log_probs = log_accept(block)
        if log_probs.shape != (rows, *batch_shape):
            raise ValueError(
                "log_accept must give one number per proposal, shape "
                f"{(rows, *batch_shape)}, got {tuple(log_probs.shape)}"
            )
        slowest = slots.fill(block, accept(log_probs, generator))
        if slowest >= num:
            return slots.result()
        if slots.drawn == max_total or slots.blocks == max_rounds:
            raise slots.exhausted()
        rows = next_block(num - slowest, slowest, slots.drawn, max_rows)
        rows = rows if max_total is None else min(rows, max_total - slots.drawn)
        block = propose(rows)


@dataclass
class _Slots:
    """Slots of every law: values and the row that filled each, both with the batch flattened."""

    batch_shape: torch.Size
    values: Tensor
    ends: Tensor
    filled: Tensor
    drawn: int = 0
    blocks: int = 0

    @classmethod
    def like(cls, block: Tensor, batch_shape: torch.Size, num: int) -> "_Slots":
        if block.shape[1 : 1 + len(batch_shape)] != batch_shape:
            raise ValueError(
                f"propose must give shape (n,) + {tuple(batch_shape)} + event shape, "
                f"got {tuple(block.shape)}"
            )
        laws, event_shape = batch_shape.numel(), block.shape[1 + len(batch_shape) :]
        return cls(
            batch_shape,
            block.new_zeros((num, laws, *event_shape)),
            torch.zeros((num, laws), dtype=torch.long, device=block.device),
            torch.zeros(laws, dtype=torch.long, device=block.device),
        )

    def fill(self, block: Tensor, accepted: Tensor) -> int:
        """Put the accepted rows into the next free slots; how many the slowest law has filled."""
        num, laws = self.ends.shape
        accepted = accepted.reshape(len(block), laws)
        count = accepted.cumsum(0) + self.filled
        row, law = (accepted & (count <= num)).nonzero(as_tuple=True)
        slot = count[row, law] - 1
        self.values[slot, law] = block.reshape(len(block), *self.values.shape[1:])[row, law]
        self.ends[slot, law] = row + self.drawn + 1
        self.filled = count[-1].clamp(max=num)
        self.drawn += len(block)
        self.blocks += 1
        return int(self.filled.min())

    def result(self) -> BatchedPoolResult:
        ends = self.ends
        proposals = (ends - torch.cat([ends.new_zeros(1, ends.shape[1]), ends[:-1]])).clamp(min=0)
        last = torch.where(self.filled == len(ends), ends[-1], self.drawn)
        return BatchedPoolResult(
            self.values.unflatten(1, self.batch_shape) if self.batch_shape else self.values[:, 0],
            proposals.reshape(len(ends), *self.batch_shape),
            (self.filled / last).reshape(self.batch_shape),
            self.drawn,
            self.blocks,
        )

    def exhausted(self) -> PoolExhausted:
        waiting = self.filled < len(self.ends)
        slowest = int(self.filled.argmin())
        index = tuple(int(i) for i in torch.unravel_index(torch.tensor(slowest), self.batch_shape))
        where = f" at batch index {index}" if self.batch_shape else ""
        return PoolExhausted(
            f"{self.drawn} proposals left {int(waiting.sum())} of {len(waiting)} laws short of "
            f"{len(self.ends)} draws; the slowest{where} accepted {int(self.filled[slowest])}; "
            "allow more proposals, or lower the baseline or beta",
            self.result(),
        )


def _empty(block: Tensor, batch_shape: torch.Size, num: int) -> BatchedPoolResult:
    slots = _Slots.like(block, batch_shape, num)
    return BatchedPoolResult(
        slots.values.reshape(num, *block.shape[1:]),
        slots.ends.reshape(num, *batch_shape),
        torch.full(batch_shape, math.nan, dtype=torch.float64, device=block.device),
        1,
        1,
    )
