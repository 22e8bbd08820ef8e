# SPDX-License-Identifier: Apache-2.0
"""States of a sampler's own run and what came after them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_tilt.infer.particle_rules import note_rules
from pyro_tilt.infer.seeding import derive_seed
from pyro_tilt.infer.smc.messenger import StepMessenger
from pyro_tilt.infer.smc.plan import StepPlan
from pyro_tilt.infer.smc.population import Population
from pyro_tilt.infer.twists.learned import LearnedTwist, check_features
from pyro_tilt.ops.importance import as_double
from pyro_tilt.poutine.particle_plate import ParticlePlate

__all__ = ["Recording", "record"]


@dataclass
class Recording:
    """
    One run of a population, step by step.

    :ivar xs: elements of ``xs``.
    :ivar features: of the carries before resampling, each (N, d).
    :ivar increments: log weight that each step added, (N,) each.
    :ivar ancestors: who goes on after each step, None for everyone.
    :ivar tail: log weight of what came after the last step, (N,).
    :ivar masks: of the carries before resampling that matter, (N,) each; empty where all do.
    """

    xs: list[Any] = field(default_factory=list)
    features: list[Tensor] = field(default_factory=list)
    increments: list[Tensor] = field(default_factory=list)
    ancestors: list[Tensor | None] = field(default_factory=list)
    tail: Tensor = field(default_factory=lambda: torch.zeros(0))
    masks: list[Tensor] = field(default_factory=list)

    def states(self, place: int) -> Tensor:
        """
        Features of the particles that went on from a step, (N, d).

        :param place: position of the step.
        """
        index = self.ancestors[place]
        return self.features[place] if index is None else self.features[place][index]

    def mattering(self, place: int) -> Tensor | None:
        """
        Which of :meth:`states` matter, (N,); None where all do.

        :param place: position of the step.
        """
        if not self.masks:
            return None
        mask, index = self.masks[place], self.ancestors[place]
        return mask if index is None else mask[index]

    def returns(self, place: int, following: Tensor | None, twist: LearnedTwist) -> Tensor:
        r"""
        One draw of what each of :meth:`states` has ahead, in logarithms.

        The sum of the log weights along the particle's own path up to the next resampling, and the
        log value there; without a resampling up to the end.

        :param place: position of the step.
        :param following: the returns of the step after, None at the last step.
        :param twist: gives the value where the path is cut.
        """
        if following is None:
            return self.tail
        after = place + 1
        if self.ancestors[after] is not None:
            with torch.no_grad():
                following = twist.value(twist.padded(self.features[after]), after)
        return self.increments[after] + following


class _Ledger(Population):
    """A population that keeps its increments and ancestors, and may fork once."""

    def __init__(
        self, size: int, recording: Recording, *, fork_after: int | None, **options: Any
    ) -> None:
        super().__init__(size, **options)
        self.recording = recording
        self.fork_after = fork_after

    def advance(self, increment: Tensor | None, twist: Tensor | None, where: str) -> Tensor | None:
        index = super().advance(increment, twist, where)
        if len(self.recording.ancestors) == self.fork_after:
            index = self._fork()
        self.recording.increments.append(_filled(increment, self.size))
        self.recording.ancestors.append(index)
        return index

    def _fork(self) -> Tensor:
        """Lets the first half of the particles go on twice, in place of the second half."""
        assert self.log_weights is not None
        device = self.log_weights.device
        index = torch.arange(self.size, device=device) % (self.size // 2)
        self.log_weights = self.log_weights.index_select(0, index)
        self._move(index)
        return index


def record(
    plan: StepPlan,
    size: int,
    *,
    features: Callable[[Any], Tensor],
    twist: LearnedTwist | None,
    ess_threshold: float,
    seed: int,
    where: Callable[[Any], Tensor] | None = None,
    fork_after: int | None = None,
) -> Recording:
    """
    Runs the program's own kernels, resampled by a twist, and keeps what learning needs.

    :param plan: the program.
    :param size: number of particles.
    :param features: of a carry.
    :param twist: resampling goes by it; None for no twist.
    :param ess_threshold: resample below this share of ``size``.
    :param seed: of the resampling.
    :param where: of a carry, whose states matter; None for all.
    :param fork_after: position of a step after which the first half goes on twice, so that rows i
        and i + N/2 have one state and two futures; the size is to be even.
    :raises ValueError: if the program has no steps.
    """
    made = Recording()
    ledger = _Ledger(
        size,
        made,
        fork_after=fork_after,
        threshold=ess_threshold,
        generator=torch.Generator().manual_seed(derive_seed(seed, 1)),
    )

    def watch(carry: Any, x: Any) -> Tensor:
        read = check_features(features(carry))
        made.xs.append(x)
        made.features.append(read)
        if where is not None:
            made.masks.append(_checked_mask(where(carry), size))
        if twist is None:
            return torch.zeros(size, device=read.device)
        return twist(carry, x)

    plate = ParticlePlate(size, -1 - plan.max_plate_nesting)
    assert plate.dim is not None
    messenger = StepMessenger(size, plate.dim, ledger, twist=watch)
    try:
        with torch.no_grad(), pyro.validation_enabled(False), messenger, plate:
            messenger.begin()
            plan.program(*plan.args, **plan.kwargs)
    except (RuntimeError, ValueError, IndexError) as error:
        note_rules(error)
        raise
    if not made.xs:
        raise ValueError("learn_twists: the program has no steps; declare them by scan")
    made.tail = _filled(messenger._take(), size)
    return made


def _checked_mask(mask: Any, size: int) -> Tensor:
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != (size,):
        got = f"{mask.dtype} {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask)
        raise ValueError(f"where= must return a bool tensor of shape ({size},), got {got}")
    return mask


def _filled(increment: Tensor | None, size: int) -> Tensor:
    if increment is None:
        return torch.zeros(size, dtype=torch.float64)
    return as_double(increment).expand(size).clone()
