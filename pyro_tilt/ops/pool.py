# SPDX-License-Identifier: Apache-2.0
"""Rejection sampling from one pool of proposals.

Proposals are drawn in blocks; whichever slots still wait are filled from the
block in order. Only the rows drawn after the last acceptance are wasted, and
the law of the draws does not depend on how the stream is cut into blocks.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, cast

import torch
from torch import Tensor

from .importance import as_double


class Batch(Protocol):
    """Rows that can be picked and joined; a plain tensor will do as well."""

    def index(self, index: Tensor, /) -> Any: ...

    @staticmethod
    def cat(batches: Sequence[Any], /) -> Any: ...


B = TypeVar("B", bound=Batch | Tensor)

# How many rows to hold at once where the caller does not say.
MAX_BLOCK = 131_072


@dataclass(frozen=True)
class PoolResult(Generic[B]):
    """
    The draws of a pooled rejection run and their cost.

    :ivar batch: the ``num`` rows that were kept, in the order of the stream.
    :ivar proposals: proposals that each slot consumed, shape ``(num,)``.
    :ivar capped: slots that hold a rejected row because their cap was reached, shape ``(num,)``.
    :ivar total: proposals up to and including the row that filled the last slot.
    :ivar drawn: rows drawn in all; ``wasted`` of them lie behind the last slot.
    :ivar accepted: acceptances among the ``total`` proposals.
    :ivar blocks: calls of ``propose``.
    """

    batch: B
    proposals: Tensor
    capped: Tensor
    total: int
    drawn: int
    accepted: int
    blocks: int

    @property
    def wasted(self) -> int:
        """Rows drawn behind the one that filled the last slot."""
        return self.drawn - self.total

    @property
    def acceptance_rate(self) -> float:
        """Acceptances per proposal, nan before the first proposal."""
        return self.accepted / self.total if self.total else math.nan


class PoolExhausted(RuntimeError):
    """
    The allowance of proposals ran out before every slot was filled.

    :ivar partial: the :class:`PoolResult` (or
        :class:`~pyro_tilt.ops.pool_batched.BatchedPoolResult`) reached so far.
    """

    def __init__(self, message: str, partial: Any) -> None:
        super().__init__(message)
        self.partial = partial


def acceptance_generator(device: torch.device | str = "cpu") -> torch.Generator:
    """
    A generator for acceptance uniforms, seeded from a digest of the global random state.

    The global state is read and not advanced, so the proposals are those that would
    have been drawn without any acceptance step, and a run is repeatable under a seed.

    :param device: where the generator draws.
    """
    digest = hashlib.blake2b(torch.get_rng_state().numpy().tobytes(), digest_size=8)
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        digest.update(torch.cuda.get_rng_state().numpy().tobytes())
    seed = int.from_bytes(digest.digest(), "little") >> 1
    return torch.Generator(device).manual_seed(seed)


def accept(log_probs: Tensor, generator: torch.Generator) -> Tensor:
    """
    Which proposals pass, with probability ``exp(min(log_probs, 0))`` each.

    :param Tensor log_probs: log acceptance probabilities; ``-inf`` never passes.
    :param generator: source of the uniforms, one per entry in row-major order.
    :return: a bool tensor of the same shape.
    :raises ValueError: for a nan.
    """
    log_probs = as_double(log_probs.detach())
    if bool(log_probs.isnan().any()):
        count = int(log_probs.isnan().sum())
        raise ValueError(f"{count} of {log_probs.numel()} log acceptance probabilities are nan")
    uniforms = torch.rand(
        log_probs.shape, generator=generator, dtype=torch.float64, device=generator.device
    )
    return uniforms.log_().to(log_probs) < log_probs


def next_block(waiting: int, accepted: int, seen: int, max_block: int) -> int:
    """
    How many rows to draw next: about what the waiting slots need, rather fewer.

    Falling short costs one more call, overshooting costs draws, so a standard
    deviation is left off, and half where few slots wait.
    """
    if seen == 0:
        return min(waiting, max_block)
    needed = max(waiting - math.sqrt(waiting), waiting / 2)
    return max(1, min(max_block, math.ceil(needed * (seen + 1) / (accepted + 1))))


def _take(batch: B, index: Tensor, rows: int) -> B:
    if len(index) == rows:
        return batch
    return cast(B, batch[index] if isinstance(batch, Tensor) else batch.index(index))


def _join(parts: list[B]) -> B:
    if len(parts) == 1:
        return parts[0]
    if isinstance(parts[0], Tensor):
        return cast(B, torch.cat(cast(list[Tensor], parts)))
    return cast(B, cast(Batch, parts[0]).cat(parts))


def _slot_ends(accepted: Tensor, since: int, cap: int | None) -> tuple[Tensor, Tensor]:
    """
    Rows of a block that close a slot, in order, and whether each was accepted.

    :param Tensor accepted: bool, shape ``(n,)``.
    :param since: rejections between the last closed slot and this block, below ``cap``.
    :param cap: rejections in a row after which a slot takes the last of them.
    """
    ends = accepted.nonzero().squeeze(-1)
    if cap is None:
        return ends, torch.ones_like(ends, dtype=torch.bool)
    bounds = torch.cat([ends.new_tensor([-1 - since]), ends, ends.new_tensor([len(accepted)])])
    counts = (bounds.diff() - 1) // cap
    first = counts.cumsum(0) - counts
    within = torch.arange(int(counts.sum()), device=ends.device) - first.repeat_interleave(counts)
    forced = bounds[:-1].repeat_interleave(counts) + cap * (within + 1)
    ends = torch.cat([ends, forced]).sort().values
    return ends, accepted[ends]


def _check_sizes(num: int, **sizes: int | None) -> None:
    if num < 0:
        raise ValueError(f"num must not be negative, got {num}")
    for name, size in sizes.items():
        if size is not None and size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")


def pooled_rejection(
    propose: Callable[[int], B],
    log_accept: Callable[[B], Tensor],
    num: int,
    *,
    max_block: int = MAX_BLOCK,
    max_proposals: int | None = None,
    max_total: int | None = None,
    generator: torch.Generator | None = None,
    observe: Callable[[B, int], bool | None] | None = None,
    progress: Callable[[int], Any] | None = None,
) -> PoolResult[B]:
    r"""
    Rejection sampling that fills all slots from one pool of proposals.

    With proposals from p and acceptance :math:`\min(1, e^{A-b})` the draws are
    independent, of law :math:`q_b \propto p\,e^{\min(A, b)}`. With
    ``max_proposals`` = n they have law

    .. math::
        (1-f)\, q_b + f\, \frac{p\,(1-\min(1,e^{A-b}))}{1-\alpha},
        \qquad f = (1-\alpha)^n,

    where :math:`\alpha` is the mean acceptance probability.

    The first block has ``num`` rows (at most ``max_block``), so a single draw
    under certain acceptance consumes exactly one row.

    :param propose: ``propose(n)`` draws n rows: a tensor, or an object with
        ``index(LongTensor)`` and ``cat(list)``.
    :param log_accept: gives the log acceptance probability of every row, shape ``(n,)``;
        positive values count as 0.
    :param num: slots to fill.
    :param max_block: most rows to draw at once; only accepted rows outlive a block.
    :param max_proposals: proposals after which a slot takes the last rejected row and is
        flagged in ``capped``; None for no cap.
    :param max_total: most rows to draw in all; None for no limit.
    :param generator: source of the acceptance uniforms, by default
        :func:`acceptance_generator`. The proposals never see it.
    :param observe: called with every block and the number of its leading rows that belong
        to the run (the rest lie behind the last slot); the run ends where it returns True.
    :param progress: called with the number of slots that a block filled.
    :raises PoolExhausted: where ``max_total`` rows do not fill every slot, or ``observe`` ended
        the run before.
    :raises ValueError: for a nan, a wrong shape, or a size below 1.

    >>> _ = torch.manual_seed(0)
    >>> result = pooled_rejection(torch.rand, lambda u: torch.where(u < 0.5, 0.0, -torch.inf), 100)
    >>> len(result.batch), bool((result.batch < 0.5).all())
    (100, True)
    >>> int(result.proposals.sum()) == result.total
    True
    """
    _check_sizes(num, max_block=max_block, max_proposals=max_proposals, max_total=max_total)
    if num == 0:
        return _empty(propose(1))
    generator = acceptance_generator() if generator is None else generator
    run = _Run[B](num, max_proposals)
    stop = False
    while run.filled < num and run.drawn != max_total and not stop:
        rows = next_block(num - run.filled, run.accepted, run.drawn, max_block)
        rows = rows if max_total is None else min(rows, max_total - run.drawn)
        block = propose(rows)
        log_probs = log_accept(block)
        if log_probs.shape != (rows,):
            raise ValueError(
                f"log_accept must give one number per proposal, shape ({rows},), "
                f"got {tuple(log_probs.shape)}"
            )
        before = run.filled
        used = run.take(block, accept(log_probs, generator))
        if observe is not None:
            stop = bool(observe(block, used))
        if progress is not None:
            progress(run.filled - before)
    if run.filled < num:
        raise PoolExhausted(
            f"{run.drawn} proposals filled {run.filled} of {num} slots "
            f"(acceptance rate about {run.accepted / run.drawn:.3g}); "
            "allow more proposals, or lower the baseline or beta",
            run.result(),
        )
    return run.result()


class _Run(Generic[B]):
    """Slots filled so far, and where in the stream the last of them was closed."""

    def __init__(self, num: int, cap: int | None) -> None:
        self.num, self.cap = num, cap
        self.filled = self.accepted = self.total = self.drawn = self.blocks = self.since = 0
        self.parts: list[B] = []
        self.gaps: list[Tensor] = []
        self.capped: list[Tensor] = []

    def take(self, block: B, mask: Tensor) -> int:
        """Fill slots from a block; how many of its leading rows belong to the run."""
        rows, waiting = len(mask), self.num - self.filled
        ends, passed = (x[:waiting] for x in _slot_ends(mask, self.since, self.cap))
        # A run that ends empty-handed still needs one (empty) part for its partial result.
        if len(ends) or not self.parts:
            self.parts.append(_take(block, ends, rows))
            self.gaps.append(ends.diff(prepend=ends.new_tensor([-1 - self.since])))
            self.capped.append(~passed)
        last = int(ends[-1]) if len(ends) else -1 - self.since
        used = last + 1 if len(ends) == waiting else rows
        self.filled += len(ends)
        self.accepted += int(mask[:used].sum())
        self.total += used
        self.since = used - 1 - last
        self.drawn += rows
        self.blocks += 1
        return used

    def result(self) -> PoolResult[B]:
        return PoolResult(
            _join(self.parts),
            torch.cat(self.gaps),
            torch.cat(self.capped),
            self.total,
            self.drawn,
            self.accepted,
            self.blocks,
        )


def _empty(block: B) -> PoolResult[B]:
    none = torch.zeros(0, dtype=torch.long)
    return PoolResult(_take(block, none, 1), none, none.bool(), 0, 1, 0, 1)
