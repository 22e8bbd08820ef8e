# SPDX-License-Identifier: Apache-2.0
"""How often to move, and how far, at one temperature."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyro_tilt.infer.tempered.density import Particles, ProgramDensity
from pyro_tilt.infer.tempered.kernels import Kernel, Place, move
from pyro_tilt.infer.tempered.schedule import Stage, Tuning

__all__ = ["LOW_CORRELATION", "Moved", "Mover", "correlation"]

LOW_CORRELATION = 0.1
_SMALLEST_STEP = 1e-6
_GAIN = 2.0


@dataclass(frozen=True, eq=False)
class Moved:
    """
    What the moves at one temperature led to.

    :ivar particles: the population.
    :ivar stage: the temperature, the number of moves, and the last tuning.
    :ivar acceptance_rate: share of proposals accepted; nan without moves.
    :ivar correlation: with the start of the moves, see :func:`correlation`.
    """

    particles: Particles
    stage: Stage
    acceptance_rate: float
    correlation: float


@dataclass
class Mover:
    """
    Moves a population; adapts unless a tuned stage says how.

    :ivar moves: a fixed number; None to stop once the particles have forgotten their start.
    :ivar max_moves: most moves at one temperature.
    :ivar step_size: the step that the next temperature begins with.
    """

    kernel: Kernel
    density: ProgramDensity
    generator: torch.Generator
    moves: int | None
    max_moves: int
    step_size: float

    def at(self, particles: Particles, beta: float, frozen: Stage | None) -> Moved:
        """
        Moves the particles at one temperature.

        :param particles: the population.
        :param beta: the temperature.
        :param frozen: moves and tuning to keep to.
        """
        walk = _Walk(self, particles, beta, frozen)
        limit = self.moves if frozen is None else frozen.moves
        while walk.count < (self.max_moves if limit is None else limit):
            walk.step()
            if limit is None and walk.correlation() < LOW_CORRELATION:
                break
        return walk.finish(walk.particles)

    def chains(self, particles: Particles, beta: float, frozen: Stage | None, length: int) -> Moved:
        """
        All states of chains that start at the particles, which are its first states.

        :param length: states of a chain.
        """
        walk = _Walk(self, particles, beta, frozen)
        states = [walk.particles]
        for _ in range(length - 1):
            walk.step()
            states.append(walk.particles)
        return walk.finish(Particles.cat(states))


class _Walk:
    def __init__(
        self, mover: Mover, particles: Particles, beta: float, frozen: Stage | None
    ) -> None:
        self.mover, self.beta, self.frozen = mover, beta, frozen
        if frozen is None:
            self.tuning = Tuning(mover.step_size, mover.kernel.shape(particles))
        else:
            self.tuning = frozen.tuning
        self.particles = mover.kernel.begin(mover.density, particles, beta)
        self.start = particles.position
        self.moved = torch.zeros(len(particles), dtype=torch.bool, device=_device(particles))
        self.count, self.accepted = 0, 0.0

    def step(self) -> None:
        mover = self.mover
        place = Place(mover.density, self.particles, self.beta, self.tuning, mover.generator)
        self.particles, accepted = move(mover.kernel, place)
        self.moved |= accepted
        rate = float(accepted.double().mean())
        self.count, self.accepted = self.count + 1, self.accepted + rate
        if self.frozen is None:
            self.tuning = _adapted(mover.kernel, self.tuning, rate)
            mover.step_size = self.tuning.step_size

    def correlation(self) -> float:
        if self.start is None or self.particles.position is None:
            return 1.0 - float(self.moved.double().mean())
        return correlation(self.start, self.particles.position)

    def finish(self, particles: Particles) -> Moved:
        rate = self.accepted / self.count if self.count else math.nan
        stage = Stage(self.beta, self.count, self.tuning)
        kept = replace(particles, gradient=None)
        return Moved(kept, stage, rate, self.correlation() if self.count else 1.0)


def correlation(start: Tensor, position: Tensor) -> float:
    """
    The largest correlation, over the coordinates, between two populations of the same particles.

    :param start: ``(N, D)``.
    :param position: ``(N, D)``, row by row the same particles.
    :returns: 1 where a coordinate does not vary, so that nothing can be told.

    >>> start = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 3.0]])
    >>> round(correlation(start, start), 6)
    1.0
    """
    if start.shape[1] == 0:
        return 0.0
    before, after = start.double() - start.double().mean(0), position.double()
    after = after - after.mean(0)
    size = (before.square().sum(0) * after.square().sum(0)).sqrt()
    ratio = torch.where(size > 0, (before * after).sum(0) / size, torch.ones_like(size))
    return float(ratio.amax())


def _adapted(kernel: Kernel, tuning: Tuning, rate: float) -> Tuning:
    if kernel.target_acceptance is None:
        return tuning
    step = tuning.step_size * math.exp(_GAIN * (rate - kernel.target_acceptance))
    return replace(tuning, step_size=min(max(step, _SMALLEST_STEP), kernel.longest_step))


def _device(particles: Particles) -> torch.device:
    return particles.log_weights.device
