# SPDX-License-Identifier: Apache-2.0
"""Preconditioned Crank-Nicolson moves, for programs whose latent sites are Gaussian noise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions import MultivariateNormal, Normal
from torch import Tensor

from pyro_tilt.infer.seeding import preserved_rng
from pyro_tilt.infer.tempered.density import Particles, ProgramDensity
from pyro_tilt.infer.tempered.kernels import Kernel, Place, gaussian_like, log_weight_ratio
from pyro_tilt.infer.tempered.schedule import scaled
from pyro_tilt.infer.tempered.unconstrained import innermost

__all__ = [
    "CrankNicolsonKernel",
    "LangevinKernel",
    "Whitening",
    "autocorrelation",
    "pcnl_log_ratio",
]

_PROBES = 16


def autocorrelation(step_size: float) -> float:
    r"""
    The share :math:`\rho = (1 - \epsilon/4) / (1 + \epsilon/4)` of itself that a proposal keeps.

    :param step_size: :math:`\epsilon` in (0, 4].

    >>> autocorrelation(4.0)
    0.0
    """
    return (1.0 - step_size / 4.0) / (1.0 + step_size / 4.0)


def pcnl_log_ratio(
    new: Tensor,
    old: Tensor,
    new_log_weight: Tensor,
    old_log_weight: Tensor,
    new_gradient: Tensor,
    old_gradient: Tensor,
    step_size: float,
) -> Tensor:
    r"""
    Log acceptance ratio of the Langevin form of Crank-Nicolson, for N(0, I) times a weight.

    .. math::

        \log a = J(x', x) - J(x, x'), \qquad J(a, b) = \ell(a)
        - \tfrac{\epsilon}{8} |g(a)|^2
        + \tfrac{\sqrt\epsilon}{2} \frac{\langle b - \rho a, g(a) \rangle}{\sqrt{1 - \rho^2}}

    Any function of the state serves as g, so that a clipped gradient stays exact (Cotter,
    Roberts, Stuart and White 2013, arXiv 1202.0709).

    :param new: proposals :math:`x'`, ``(N, D)``.
    :param old: present positions, ``(N, D)``.
    :param new_log_weight: :math:`\ell(x')`, ``(N,)``.
    :param old_log_weight: ``(N,)``.
    :param new_gradient: :math:`g(x')`, ``(N, D)``.
    :param old_gradient: ``(N, D)``.
    :param step_size: :math:`\epsilon`.

    >>> x, y, zero = torch.zeros(1, 1), torch.ones(1, 1), torch.zeros(1, 1)
    >>> pcnl_log_ratio(y, x, torch.tensor([2.0]), torch.tensor([0.5]), zero, zero, 0.5)
    tensor([1.5000], dtype=torch.float64)
    """
    rho = autocorrelation(step_size)
    spread = math.sqrt(1.0 - rho * rho)

    def part(a: Tensor, b: Tensor, log_weight: Tensor, gradient: Tensor) -> Tensor:
        a, b, gradient = a.double(), b.double(), gradient.double()
        inner = ((b - rho * a) * gradient).sum(-1)
        size = gradient.square().sum(-1)
        return log_weight - step_size / 8.0 * size + math.sqrt(step_size) / 2.0 * inner / spread

    forward = part(old, new, old_log_weight, old_gradient)
    return part(new, old, new_log_weight, new_gradient) - forward


@dataclass(frozen=True, eq=False)
class Whitening:
    """
    The affine map from standard normal coordinates to those of the program.

    :ivar location: ``(D,)``.
    :ivar blocks: slice of the coordinates and scales ``(k,)`` or Cholesky factors ``(b, d, d)``.
    """

    location: Tensor
    blocks: tuple[tuple[slice, Tensor], ...]

    def to_program(self, reference: Tensor) -> Tensor:
        """Coordinates of the program."""
        return self.location + self._each(reference, lambda v, f: (f @ v.unsqueeze(-1)).squeeze(-1))

    def to_reference(self, position: Tensor) -> Tensor:
        """Standard normal coordinates."""

        def solve(values: Tensor, factor: Tensor) -> Tensor:
            return torch.linalg.solve_triangular(factor, values.unsqueeze(-1), upper=False).squeeze(
                -1
            )

        return self._each(position - self.location, solve, inverse=True)

    def pull_back(self, gradient: Tensor) -> Tensor:
        """The gradient in standard normal coordinates."""
        return self._each(gradient, lambda v, f: (f.mT @ v.unsqueeze(-1)).squeeze(-1))

    def _each(self, values: Tensor, apply: Any, *, inverse: bool = False) -> Tensor:
        parts = []
        for where, factor in self.blocks:
            part = values[:, where]
            if factor.dim() == 1:
                parts.append(part / factor if inverse else part * factor)
            else:
                shape = (len(part), factor.shape[0], factor.shape[-1])
                parts.append(apply(part.reshape(shape), factor).reshape(part.shape))
        return torch.cat(parts, -1)


def whiten(density: ProgramDensity, kernel: str) -> Whitening:
    """
    Finds the Gaussian laws of the latent sites by drawing a few particles.

    :param density: the program.
    :param kernel: what an error names.
    :raises ValueError: naming a site that is not Gaussian or whose law depends on other sites.
    """
    with preserved_rng():
        probes = [density.reference(_PROBES) for _ in range(1 if density.vectorized else _PROBES)]
    assert density.layout is not None
    position = probes[0][0].position
    assert position is not None
    locations, blocks = [], []
    for name, (where, _, _) in density.layout.items():
        laws = [_parameters(name, probe[1][name], kernel, density.vectorized) for probe in probes]
        loc, factor = (torch.cat(rows) for rows in zip(*laws))
        for rows in (loc, factor):
            if not bool((rows == rows[:1]).all()):
                raise ValueError(
                    f"kernel={kernel!r} needs latent sites that are Gaussian noise, but the law of "
                    f"site '{name}' depends on other sites; draw standard normal noise and "
                    "transform it, or use kernel='rwm' or 'hmc'"
                )
        locations.append(loc[0].reshape(-1).to(position))
        blocks.append((where, factor[0].to(position)))
    return Whitening(torch.cat(locations), tuple(blocks))


def _parameters(name: str, law: Any, kernel: str, vectorized: bool) -> tuple[Tensor, Tensor]:
    """Location and scale of a site with the particles in front."""
    base = innermost(law)
    if not isinstance(base, Normal | MultivariateNormal):
        raise ValueError(
            f"kernel={kernel!r} needs latent sites that are Gaussian noise, but site '{name}' is "
            f"{type(base).__name__}; use kernel='rwm' or 'hmc'"
        )
    lead = base.batch_shape[:1] if vectorized else torch.Size([1])
    if isinstance(base, Normal):
        shape = (*lead, -1) if base.loc.numel() else (*lead, 0)
        return base.loc.reshape(shape), base.scale.reshape(shape)
    size = base.event_shape[0]
    tril = base.scale_tril.expand(*base.batch_shape, size, size)
    return base.loc.reshape(*lead, -1), tril.reshape(*lead, -1, size, size)


class CrankNicolsonKernel(Kernel):
    r"""
    Steps that keep Gaussian noise Gaussian, :math:`v' = \rho v + \sqrt{1-\rho^2} \xi`.

    .. math:: \log a = \lambda (\log w' - \log w)
    """

    name = "pcn"
    target_acceptance = 0.3
    longest_step = 4.0
    _whitening: Whitening

    def prepare(self, density: ProgramDensity) -> None:
        self._whitening = whiten(density, self.name)

    def propose(self, at: Place) -> tuple[Particles, Tensor]:
        position = at.particles.position
        assert position is not None
        rho = autocorrelation(at.tuning.step_size)
        noise = gaussian_like(position, at.generator)
        old = self._whitening.to_reference(position)
        new = rho * old + math.sqrt(1.0 - rho * rho) * noise
        proposed = at.density.evaluate(self._whitening.to_program(new))
        return proposed, log_weight_ratio(proposed, at.particles, at.beta)


class LangevinKernel(CrankNicolsonKernel):
    r"""
    Crank-Nicolson steps along the gradient :math:`g = \lambda \nabla \log w`.

    .. math:: v' = \rho v + \sqrt{1-\rho^2} (\xi + \tfrac{\sqrt\epsilon}{2} g)

    with the acceptance ratio of :func:`pcnl_log_ratio`.
    """

    name = "pcnl"
    target_acceptance = 0.574
    prior_slope = 0.0

    def propose(self, at: Place) -> tuple[Particles, Tensor]:
        particles, beta = at.particles, at.beta
        position, gradient = particles.position, particles.gradient
        assert position is not None and gradient is not None
        white, step = self._whitening, at.tuning.step_size
        rho = autocorrelation(step)
        old, slope = white.to_reference(position), white.pull_back(gradient)
        noise = gaussian_like(position, at.generator) + 0.5 * math.sqrt(step) * slope
        new = rho * old + math.sqrt(1.0 - rho * rho) * noise
        proposed = at.density.evaluate(white.to_program(new), gradient=(0.0, beta))
        assert proposed.gradient is not None
        log_ratio = pcnl_log_ratio(
            new,
            old,
            scaled(proposed.log_weights, beta),
            scaled(particles.log_weights, beta),
            white.pull_back(proposed.gradient),
            slope,
            step,
        )
        return proposed, log_ratio
