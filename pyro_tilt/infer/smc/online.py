# SPDX-License-Identifier: Apache-2.0
"""Sequential Monte Carlo whose observations arrive one at a time."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from os import PathLike
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor

from pyro_tilt.infer.certificate import Certificate
from pyro_tilt.infer.errors import SamplingError
from pyro_tilt.infer.seeding import derive_seed, preserved_rng
from pyro_tilt.infer.smc import snapshot
from pyro_tilt.infer.smc.errors import ResumeError
from pyro_tilt.infer.smc.keeper import compare
from pyro_tilt.infer.smc.messenger import StepMessenger, Twist
from pyro_tilt.infer.smc.plan import StepPlan
from pyro_tilt.infer.smc.population import SCHEMES, Population
from pyro_tilt.infer.smc.portable import pack, random_states, set_random_states, unpack
from pyro_tilt.infer.smc.proposals import Proposal
from pyro_tilt.infer.weighted_samples import WeightedSamples
from pyro_tilt.ops.importance import log_mean_exp
from pyro_tilt.poutine.particle_plate import ParticlePlate

__all__ = ["OnlineSMC"]


class OnlineSMC:
    r"""Filters a stream: ``init`` starts the particles, and each :meth:`step` moves them.

    The engine is that of :class:`~pyro_tilt.infer.SMC`: after t steps the weighted particles and
    the evidence are those of ``scan("chain", step, init(), [y_1, ..., y_t])``. Site names may be
    the same in every step; the result holds the sites of ``init`` and of the last step. With a
    seed the filter has random states of its own and leaves those of the caller alone.

    :param init: a function of the arguments of :meth:`start` to the first carry.
    :param step: a function of the carry and a datum to the new carry.
    :param int num_particles: number of particles.
    :param proposal: see :class:`~pyro_tilt.infer.SMC`, as are ``twist``, ``resampling``,
        ``ess_threshold`` and ``seed``.
    :param int max_plate_nesting: number of batch dims of the program.

    >>> import pyro.distributions as dist
    >>> def init():
    ...     return pyro.sample("start", dist.Normal(0.0, 1.0))
    >>> def step(x, y):
    ...     x = pyro.sample("x", dist.Normal(0.9 * x, 0.5))
    ...     pyro.sample("y", dist.Normal(x, 1.0), obs=y)
    ...     return x
    >>> stream = OnlineSMC(init, step, num_particles=2000, seed=0).start()
    >>> for y in [0.3, 1.0, 0.4]:
    ...     stream.step(torch.tensor(y))
    >>> round(float(stream.log_normalizer)), list(stream.result().samples)
    (-4, ['start', 'x'])
    """

    def __init__(
        self,
        init: Callable[..., Any],
        step: Callable[[Any, Any], Any],
        *,
        num_particles: int = 1000,
        proposal: Proposal | None = None,
        twist: Twist | None = None,
        resampling: str = "systematic",
        ess_threshold: float = 0.5,
        seed: int | None = None,
        max_plate_nesting: int = 0,
    ) -> None:
        if resampling not in SCHEMES:
            raise ValueError(f"resampling must be one of {', '.join(SCHEMES)}; got {resampling!r}")
        if not 0.0 <= ess_threshold <= 1.0:
            raise ValueError(f"ess_threshold must lie in [0, 1], got {ess_threshold}")
        if num_particles < 1:
            raise ValueError(f"num_particles must be at least 1, got {num_particles}")
        self.init, self._step = init, step
        self.num_particles = num_particles
        self.max_plate_nesting = max_plate_nesting
        self.proposal, self.twist = proposal, twist
        self.resampling, self.ess_threshold = resampling, ess_threshold
        self.seed = seed
        self._states: tuple[Any, ...] | None = None
        self._messenger: StepMessenger | None = None
        self.carry: Any = None

    def start(self, *args: Any, **kwargs: Any) -> OnlineSMC:
        """
        Draws the first particles; a filter that ran before starts afresh.

        :param args: passed to ``init``, as are keyword arguments.
        :returns: the filter itself.
        """
        self._states = None
        plate = ParticlePlate(self.num_particles, -1 - self.max_plate_nesting)
        assert plate.dim is not None
        with self._random():
            stream = torch.initial_seed() if self.seed is None else self.seed
            generator = torch.Generator().manual_seed(derive_seed(stream, 1))
            population = Population(
                self.num_particles,
                scheme=self.resampling,
                threshold=self.ess_threshold,
                generator=generator,
            )
            self._messenger = StepMessenger(
                self.num_particles,
                plate.dim,
                population,
                proposal=self.proposal,
                twist=self.twist,
            )
            self._plate = plate
            with torch.no_grad(), pyro.validation_enabled(False), self._messenger, plate:
                self.carry = self.init(*args, **kwargs)
        self._messenger.close()
        return self

    def step(self, datum: Any) -> None:
        """
        Moves, weighs and perhaps resamples the particles.

        :param datum: what ``step`` takes beside the carry.
        :raises ZeroWeights: if no particle has a weight left.
        :raises StepError: if ``step`` raises; the particles are then those of before.
        """
        messenger = self._running()
        restore = messenger.renew()
        try:
            with (
                self._random(),
                torch.no_grad(),
                pyro.validation_enabled(False),
                messenger,
                self._plate,
            ):
                self.carry = messenger.advance(self._step, self.carry, datum)
        except SamplingError as error:
            messenger.rollback()
            restore()
            error.partial = self.result()
            raise

    def save(self, path: str | PathLike[str]) -> None:
        """
        Writes the filter to a file as plain tensors, random states included.

        :param path: the file, which is replaced where it exists.
        """
        messenger = self._running()
        with self._random():
            state = {
                "settings": self._settings(),
                "carry": pack(self.carry, "carry"),
                "messenger": snapshot.of_messenger(messenger),
                "random": random_states(messenger.population.generator),
            }
        snapshot.write(path, state)

    def restore(self, path: str | PathLike[str]) -> OnlineSMC:
        """
        Goes on where a filter was saved: later steps are those it would have made, bit for bit.

        To be called after :meth:`start`. Nothing in the file is executed. Without a seed the
        global random states become those of the file.

        :param path: what :meth:`save` wrote.
        :returns: the filter itself.
        :raises ResumeError: for a file of another filter.
        """
        messenger = self._running()
        state = snapshot.read(path)
        compare(state["settings"], self._settings(), "the filter")
        try:
            carry = unpack(state["carry"], self.carry)
        except TypeError as error:
            raise ResumeError(f"cannot resume: {error}") from None
        snapshot.set_messenger(messenger, state["messenger"])
        self.carry = carry
        with self._random():
            set_random_states(state["random"], messenger.population.generator)
        return self

    def _settings(self) -> dict[str, Any]:
        return {
            "kind": type(self).__name__,
            "num_particles": self.num_particles,
            "seed": self.seed,
            "resampling": self.resampling,
            "ess_threshold": self.ess_threshold,
            "max_plate_nesting": self.max_plate_nesting,
            "proposal": self.proposal is not None,
            "twist": self.twist is not None,
        }

    @property
    def log_normalizer(self) -> Tensor:
        """The log evidence of the data so far, without the twist."""
        return log_mean_exp(self._running().population.interim())

    @property
    def effective_sample_size(self) -> float:
        """That of the last step, before its resampling."""
        return self._running().population.ess[-1]

    def result(self) -> WeightedSamples:
        """The particles of now, weighted by the data so far, the twist removed."""
        messenger = self._running()
        population = messenger.population
        plan = StepPlan(self._step, (), {}, max_plate_nesting=self.max_plate_nesting)
        samples = plan.layout(messenger.survivors(), messenger.ranks, self.num_particles)
        log_weights = population.interim()
        reward, beta = population.reward(log_weights)
        error = population.evidence_error(log_weights)
        return WeightedSamples(
            kind="weighted",
            samples=samples,
            log_weights=log_weights,
            log_normalizer_error=torch.tensor(torch.nan) if error is None else error,
            certificate=Certificate(
                target=f"law of the stream after {messenger.steps_done} steps",
                law="consistent",
                budget="num_particles",
                covers="self-normalised expectations; the evidence is unbiased",
            ),
            stats={} if reward is None else {"reward": reward},
            steps=population.steps() if messenger.steps_done else {},
            beta=beta,
            sampler=type(self).__name__,
        )

    def _running(self) -> StepMessenger:
        if self._messenger is None:
            raise RuntimeError("the filter has no particles yet; call start() first")
        return self._messenger

    @contextmanager
    def _random(self) -> Iterator[None]:
        """The filter's own random states, where it has a seed."""
        if self.seed is None:
            yield
            return
        with preserved_rng():
            if self._states is None:
                pyro.set_rng_seed(self.seed)
            else:
                torch.set_rng_state(self._states[0])
                np.random.set_state(self._states[1])
                random.setstate(self._states[2])
            yield
            self._states = torch.get_rng_state(), np.random.get_state(), random.getstate()
