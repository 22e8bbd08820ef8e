# SPDX-License-Identifier: Apache-2.0
"""Positive quadratic tilts of any rank whose mixing density is log-concave."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from pyro_tilt.infer.certificate import Certificate
from pyro_tilt.infer.tilts.convex_family import ExactFamily
from pyro_tilt.infer.tilts.diffusion_tilt import TARGET, TiltDraws, tilt_certificate
from pyro_tilt.infer.tilts.protocols import DiffusionModel
from pyro_tilt.ops.importance import log_evidence
from pyro_tilt.rewards import Linear, Quadratic

if TYPE_CHECKING:
    from pyro_tilt.infer.tilts.quadratic import QuadraticTilt

__all__ = ["CovarianceTest", "LogConcaveRoute", "covariance_test"]

_DIRECTIONS, _RADII = 64, 24
_ACCEPTANCE = 0.574
_INFLATE = 1.1


class CovarianceTest(NamedTuple):
    r"""
    What is known of :math:`\sup_\theta \|L\, \mathrm{Cov}_\theta L^\top\|`.

    :ivar value: a bound, or the largest value that was found.
    :ivar proved: whether it is a bound.
    """

    value: float
    proved: bool

    @property
    def passed(self) -> bool:
        """Whether the mixing density is log-concave, as far as the value shows."""
        return self.value < 1.0


def covariance_test(
    base: DiffusionModel, reward: Quadratic, factor: Tensor, *, radius: float | None = None
) -> CovarianceTest | None:
    r"""
    Whether :math:`\pi(z) \propto e^{-|z|^2/2 + \Lambda(b + L^\top z)}` is log-concave, which it is
    where :math:`\sup \|L\, \mathrm{Cov}_\theta L^\top\| < 1`; derived here.

    The supremum is bounded by the square of a radius of the features, and for Gaussian components
    of one covariance by that covariance and a quarter of the squared diameter of their means
    (Popoviciu's inequality); otherwise it is searched along rays.

    :param base: the model.
    :param reward: the quadratic, beta folded in.
    :param factor: L, shape (r, d).
    :param radius: a bound on :math:`|L x|` over the support of the data.
    :returns: None for a model that does not know its normalisers, which the chains need.
    """
    if not ExactFamily.fits(base):
        return None
    if radius is not None and radius < 1.0:
        return CovarianceTest(radius * radius, True)
    family = ExactFamily(base, factor, reward.b)
    shared = _shared_covariance(base, family)
    if shared is not None and shared < 1.0:
        return CovarianceTest(shared, True)
    return CovarianceTest(_search(family), False)


def _shared_covariance(base: Any, family: ExactFamily) -> float | None:
    law = base.tilted_law(Linear(torch.zeros_like(family.offset).to(base.dtype))).law
    parts = getattr(law, "component_distribution", law)
    covariance = getattr(parts, "covariance_matrix", None)
    if covariance is None:
        inner = getattr(parts, "base_dist", None)
        if inner is None or not hasattr(inner, "scale"):
            return None
        covariance = torch.diag_embed(inner.scale.square())
    covariance = covariance.reshape(-1, *covariance.shape[-2:]).to(family.features)
    spread = float((covariance - covariance[0]).abs().max())
    if spread > 1e-6 * float(covariance.abs().max()):
        return None
    inside = family.features @ covariance[0] @ family.features.T
    means = family.project(parts.mean.reshape(-1, parts.mean.shape[-1]))
    diameter = float(torch.cdist(means, means).max())
    return float(torch.linalg.matrix_norm(inside, 2)) + 0.25 * diameter**2


def _search(family: ExactFamily) -> float:
    rank = len(family.features)
    generator = torch.Generator().manual_seed(0)
    rays = torch.randn(_DIRECTIONS, rank, generator=generator, dtype=torch.float64)
    rays = torch.cat([rays, torch.eye(rank, dtype=torch.float64)])
    rays = torch.nn.functional.normalize(rays, dim=-1).to(family.features)
    radii = torch.logspace(-1.5, 2.0, _RADII).to(rays)
    points = torch.cat(
        [torch.zeros_like(rays[:1]), *(s * radius * rays for radius in radii for s in (-1.0, 1.0))]
    )
    norms = [
        float(torch.linalg.matrix_norm(_hessian(family, part), 2).max())
        for part in points.split(512)
    ]
    return max(norms)


def _value_and_slope(family: ExactFamily, z: Tensor) -> tuple[Tensor, Tensor]:
    r"""Log mixing density up to a constant and its gradient, by row."""
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        value = family.log_normalizer(z)[0] - 0.5 * z.square().sum(-1)
        slope = torch.autograd.grad(value.sum(), z)[0]
    return value.detach(), slope


def _hessian(family: ExactFamily, z: Tensor) -> Tensor:
    r"""The Hessian of :math:`\Lambda(b + L^\top z)` in z, by row."""
    columns = []
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        slope = torch.autograd.grad(family.log_normalizer(z)[0].sum(), z, create_graph=True)[0]
        for i in range(z.shape[-1]):
            columns.append(torch.autograd.grad(slope[:, i].sum(), z, retain_graph=True)[0])
    return torch.stack(columns, -1).detach()


class LogConcaveRoute:
    r"""
    The route for a positive quadratic of any rank under :func:`covariance_test`.

    One Metropolis-adjusted Langevin chain per draw, preconditioned by the curvature at the mode,
    moves from the Gaussian around the mode to :math:`\pi`; its last state z picks the linear tilt
    :math:`b + L^\top z`.

    :param base: the model.
    :param reward: the quadratic, beta folded in.
    :param factor: L, shape (r, d).
    :param test: what the covariance test found.
    """

    def __init__(
        self, base: DiffusionModel, reward: Quadratic, factor: Tensor, test: CovarianceTest
    ) -> None:
        self.base, self.reward, self.factor, self.test = base, reward, factor, test

    def draw(self, tilt: QuadraticTilt, progress: Callable[[int], Any]) -> TiltDraws:
        """
        Draws of the tilt.

        :param tilt: the sampler, whose options count.
        :param progress: called with the rows done.
        """
        from pyro_tilt.infer.tilts.low_rank_choice import draw_options

        family = ExactFamily(self.base, self.factor, self.reward.b, draw_options(tilt))
        chains = run_chains(family, tilt.num_samples, tilt.mcmc_steps)
        values = family.draw(chains.states, progress)
        return TiltDraws(
            values,
            log_normalizer=chains.log_normalizer + float(self.reward.c),
            log_normalizer_error=chains.error,
            rows=family.rows,
            base_draws=family.drawn,
            certificate=self._certificate(),
            info={
                "covariance_norm": self.test.value,
                "covariance_proved": float(self.test.proved),
                "mcmc_acceptance": chains.acceptance,
                "mcmc_r_hat": chains.r_hat,
            },
        )

    def _certificate(self) -> Certificate:
        plain = tilt_certificate(self.base)
        checked = (
            ""
            if self.test.proved
            else ("; that the mixing density is log-concave was checked at many tilts, not proved")
        )
        return Certificate(
            target=TARGET,
            law="consistent",
            budget="steps and mcmc_steps",
            covers="the tilt itself; a log-concave mixing density, on which the chains mix fast",
            excludes=f"{plain.excludes}; what the chains have kept of their start{checked}",
        )


class Chains(NamedTuple):
    """
    Where the chains ended.

    :ivar states: shape (n, r).
    :ivar log_normalizer: log evidence, by importance sampling from the Gaussian around the mode.
    :ivar error: its standard error.
    :ivar acceptance: mean acceptance probability after adaptation.
    :ivar r_hat: largest potential scale reduction over coordinates.
    """

    states: Tensor
    log_normalizer: float
    error: float
    acceptance: float
    r_hat: float


def run_chains(family: ExactFamily, n: int, steps: int) -> Chains:
    """
    Langevin chains on the mixing density.

    :param family: the tilts.
    :param n: number of chains.
    :param steps: moves of each, the first third of which adapts the step.
    """
    mode, root = _laplace(family)
    noise = torch.randn(n, len(mode), dtype=torch.float64).to(mode)
    z = mode + _INFLATE * noise @ root.T
    value, slope = _value_and_slope(family, z)
    log_mean, error = log_evidence(value + 0.5 * noise.square().sum(-1))
    log_z = float(log_mean) + float(root.diagonal().log().sum()) + len(mode) * math.log(_INFLATE)
    step, rate, adapt = len(mode) ** (-1.0 / 3.0), 0.0, max(1, steps // 3)
    sums, squares = torch.zeros_like(z), torch.zeros_like(z)
    for k in range(steps):
        z, value, slope, chance = _move(family, z, value, slope, root, step)
        if k < adapt:
            step *= math.exp((chance - _ACCEPTANCE) / math.sqrt(k + 1.0))
        else:
            rate += chance
            sums, squares = sums + z, squares + z.square()
    kept = max(1, steps - adapt)
    return Chains(z, log_z, float(error), rate / kept, _r_hat(sums, squares, kept))


def _move(
    family: ExactFamily, z: Tensor, value: Tensor, slope: Tensor, root: Tensor, step: float
) -> tuple[Tensor, Tensor, Tensor, float]:
    """One Metropolis-adjusted Langevin step of every chain, and the mean acceptance."""

    def log_move(gap: Tensor) -> Tensor:
        white = torch.linalg.solve_triangular(root, gap.T, upper=False)
        return white.square().sum(0) / (-2.0 * step)

    drift = 0.5 * step * (slope @ root) @ root.T
    new = z + drift + math.sqrt(step) * torch.randn_like(z) @ root.T
    new_value, new_slope = _value_and_slope(family, new)
    back = 0.5 * step * (new_slope @ root) @ root.T
    log_ratio = new_value - value + log_move(z - new - back) - log_move(new - z - drift)
    chance = log_ratio.clamp(max=0.0).exp()
    moved = torch.rand_like(chance) < chance
    return (
        torch.where(moved[:, None], new, z),
        torch.where(moved, new_value, value),
        torch.where(moved[:, None], new_slope, slope),
        float(chance.mean()),
    )


def _laplace(family: ExactFamily) -> tuple[Tensor, Tensor]:
    """The mode of a log-concave mixing density, and a root of the covariance there."""
    rank = len(family.features)
    z = family.features.new_zeros(1, rank)
    eye = torch.eye(rank).to(z)
    for _ in range(100):
        value, slope = _value_and_slope(family, z)
        move = torch.linalg.solve(eye - _hessian(family, z)[0], slope[0])
        share = 1.0
        while share > 1e-4 and float(_value_and_slope(family, z + share * move)[0]) < float(value):
            share *= 0.5
        z = z + share * move
        if float(move.abs().max()) < 1e-8:
            break
    precision = eye - _hessian(family, z)[0]
    return z[0], torch.linalg.cholesky(torch.linalg.inv(precision))


def _r_hat(sums: Tensor, squares: Tensor, count: int) -> float:
    if count < 2 or len(sums) < 2:
        return math.nan
    means = sums / count
    within = ((squares / count - means.square()) * (count / (count - 1))).mean(0)
    return float((1.0 - 1.0 / count + means.var(0) / within).sqrt().max())
