# SPDX-License-Identifier: Apache-2.0
"""The values that chains hold at one step while some of them go on proposing."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pyro_tilt.infer.stepwise.reentry import Kernel, Pass
from pyro_tilt.infer.stepwise.rows import put_rows
from pyro_tilt.ops.reindex import reindex

__all__ = ["Held"]


@dataclass
class Held:
    """
    What all chains hold, and how to get more proposals without another pass of the step.

    :ivar first: the values held, at first one proposal for every chain.
    :ivar kernel: the law of the step, where it can be drawn from again.
    :ivar fresh: whether the first proposals still wait for their verdict.
    """

    first: Pass
    kernel: Kernel | None
    fresh: bool = True

    def from_kernel(self, rows: Tensor, repeats: int) -> Pass:
        """Proposals from the law that the first pass evaluated."""
        assert self.kernel is not None
        value = self.kernel.draw(rows, repeats)
        return Pass(value, {self.kernel.name: value}, None, [], {})

    def keep(self, chains: Tensor, holder: Pass, source: Tensor) -> None:
        """Puts the accepted rows of ``holder`` in place."""
        if holder is self.first:
            return
        first = self.first
        if self.kernel is not None:
            moved = put_rows(first.carry, chains, holder.carry[source.to(holder.carry.device)])
            first.carry, first.values = moved, {self.kernel.name: moved}
            return
        if first.carry is not None and holder.carry is not None:
            size = next(iter(holder.values.values())).shape[0]
            first.carry = put_rows(first.carry, chains, reindex(holder.carry, source, size=size))
        first.put(chains, holder.take(source))
