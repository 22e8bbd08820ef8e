# SPDX-License-Identifier: Apache-2.0
"""What the samplers of tilted diffusions share: the run, the result, the certificate."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from pyro_tilt.infer.certificate import Certificate
from pyro_tilt.infer.sampler import Run, Sampler, check_count
from pyro_tilt.infer.tilts.protocols import DiffusionModel
from pyro_tilt.infer.weighted_samples import WeightedSamples
from pyro_tilt.rewards import Reward

__all__ = ["TARGET", "DiffusionTilt", "TiltDraws", "tilt_certificate"]

TARGET = "continuous-time tilt of the diffusion"


@dataclass
class TiltDraws:
    """
    What the engine of a tilt hands back.

    :ivar values: draws of ``x_0``, ``(n,)`` + event shape.
    :ivar log_normalizer: log evidence with beta folded in, nan where it is not known.
    :ivar log_normalizer_error: its standard error, zero where it is exact.
    :ivar rows: rows of the denoiser that were evaluated.
    :ivar base_draws: runs of the base sampler, partial ones included.
    :ivar independent: whether the draws are independent of each other.
    :ivar excludes: errors that this way of drawing adds to those of every tilt, in words.
    :ivar certificate: in place of the certificate of every tilt.
    :ivar stats: more numbers per draw.
    :ivar steps: numbers per level.
    :ivar info: numbers of the run.
    """

    values: Tensor
    log_normalizer: float = math.nan
    log_normalizer_error: float = math.nan
    rows: int = 0
    base_draws: int = 0
    independent: bool = True
    excludes: str = ""
    certificate: Certificate | None = None
    stats: dict[str, Tensor] = field(default_factory=dict)
    steps: dict[str, Tensor] = field(default_factory=dict)
    info: dict[str, float] = field(default_factory=dict)


class DiffusionTilt(Sampler):
    """
    Base class of the tilts of a diffusion model.

    :param base: the model, a :class:`DiffusionModel`.
    :param reward: the reward, without beta.
    :param beta: multiplies the reward.
    :param sampler: ``"ancestral"``, ``"heun"`` or ``"euler"``.
    :param eta: noise of the ancestral sampler.
    :raises TypeError: for a base that is no diffusion model.
    :raises ValueError: for a beta that is not finite, and as every sampler.
    """

    def __init__(
        self,
        base: DiffusionModel,
        reward: Reward,
        *,
        beta: float = 1.0,
        sampler: str = "ancestral",
        eta: float = 1.0,
        num_samples: int | None = None,
        num_particles: int | None = None,
        num_chains: int = 1,
        seed: int | None = None,
        progress: bool | None = None,
        max_batch: int | None = None,
    ) -> None:
        if not isinstance(base, DiffusionModel):
            raise TypeError(
                f"{type(self).__name__} tilts a diffusion model, such as "
                "diffusion.MixtureDiffusion or diffusion.from_diffusers(unet, scheduler); got "
                f"{type(base).__name__}"
            )
        if not math.isfinite(beta):
            raise ValueError(f"beta must be finite, got {beta}")
        super().__init__(
            base.program(sampler, eta=eta),
            num_samples=num_samples,
            num_particles=num_particles,
            num_chains=num_chains,
            seed=seed,
            progress=progress,
            max_batch=max_batch,
        )
        self.base, self.reward, self.beta = base, reward, float(beta)
        self.diffusion_sampler, self.eta = sampler, float(eta)
        self.rows = None if max_batch is None else check_count("max_batch", max_batch)

    @abstractmethod
    def _draw(self, run: Run, bar: tqdm) -> TiltDraws:
        """Draws ``num_samples`` values; the bar is told of every row of a step."""

    def _proposal(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args or kwargs:
            raise TypeError(f"{type(self).__name__}.run takes no arguments: the model has none")
        return _Model()

    def _sample(self, run: Run) -> WeightedSamples:
        bar = tqdm(
            desc=run.description,
            total=self.num_samples * self.base.evaluations("euler", self.base.schedule.steps),
            unit=" rows",
            disable=self.progress is False,
            delay=0 if self.progress else 3,
        )
        with bar, torch.no_grad():
            made = self._draw(run, bar)
            values = self.reward(made.values)
        known = math.isfinite(made.log_normalizer)
        weights = torch.full_like(values, made.log_normalizer if known else 0.0).double()
        kl = self.beta * float(values.double().mean()) - made.log_normalizer
        return WeightedSamples(
            kind="iid" if made.independent else "weighted",
            samples={"x_0": made.values},
            log_weights=weights,
            log_normalizer=weights.new_tensor(made.log_normalizer),
            log_normalizer_error=weights.new_tensor(made.log_normalizer_error),
            certificate=made.certificate
            or tilt_certificate(
                self.base,
                made.excludes,
                budget="steps" if made.independent else "steps and num_samples",
            ),
            cost=replace(run.cost(made.base_draws), reward_calls=len(values)),
            stats={"reward": values, **made.stats},
            steps=made.steps,
            beta=self.beta,
            info={"kl": kl, "denoiser_rows": float(made.rows), **made.info},
            sampler=type(self).__name__,
            program=self.program,
        )


class _Model:
    """Stands where a sampler of a program keeps its proposal."""

    num_rewards = 1
    quadrature: dict[str, float] = {}
    minibatches: list[str] = []


def tilt_certificate(
    base: DiffusionModel, excludes: str = "", *, budget: str = "steps"
) -> Certificate:
    """
    The certificate of draws whose law is that of a tilted sampler.

    :param base: the model.
    :param excludes: more errors that are left out.
    :param budget: what has to grow.
    """
    first, steps = base.schedule.levels[0], len(base.schedule.levels) - 1
    words = [
        f"the time discretisation at this number of steps ({steps} in the model's schedule)",
        f"the Gaussian start where the signal is a = {first.a:.3g}",
    ]
    if not base.exact:
        words.append(
            "the network error, also where the tilt takes the network away from the states that "
            "it was trained on (z says how far)"
        )
    return Certificate(
        target=TARGET,
        law="consistent",
        budget=budget,
        covers="the tilt itself, whose identity holds at every noise level",
        excludes="; ".join([*words, excludes] if excludes else words),
    )
