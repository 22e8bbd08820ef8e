# SPDX-License-Identifier: Apache-2.0
"""Rejection for many chains at once: each proposes until it has accepted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_tilt.infer.errors import AcceptanceTooLow

__all__ = ["Accepted", "accept"]

Draw = Callable[[Tensor, int], tuple[Tensor, Any]]
Keep = Callable[[Tensor, Any, Tensor], None]


@dataclass
class Accepted:
    """
    What the chains ended on.

    :ivar log_weights: A of the value each chain holds, shape (n,).
    :ivar proposals: proposals up to the first acceptance, or the cap, shape (n,).
    :ivar later: proposals up to the last acceptance that was asked for, shape (n,).
    :ivar capped: chains that hold a rejected value, shape (n,).
    """

    log_weights: Tensor
    proposals: Tensor
    later: Tensor
    capped: Tensor


def accept(
    draw: Draw,
    keep: Keep,
    baseline: Tensor,
    *,
    generator: torch.Generator,
    acceptances: int = 1,
    max_proposals: int | None = None,
    min_acceptance: float = 1e-6,
    max_rows: int = 2**17,
    where: str = "a step",
) -> Accepted:
    r"""
    Proposes for every chain until it accepts, with probability :math:`\min(1, e^{A - b})`.

    Blocks of several proposals per chain begin only once many were rejected, so that hardly more
    are drawn than used.

    :param draw: maps chains (shape (M,)) and a number R of proposals for each to their A, shape
        (M * R,), chain by chain, and whatever holds the values.
    :param keep: is told chains, that holder and its rows, to keep these values; called again for
        a chain whose value was rejected.
    :param baseline: b of each chain, shape (n,).
    :param acceptances: go on to this many, of which the first is kept.
    :param max_proposals: most proposals before the first acceptance; the chain then holds its
        last, rejected value.
    :param min_acceptance: give up once a chain has had the inverse of this many proposals.
    :raises AcceptanceTooLow: see ``min_acceptance``.
    """
    n, device = len(baseline), baseline.device
    found = Accepted(
        baseline.new_full((n,), torch.nan),
        torch.zeros(n, dtype=torch.long, device=device),
        torch.zeros(n, dtype=torch.long, device=device),
        torch.zeros(n, dtype=torch.bool, device=device),
    )
    hits = torch.zeros(n, dtype=torch.long, device=device)
    waiting, seen = torch.arange(n, device=device), 0
    while len(waiting):
        count = len(waiting)
        repeats = max(1, min(seen // 4, max_rows // count))
        if max_proposals is not None and seen < max_proposals:
            repeats = min(repeats, max_proposals - seen)
        flat, holder = draw(waiting, repeats)
        A = flat.view(count, repeats)
        uniforms = torch.rand((count, repeats), generator=generator, dtype=torch.float64)
        passed = uniforms.to(device, A.dtype).log() < A - baseline[waiting, None]
        total = hits[waiting, None] + passed.cumsum(1)
        new = hits[waiting] == 0
        here = passed.any(1)
        place = torch.where(here, passed.int().argmax(1), repeats - 1)
        chains = waiting[new]
        source = (torch.arange(count, device=device) * repeats + place)[new]
        if len(chains):
            keep(chains, holder, source)
            found.log_weights[chains] = flat[source].to(found.log_weights)
            found.proposals[chains] = seen + place[new] + 1
        done = total[:, -1] >= acceptances
        reached = (total >= acceptances).int().argmax(1)
        found.later[waiting[done]] = seen + 1 + reached[done]
        hits[waiting] = total[:, -1].clamp(max=acceptances)
        seen += repeats
        left = ~done
        if max_proposals is not None and seen >= max_proposals:
            stuck = left & (hits[waiting] == 0)
            found.capped[waiting[stuck]] = True
            left &= ~stuck
        waiting = waiting[left]
        if len(waiting) and seen * min_acceptance >= 1.0:
            raise AcceptanceTooLow(
                f"{where}: {len(waiting)} of {n} chains accepted none of {seen} proposals, more "
                f"than 1 / min_acceptance; set max_proposals, lower the baseline (a larger "
                "epsilon), or check the values at the states before this step"
            )
    return found
