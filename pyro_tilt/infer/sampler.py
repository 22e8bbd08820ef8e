# SPDX-License-Identifier: Apache-2.0
"""What every sampler over a Pyro program shares.

A run goes through the same gate whichever engine does the work: the arguments are checked, the
program is run once to learn its sites, each chain gets random states of its own, the work is
timed and counted, and the chains are merged into one :class:`WeightedSamples`.
"""

from __future__ import annotations

import numbers
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from tqdm import tqdm

from pyro_tilt.infer.cost import Cost, CountRows
from pyro_tilt.infer.errors import SamplingError
from pyro_tilt.infer.merge import merge
from pyro_tilt.infer.proposal import ProgramProposal
from pyro_tilt.infer.seeding import derive_seed, seeded
from pyro_tilt.infer.weighted_samples import WeightedSamples
from pyro_tilt.ops.pool import acceptance_generator
from pyro_tilt.poutine import align

__all__ = ["Run", "Sampler", "check_count"]

DEFAULT_MAX_BATCH = 2**17
# Between two of them the progress bar moves; a program run draw by draw needs no large blocks.
_LOOP_BLOCK = 256
_ACCEPT_STREAM, _CALIBRATION_STREAM = 1, 2


@dataclass
class Run:
    """One chain while it runs: its proposal, its random streams, its cost so far.

    :ivar proposal: the program, vectorised over particles.
    :ivar stream: seeds what must not touch the stream of proposals; read off the random state of
        an unseeded run, never drawn from it.
    :ivar progress: True, False, or None to show a bar only where the work takes seconds.
    """

    proposal: ProgramProposal
    stream: int
    progress: bool | None
    description: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    rows: CountRows = field(default_factory=CountRows)
    started: float = field(default_factory=time.perf_counter)

    @property
    def accept_seed(self) -> int:
        """Seed of the acceptance uniforms."""
        return derive_seed(self.stream, _ACCEPT_STREAM)

    @property
    def calibration_seed(self) -> int:
        """Seed of draws that only tune the sampler."""
        return derive_seed(self.stream, _CALIBRATION_STREAM)

    def cost(self, base_draws: int) -> Cost:
        """The cost of ``base_draws`` rows of the program up to now.

        The single run that learned the program's sites is not among them.
        """
        return Cost(
            base_draws=base_draws,
            reward_calls=base_draws * self.proposal.num_rewards,
            network_rows=self.rows.rows,
            seconds=time.perf_counter() - self.started,
        )

    def bar(self, total: int) -> tqdm:
        """A progress bar over draws; where progress is None it appears after three seconds."""
        return tqdm(
            total=total,
            desc=self.description,
            unit=" draws",
            disable=self.progress is False,
            delay=0 if self.progress else 3,
        )


