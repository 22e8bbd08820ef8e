# SPDX-License-Identifier: Apache-2.0
"""One run along the temperatures."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from pyro_tilt.infer.base_draws import BaseDraws
from pyro_tilt.infer.certificate import Certificate
from pyro_tilt.infer.errors import ZeroWeights
from pyro_tilt.infer.sampler import Run
from pyro_tilt.infer.tempered.density import Particles, ProgramDensity
from pyro_tilt.infer.tempered.moves import LOW_CORRELATION, Moved, Mover
from pyro_tilt.infer.tempered.schedule import Schedule, Stage, Tuning, next_temperature, scaled
from pyro_tilt.infer.weighted_samples import WeightedSamples
from pyro_tilt.ops.importance import as_double, effective_sample_size
from pyro_tilt.ops.resampling import systematic

__all__ = ["Annealing"]


@dataclass
class Annealing:
    r"""
    The particles on their way from temperature 0 to 1.

    With :math:`W_i` the normalised weights carried from stage to stage,

    .. math:: \hat Z = \prod_t \sum_i W_i\, w_i^{\lambda_t - \lambda_{t-1}}

    :ivar schedule: temperatures, all that a pilot run adapted, or None to adapt.
    :ivar threshold: share of N that the effective sample size is allowed to fall to.
    :ivar ancestors: number of ancestors of a waste-free run.
    :ivar correlation: largest correlation that moves at any temperature left with their start.
    """

    run: Run
    mover: Mover
    particles: Particles
    schedule: list[float] | Schedule | None
    threshold: float
    ancestors: int | None
    log_z: float = 0.0
    variance: float = 0.0
    correlation: float = 0.0
    steps: dict[str, list[float]] = field(default_factory=dict)
    stages: list[Stage] = field(default_factory=list)

    def __post_init__(self) -> None:
        draws = self.particles.draws
        self.base = BaseDraws(reward=draws.reward, log_factors=draws.log_factors)
        self.log_cumulative = torch.zeros_like(as_double(draws.log_weights))
        self.ancestor = torch.arange(len(draws), device=draws.log_weights.device)

    def run_through(self, bar: tqdm) -> None:
        """All stages; the bar counts the particles times the temperature."""
        beta = 0.0
        for frozen in self._plan():
            target = self._next(beta, frozen)
            self._stage(beta, target, frozen)
            beta = target
            bar.set_postfix(temperature=f"{beta:.3g}", refresh=False)
            bar.update(round(beta * len(self.particles)) - bar.n)
            if beta == 1.0:
                return

    def found(self, kernel: str) -> Schedule:
        """What this run adapted."""
        return Schedule(tuple(self.stages), kernel)

    def result(self, *, unbiased: bool, **described: Any) -> WeightedSamples:
        """The population with raw weights whose mean is the evidence."""
        draws, count = self.particles.draws, len(self.particles)
        log_weights = self.log_cumulative - self.log_cumulative.logsumexp(0)
        log_weights = log_weights + math.log(count) + self.log_z
        error = math.nan if self.ancestors or count < 2 else math.sqrt(self.variance)
        proposal = self.run.proposal
        return WeightedSamples(
            kind="weighted",
            samples=draws.samples,
            log_weights=log_weights,
            log_normalizer=log_weights.new_tensor(self.log_z),
            log_normalizer_error=log_weights.new_tensor(error),
            certificate=self._certificate(unbiased),
            cost=self.run.cost(self._density.rows),
            stats={"ancestor": self.ancestor}
            | ({"reward": draws.reward} if proposal.beta is not None else {}),
            steps=self._step_tensors(),
            beta=proposal.beta,
            info={
                "total_moves": sum(self.steps.get("moves", [])),
                "correlation": self.correlation,
            },
            base=self.base,
            **described,
        )

    @property
    def _density(self) -> ProgramDensity:
        return self.mover.density

    def _plan(self) -> Iterator[Stage | float | None]:
        if self.schedule is None:
            while True:
                yield None
        yield from self.schedule.stages if isinstance(self.schedule, Schedule) else self.schedule

    def _next(self, beta: float, planned: Stage | float | None) -> float:
        log_weights = self.particles.log_weights
        alive = self.log_cumulative.masked_fill(log_weights == -math.inf, -math.inf)
        if not bool((alive > -math.inf).any()):
            raise ZeroWeights(
                f"all {len(alive)} weights are zero at temperature {beta:.3g}: the reward or an "
                "observation is -inf wherever the program sampled. Take more particles, widen the "
                "program, or soften the constraint; the draws are in .partial of this error",
                self._zero_result(),
            )
        if planned is None:
            return next_temperature(self.log_cumulative, log_weights, beta, self.threshold)
        return planned.beta if isinstance(planned, Stage) else planned

    def _stage(self, beta: float, target: float, planned: Stage | float | None) -> None:
        count = len(self.particles)
        log_weights = self.particles.log_weights
        before = self.log_cumulative.logsumexp(0)
        self.log_cumulative = self.log_cumulative + scaled(log_weights, target - beta)
        self.log_z += float(self.log_cumulative.logsumexp(0) - before)
        ess = float(effective_sample_size(self.log_cumulative))
        frozen = planned if isinstance(planned, Stage) else None
        unweighted = planned is None and not bool((log_weights != 0).any())
        resampled = not unweighted and (
            planned is None
            or frozen is not None
            or self.ancestors is not None
            or target == 1.0
            or ess < self.threshold * count
        )
        unique = count
        if resampled:
            unique = self._resample(ess)
        if unweighted:
            # Every weight is one: the draws of the program are those of the target.
            tuning = Tuning(self.mover.step_size, None)
            moved = Moved(self.particles, Stage(target, 0, tuning), math.nan, 0.0)
        elif self.ancestors is not None:
            moved = self.mover.chains(self.particles, target, frozen, count // self.ancestors)
            self.ancestor = self.ancestor.repeat(count // self.ancestors)
        else:
            moved = self.mover.at(self.particles, target, frozen)
        self.particles = moved.particles
        self.correlation = max(self.correlation, moved.correlation)
        self.stages.append(moved.stage)
        self._note(moved, ess=ess, resampled=float(resampled), unique_ancestors=float(unique))

    def _resample(self, ess: float) -> int:
        count = len(self.particles)
        if count > 1:
            self.variance += (count / ess - 1.0) / (count - 1)
        size = self.ancestors or count
        index = systematic(self.log_cumulative, size, self.mover.generator)
        self.particles = self.particles.index(index)
        self.ancestor = self.ancestor[index]
        self.log_cumulative = self.log_cumulative.new_zeros(count)
        # Systematic resampling leaves its indices in order.
        return int(index.diff().count_nonzero()) + 1

    def _note(self, moved: Moved, **values: float) -> None:
        values |= {
            "beta": moved.stage.beta,
            "acceptance_rate": moved.acceptance_rate,
            "log_normalizer": self.log_z,
            "moves": float(moved.stage.moves),
            "step_size": moved.stage.tuning.step_size,
            "correlation": moved.correlation,
        }
        for name, value in values.items():
            self.steps.setdefault(name, []).append(value)

    def _step_tensors(self) -> dict[str, Tensor]:
        steps = {
            name: torch.tensor(values, dtype=torch.float64) for name, values in self.steps.items()
        }
        for name, dtype in _DTYPES.items():
            if name in steps:
                steps[name] = steps[name].to(dtype)
        return steps

    def _zero_result(self) -> WeightedSamples:
        draws = self.particles.draws
        return WeightedSamples(
            kind="weighted",
            samples=draws.samples,
            log_weights=torch.full_like(as_double(draws.log_weights), -math.inf),
            certificate=self._certificate(False),
            cost=self.run.cost(self._density.rows),
            stats={"reward": draws.reward} if self.run.proposal.beta is not None else {},
            steps=self._step_tensors(),
            beta=self.run.proposal.beta,
            base=self.base,
            sampler=self.run.description.split()[0],
        )

    def _certificate(self, unbiased: bool) -> Certificate:
        covers = "self-normalised expectations"
        excludes = "the error at this number of particles"
        if unbiased:
            covers += "; the evidence is unbiased, its schedule being frozen"
        else:
            excludes += "; the bias of the evidence, of order 1 / num_particles, from the "
            excludes += "adaptation of temperatures and moves (freeze_schedule removes it)"
        if self.correlation > LOW_CORRELATION:
            excludes += "; moves that stopped while the particles kept a correlation of up to "
            excludes += f"{self.correlation:.2f} with their start, so that the stated error of "
            excludes += "the evidence may be too small"
        return Certificate(
            target="joint tilt",
            law="consistent",
            budget="num_particles",
            covers=covers,
            excludes=excludes,
        )


_DTYPES = {"resampled": torch.bool, "moves": torch.int64, "unique_ancestors": torch.int64}
