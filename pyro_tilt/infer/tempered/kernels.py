# SPDX-License-Identifier: Apache-2.0
"""Moves that leave the tempered law of a program as it is."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from pyro_tilt.infer.tempered.density import Particles, ProgramDensity
from pyro_tilt.infer.tempered.schedule import Tuning, scaled

__all__ = [
    "IndependentKernel",
    "Kernel",
    "Place",
    "RandomWalkKernel",
    "accept",
    "move",
    "population_scales",
    "population_shape",
]

_BOLD = 4


@dataclass(frozen=True, eq=False)
class Place:
    """
    Where a move starts, and what it may use.

    :ivar density: the program.
    :ivar particles: the population.
    :ivar beta: the temperature.
    :ivar tuning: step size and shape.
    :ivar generator: source of randomness, beside the program's own.
    """

    density: ProgramDensity
    particles: Particles
    beta: float
    tuning: Tuning
    generator: torch.Generator


class Kernel(ABC):
    """
    A proposal with its acceptance ratio, towards ``p(x) w(x)^beta``.

    :cvar positions: whether it moves unconstrained coordinates.
    :cvar target_acceptance: the rate that the step size is steered to; None where there is none.
    :cvar first_step: step size before anything was learned.
    :cvar longest_step: the step size never exceeds it.
    :cvar prior_slope: a for kernels that follow the gradient of ``a log p + beta log w``; None for
        those that need none.
    """

    name: ClassVar[str]
    positions: ClassVar[bool] = True
    target_acceptance: ClassVar[float | None] = None
    first_step: ClassVar[float] = 1.0
    longest_step: ClassVar[float] = math.inf
    prior_slope: ClassVar[float | None] = None

    def prepare(self, density: ProgramDensity) -> None:  # noqa: B027
        """Reads off the program what the kernel needs; an error names the site."""

    def shape(self, particles: Particles) -> Tensor | None:
        """What the proposals take from the population."""
        return None

    def begin(self, density: ProgramDensity, particles: Particles, beta: float) -> Particles:
        """The particles with the gradient that a move at this temperature needs, if any."""
        if self.prior_slope is None:
            return particles
        assert particles.position is not None
        found = density.evaluate(particles.position, gradient=(self.prior_slope, beta))
        return replace(particles, gradient=found.gradient)

    @abstractmethod
    def propose(self, at: Place) -> tuple[Particles, Tensor]:
        """Proposals and the log of their acceptance ratios, ``(N,)``."""


def accept(log_ratio: Tensor, generator: torch.Generator) -> Tensor:
    """
    Which proposals are accepted: those with a log uniform below the log ratio.

    A ratio that is nan, from a proposal without density, is refused.

    :param log_ratio: ``(N,)``.
    :param generator: source of the uniforms.

    >>> accept(torch.tensor([1.0, -torch.inf, torch.nan]), torch.Generator()).tolist()
    [True, False, False]
    """
    uniform = torch.rand(
        log_ratio.shape, dtype=log_ratio.dtype, device=log_ratio.device, generator=generator
    )
    return uniform.log() < log_ratio


def move(kernel: Kernel, at: Place) -> tuple[Particles, Tensor]:
    """One move of all particles, and which of them were accepted."""
    proposed, log_ratio = kernel.propose(at)
    accepted = accept(log_ratio, at.generator)
    return at.particles.select(accepted, proposed), accepted


def log_weight_ratio(proposed: Particles, particles: Particles, beta: float) -> Tensor:
    """``beta`` times the gain in log weight; nan where both weights are zero."""
    return scaled(proposed.log_weights, beta) - scaled(particles.log_weights, beta)


class IndependentKernel(Kernel):
    r"""
    Proposes fresh draws of all latent sites, discrete or not, from the program.

    .. math:: \log a = \lambda (\log w' - \log w)
    """

    name = "independent"
    positions = False

    def propose(self, at: Place) -> tuple[Particles, Tensor]:
        proposed = at.density.start(len(at.particles), positions=False)
        return proposed, log_weight_ratio(proposed, at.particles, at.beta)


class RandomWalkKernel(Kernel):
    r"""
    Gaussian steps with the covariance of the population, :math:`u' = u + s L \xi`.

    .. math:: \log a = \log p(u') - \log p(u) + \lambda (\log w' - \log w)

    A quarter of the particles, picked anew for every move, steps with s = 1, across the
    population; the others take the step size that is adapted to what lies around them.
    """

    name = "rwm"
    target_acceptance = 0.4
    longest_step = 1.0

    def shape(self, particles: Particles) -> Tensor:
        assert particles.position is not None
        return population_shape(particles.position)

    def propose(self, at: Place) -> tuple[Particles, Tensor]:
        particles, step_size = at.particles, at.tuning.step_size
        position = particles.position
        assert position is not None and particles.log_prior is not None
        noise = gaussian_like(position, at.generator)
        step = shaped(noise, at.tuning.shape) * (2.38 / math.sqrt(max(position.shape[1], 1)))
        if step_size != 1.0:
            start = int(torch.randint(_BOLD, (), device=position.device, generator=at.generator))
            sizes = torch.full_like(position[:, :1], step_size)
            sizes[start::_BOLD] = 1.0
            step = step * sizes
        proposed = at.density.evaluate(position + step)
        assert proposed.log_prior is not None
        ratio = proposed.log_prior - particles.log_prior
        return proposed, ratio + log_weight_ratio(proposed, particles, at.beta)


def gaussian_like(position: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal noise of the same shape."""
    return torch.randn(
        position.shape, dtype=position.dtype, device=position.device, generator=generator
    )


def shaped(noise: Tensor, shape: Tensor | None) -> Tensor:
    """Noise with the population's covariance."""
    if shape is None:
        return noise
    return noise @ shape.T if shape.dim() == 2 else noise * shape


def population_shape(position: Tensor) -> Tensor:
    """
    A Cholesky factor of the population's covariance, shrunk to its diagonal where N is small.

    :param position: ``(N, D)``.
    :returns: ``(D, D)``, or ``(D,)`` standard deviations where N does not exceed 2 D.

    >>> population_shape(torch.tensor([[0.0], [2.0], [4.0]]))
    tensor([[2.]])
    """
    count, size = position.shape
    scales = population_scales(position)
    if count <= 2 * size:
        return scales
    shrink = size / count if size > 1 else 0.0
    correlation = torch.cov((position / scales).T).reshape(size, size)
    correlation = (1.0 - shrink) * correlation
    correlation.diagonal().fill_(1.0)
    factor, failed = torch.linalg.cholesky_ex(correlation)
    return scales if bool(failed) else scales.unsqueeze(-1) * factor


def population_scales(position: Tensor) -> Tensor:
    """
    The population's standard deviations, one where there is none.

    :param position: ``(N, D)``.

    >>> population_scales(torch.tensor([[0.0, 5.0], [2.0, 5.0], [4.0, 5.0]]))
    tensor([2., 1.])
    """
    scales = position.std(0) if len(position) > 1 else torch.ones_like(position[0])
    return torch.where(scales > 0, scales, torch.ones_like(scales))