class Sampler(ABC):
    """Base class of the samplers: options in the constructor, program arguments in :meth:`run`.

    :param program: a Pyro program, usually from :func:`~pyro_tilt.poutine.align`.
    :param reward: sugar for ``align(program, reward, beta)``.
    :param beta: multiplies the reward (default 1); the KL coefficient of the RLHF literature is
        its inverse. Only together with ``reward``.
    :param int num_samples: draws per chain (default 1000); ``num_particles`` is another name.
    :param int num_chains: independent runs; they are kept visible as chains of the result.
    :param int seed: makes the run reproduce and leaves the caller's random states untouched; if
        None the run uses and advances the global ones.
    :param bool progress: show a progress bar; None shows one where the work takes seconds.
    :param int max_batch: most rows of the program run at once; bounds memory.
    :param int max_plate_nesting: as in Pyro's engines; guessed by default.
    :param bool vectorized: False runs the program once per draw, for programs whose control flow
        depends on what they sample.
    :raises ValueError: for counts below one, a beta without a reward, both count names at once.
    """

    _takes_guide: ClassVar[bool] = False

    def __init__(
        self,
        program: Callable[..., Any],
        *,
        reward: Any = None,
        beta: Any = None,
        num_samples: int | None = None,
        num_particles: int | None = None,
        num_chains: int = 1,
        seed: int | None = None,
        progress: bool | None = None,
        max_batch: int | None = None,
        max_plate_nesting: int | None = None,
        vectorized: bool = True,
    ) -> None:
        if not callable(program):
            raise TypeError(f"program must be callable, got {type(program).__name__}")
        if num_samples is not None and num_particles is not None:
            raise ValueError("num_samples and num_particles are two names of one option; give one")
        if beta is not None and reward is None:
            raise ValueError(
                "beta was given without a reward; give reward= as well, or align the program first"
            )
        if reward is not None:
            program = align(program, reward, 1.0 if beta is None else beta)
        self.program = program
        count = num_samples if num_samples is not None else num_particles
        self.num_samples = check_count("num_samples", 1000 if count is None else count)
        self.num_chains = check_count("num_chains", num_chains)
        self.max_batch = check_count(
            "max_batch", DEFAULT_MAX_BATCH if max_batch is None else max_batch
        )
        self.seed = _check_seed(seed)
        self.progress = progress
        self.max_plate_nesting = max_plate_nesting
        self.vectorized = vectorized
        self.guide: Callable[..., Any] | None = None

    @property
    def block(self) -> int:
        """Most rows to ask of the proposal at once."""
        return self.max_batch if self.vectorized else min(self.max_batch, _LOOP_BLOCK)

    def run(self, *args: Any, **kwargs: Any) -> WeightedSamples:
        """Draws from the program's target; all arguments go to the program."""
        results: list[WeightedSamples] = []
        try:
            results.extend(self._chains(args, kwargs))
        except SamplingError as error:
            if results:
                parts = results if error.partial is None else [*results, error.partial]
                error.partial = merge(*parts)
            raise
        return merge(*results)

    @abstractmethod
    def _sample(self, run: Run) -> WeightedSamples:
        """One chain of ``num_samples`` draws."""

    def _chains(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[WeightedSamples]:
        for chain in range(self.num_chains):
            seed = self.seed
            if seed is not None and chain:
                seed = derive_seed(seed, 0, chain)
            with seeded(seed):
                run = Run(
                    proposal=self._proposal(args, kwargs),
                    stream=self._stream() if seed is None else seed,
                    progress=self.progress,
                    description=type(self).__name__
                    + (f" {chain + 1}/{self.num_chains}" if self.num_chains > 1 else ""),
                    args=args,
                    kwargs=kwargs,
                )
                try:
                    with run.rows:
                        result = self._sample(run)
                except SamplingError as error:
                    if error.partial is not None:
                        _exclude(error.partial, run.proposal)
                    raise
            yield _exclude(result, run.proposal)

    def _stream(self) -> int:
        return acceptance_generator().initial_seed()

    def _proposal(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ProgramProposal:
        return ProgramProposal(
            self.program,
            args,
            kwargs,
            guide=self.guide,
            max_plate_nesting=self.max_plate_nesting,
            vectorized=self.vectorized,
            preserve_numpy=self.seed is not None,
        )


def _exclude(result: WeightedSamples, proposal: ProgramProposal) -> WeightedSamples:
    """Names the errors in the program's own law that no sampler here can see."""
    words = [result.certificate.excludes]
    if proposal.quadrature:
        sites = (f"{k!r} ({error:.1e} in a plain run)" for k, error in proposal.quadrature.items())
        words.append(f"the quadrature error of Tilted sites {', '.join(sites)}")
    if proposal.minibatches:
        plates = ", ".join(repr(name) for name in proposal.minibatches)
        words.append(
            f"what the minibatches of {plates} leave out: the target weighs a draw by the "
            "minibatch drawn with it, not by all of the data"
        )
    excludes = "; ".join(text for text in words if text)
    result.certificate = replace(result.certificate, excludes=excludes)
    return result


def check_count(name: str, value: int, *, at_least: int = 1) -> int:
    """The count as an int; ``ValueError`` where it is none or too small."""
    whole = isinstance(value, numbers.Real) and not isinstance(value, bool) and value % 1 == 0
    if not whole or value < at_least:
        raise ValueError(f"{name} must be an integer of at least {at_least}, got {value!r}")
    return int(value)


def _check_seed(seed: int | None) -> int | None:
    if seed is None:
        return None
    if isinstance(seed, bool) or not isinstance(seed, numbers.Integral) or not 0 <= seed < 2**32:
        raise ValueError(f"seed must be None or an integer in [0, 2**32), got {seed!r}")
    return int(seed)
