# SPDX-License-Identifier: Apache-2.0
"""Hamiltonian moves of all particles at once."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_tilt.infer.tempered.density import Particles
from pyro_tilt.infer.tempered.kernels import (
    Kernel,
    Place,
    gaussian_like,
    log_weight_ratio,
    population_scales,
)

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
    prior_slope = 1.0

    def __init__(self, num_leapfrog: int = 8) -> None:
        self.num_leapfrog = num_leapfrog

    def shape(self, particles: Particles) -> Tensor:
        assert particles.position is not None
        return population_scales(particles.position)

    def propose(self, at: Place) -> tuple[Particles, Tensor]:
        particles, beta, tuning = at.particles, at.beta, at.tuning
        assert particles.position is not None and tuning.shape is not None
        momentum = gaussian_like(particles.position, at.generator)
        jitter = torch.rand((), device=momentum.device, generator=at.generator)
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
            proposed = at.density.evaluate(position, gradient=(1.0, beta))
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
