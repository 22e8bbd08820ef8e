# SPDX-License-Identifier: Apache-2.0
"""Hamiltonian moves of all particles at once."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from pyro_tilt.infer.tempered.density import Particles, ProgramDensity
from pyro_tilt.infer.tempered.kernels import Kernel, gaussian_like, log_weight_ratio
from pyro_tilt.infer.tempered.schedule import Tuning

__all__ = ["HamiltonianKernel"]

_FARTHEST = 1e6


class HamiltonianKernel(Kernel):
    r"""
    Leapfrog paths of :math:`H(u, m) = -\log p(u) - \lambda \log w(u) + \tfrac12 |m|^2`.

    .. math:: \log a = H(u, m) - H(u', m')

    in coordinates divided by the population's standard deviations. The step of a path is drawn
    within 20 % of the step size, one for all particles, so that no path closes on itself.

    :param int num_leapfrog: steps of a path.
    """

    name = "hmc"
    target_acceptance = 0.75
    first_step = 0.4

    def __init__(self, num_leapfrog: int = 8) -> None:
        self.num_leapfrog = num_leapfrog

    def shape(self, particles: Particles) -> Tensor:
        position = particles.position
        assert position is not None
        scales = position.std(0) if len(position) > 1 else torch.ones_like(position[0])
        return torch.where(scales > 0, scales, torch.ones_like(scales))

    def begin(self, density: ProgramDensity, particles: Particles, beta: float) -> Particles:
        assert particles.position is not None
        found = density.evaluate(particles.position, gradient=(1.0, beta))
        return replace(particles, gradient=found.gradient)

    def propose(
        self,
        density: ProgramDensity,
        particles: Particles,
        beta: float,
        tuning: Tuning,
        generator: torch.Generator,
    ) -> tuple[Particles, Tensor]:
        assert particles.position is not None and tuning.shape is not None
        momentum = gaussian_like(particles.position, generator)
        jitter = torch.rand((), device=momentum.device, generator=generator)
        step = tuning.step_size * (0.8 + 0.4 * float(jitter))
        kinetic = _kinetic(momentum)
        proposed = particles
        diverged = torch.zeros(len(momentum), dtype=torch.bool, device=momentum.device)
        for _ in range(self.num_leapfrog):
            momentum = momentum + 0.5 * step * _force(proposed, tuning.shape)
            assert proposed.position is not None
            position = proposed.position + step * tuning.shape * momentum
            # The bound is the same for the path run backwards, so that refusing it is exact.
            diverged |= ~((position / tuning.shape).abs() < _FARTHEST).all(-1)
            position = torch.where(diverged.unsqueeze(-1), particles.position, position)
            proposed = density.evaluate(position, gradient=(1.0, beta))
            momentum = momentum + 0.5 * step * _force(proposed, tuning.shape)
        assert proposed.log_prior is not None and particles.log_prior is not None
        ratio = proposed.log_prior - particles.log_prior + kinetic - _kinetic(momentum)
        ratio = ratio + log_weight_ratio(proposed, particles, beta)
        return proposed, ratio.masked_fill(diverged, -math.inf)


def _force(particles: Particles, scales: Tensor) -> Tensor:
    assert particles.gradient is not None
    return particles.gradient * scales


def _kinetic(momentum: Tensor) -> Tensor:
    return 0.5 * momentum.double().square().sum(-1)
