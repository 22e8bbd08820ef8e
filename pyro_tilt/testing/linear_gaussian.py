# SPDX-License-Identifier: Apache-2.0
"""Linear-Gaussian chains with a quadratic reward, solved by the Riccati recursion."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_tilt import rewards
from pyro_tilt.poutine.scan import scan
from pyro_tilt.testing.step_program import StepProgram

__all__ = ["LinearGaussianChain", "linear_gaussian_chain"]


@dataclass(frozen=True)
class LinearGaussianChain(StepProgram):
    r"""
    :math:`x_t = A x_{t+1} + b + L \epsilon`, counted down from :math:`x_T \sim N(m, S)` to
    :math:`x_0`, optionally observed as :math:`y_t = H x_t + \eta`.

    :ivar observations: ``observations[t]`` is :math:`y_t` for t < T, shape (T, m), or None.
    :ivar log_evidence: log evidence of the observations alone, 0 without any.
    :ivar means: aligned mean of :math:`x_t`, shape (T + 1, d).
    :ivar covariances: aligned covariance of :math:`x_t`, shape (T + 1, d, d).
    :ivar hessians: Hessian of the log soft value at t, shape (T + 1, d, d).
    :ivar slopes: its gradient at zero, shape (T + 1, d).
    :ivar constants: its value at zero, shape (T + 1,).
    :ivar gains: the optimal kernel to :math:`x_t` has mean ``gains[t] @ x_{t+1} + offsets[t]``,
        shape (T, d, d).
    :ivar offsets: see ``gains``, shape (T, d).
    :ivar kernel_covariances: the covariance of the optimal kernel, shape (T, d, d).
    :ivar system: the matrices the chain was made from.
    """

    observations: Tensor | None
    log_evidence: float
    means: Tensor
    covariances: Tensor
    hessians: Tensor
    slopes: Tensor
    constants: Tensor
    gains: Tensor
    offsets: Tensor
    kernel_covariances: Tensor
    system: LinearSystem


class LinearSystem(NamedTuple):
    """Matrices of a chain: ``transition`` A, ``shift`` b, ``noise`` L (lower triangular),
    ``mean`` m and ``covariance`` S of the start, ``emission`` H and ``emission_scale`` (one
    standard deviation per observed coordinate)."""

    transition: Tensor
    shift: Tensor
    noise: Tensor
    mean: Tensor
    covariance: Tensor
    emission: Tensor
    emission_scale: Tensor


class _Solution(NamedTuple):
    log_normalizer: float
    means: Tensor
    covariances: Tensor
    hessians: Tensor
    slopes: Tensor
    constants: Tensor
    gains: Tensor
    offsets: Tensor
    kernel_covariances: Tensor


def linear_gaussian_chain(
    *, beta: float = 0.8, dim: int = 2, num_steps: int = 5, observed: bool = False, seed: int = 0
) -> LinearGaussianChain:
    r"""
    A random stable chain with the reward :math:`-\tfrac12 (x_0 - g)^\top Q (x_0 - g)`.

    With :math:`v_t(x) = \tfrac12 x^\top P x + q^\top x + k`, :math:`\Sigma = L L^\top` and
    :math:`\Sigma_* = (\Sigma^{-1} - P)^{-1}`, the optimal kernel is
    :math:`N(\Sigma_*(\Sigma^{-1}(Ax + b) + q), \Sigma_*)`.

    :param beta: multiplies the reward.
    :param dim: the dimension d of a state.
    :param num_steps: the number T of steps.
    :param observed: observe one coordinate fewer than there are, at least one, at every step.
    :param seed: of the matrices and the observations.

    >>> case = linear_gaussian_chain(dim=3)
    >>> case.means.shape, linear_gaussian_chain(beta=0.0).log_normalizer == 0.0
    (torch.Size([6, 3]), True)
    """
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    eye, width = torch.eye(dim, dtype=torch.float64), max(1, dim - 1)
    system = LinearSystem(
        transition=0.8 * eye + 0.15 * randn(dim, dim),
        shift=0.3 * randn(dim),
        noise=0.5 * eye + 0.15 * randn(dim, dim).tril(-1),
        mean=0.5 * randn(dim),
        covariance=_gram(eye + 0.2 * randn(dim, dim)),
        emission=randn(width, dim),
        emission_scale=0.6 + 0.4 * torch.rand(width, generator=generator, dtype=torch.float64),
    )
    precision, goal = _gram(0.7 * eye + 0.3 * randn(dim, dim)), 1.0 + 0.5 * randn(dim)
    seen = randn(num_steps, width)
    reward = rewards.Quadratic.from_hessian(
        -precision, precision @ goal, -0.5 * goal @ precision @ goal
    )
    observations = seen if observed else None
    base = _solve(system, reward * 0.0, num_steps, observations)
    aligned = _solve(system, reward * beta, num_steps, observations)
    reward_mean = _mean_reward(reward, aligned)

    def log_soft_value(x: Tensor, t: int) -> Tensor:
        quadratic = ((x @ aligned.hessians[t]) * x).sum(-1) / 2
        return quadratic + x @ aligned.slopes[t] + aligned.constants[t]

    return LinearGaussianChain(
        program=_program(system, num_steps, observations),
        guide=_guide(aligned),
        reward=reward,
        beta=beta,
        kl=beta * reward_mean - (aligned.log_normalizer - base.log_normalizer),
        reward_mean=reward_mean,
        base_reward_mean=_mean_reward(reward, base),
        num_steps=num_steps,
        initial_step=num_steps,
        log_soft_value=log_soft_value,
        wrong_twist=lambda x, t: torch.sin(1.3 * x[..., 0] + t) - 0.4 * torch.cos(x[..., -1]),
        observations=observations,
        log_evidence=base.log_normalizer,
        system=system,
        **aligned._asdict(),
    )


def _gram(matrix: Tensor) -> Tensor:
    return matrix @ matrix.mT


def _solve(
    system: LinearSystem, tilt: rewards.Reward, num_steps: int, observations: Tensor | None
) -> _Solution:
    """Backward for soft values and optimal kernels, then forward for the aligned laws."""
    assert isinstance(tilt, rewards.Quadratic)
    A, b = system.transition, system.shift
    noise = _gram(system.noise)
    P, q, k = 2.0 * tilt.A, tilt.b, tilt.c
    values, kernels = [(P, q, k)], []
    for t in range(num_steps):
        if observations is not None:
            P, q, k = _add_likelihood(system, P, q, k, observations[t])
        spread, lifted, slope, k = _expectation(noise, P, q, k)
        gain = spread @ noise.inverse()
        kernels.append((gain @ A, gain @ b + spread @ q, spread))
        k = k + 0.5 * b @ lifted @ b + slope @ b
        q = A.mT @ (lifted @ b + slope)
        P = A.mT @ lifted @ A
        values.append((P, q, k))
    covariance, lifted, slope, k = _expectation(system.covariance, P, q, k)
    m = system.mean
    log_z = k + 0.5 * m @ lifted @ m + slope @ m
    mean = covariance @ (torch.linalg.solve(system.covariance, m) + q)
    laws = [(mean, covariance)]
    for gain, offset, spread in reversed(kernels):
        mean, covariance = gain @ mean + offset, gain @ covariance @ gain.mT + spread
        laws.append((mean, covariance))
    means, covariances = (torch.stack(part) for part in zip(*laws[::-1]))
    hessians, slopes, constants = (torch.stack(part) for part in zip(*values))
    gains, offsets, spreads = (torch.stack(part) for part in zip(*kernels))
    return _Solution(
        float(log_z), means, covariances, hessians, slopes, constants, gains, offsets, spreads
    )


def _add_likelihood(
    system: LinearSystem, P: Tensor, q: Tensor, k: Tensor, y: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    scaled = system.emission / system.emission_scale.square().unsqueeze(-1)
    at_zero = dist.Normal(torch.zeros_like(y), system.emission_scale).log_prob(y).sum()
    return P - system.emission.mT @ scaled, q + scaled.mT @ y, k + at_zero


def _expectation(
    covariance: Tensor, P: Tensor, q: Tensor, k: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    r"""The pieces of :math:`\log E e^{x'Px/2 + q'x + k}`, x ~ N(m, covariance), in powers of m."""
    spread = (covariance.inverse() - P).inverse()
    spread = (spread + spread.mT) / 2
    shrinkage = torch.eye(len(q), dtype=q.dtype) - covariance @ P
    constant = k - 0.5 * torch.linalg.slogdet(shrinkage).logabsdet + 0.5 * q @ spread @ q
    return spread, P + P @ spread @ P, q + P @ (spread @ q), constant


def _mean_reward(reward: rewards.Quadratic, solution: _Solution) -> float:
    return float(reward(solution.means[0]) + (reward.A * solution.covariances[0]).sum())


def _program(
    system: LinearSystem, num_steps: int, observations: Tensor | None
) -> Callable[[], Tensor]:
    def step(x: Tensor, t: int) -> Tensor:
        loc = x @ system.transition.mT + system.shift
        x = pyro.sample(f"x_{t}", dist.MultivariateNormal(loc, scale_tril=system.noise))
        if observations is not None:
            law = dist.Normal(x @ system.emission.mT, system.emission_scale).to_event(1)
            pyro.sample(f"y_{t}", law, obs=observations[t])
        return x

    def linear_gaussian() -> Tensor:
        start = dist.MultivariateNormal(system.mean, system.covariance)
        x = pyro.sample(f"x_{num_steps}", start)
        return scan("chain", step, x, range(num_steps - 1, -1, -1))

    return linear_gaussian


def _guide(solution: _Solution) -> Callable[[], Tensor]:
    scales, num_steps = torch.linalg.cholesky(solution.kernel_covariances), len(solution.gains)

    def step(x: Tensor, t: int) -> Tensor:
        loc = x @ solution.gains[t].mT + solution.offsets[t]
        return pyro.sample(f"x_{t}", dist.MultivariateNormal(loc, scale_tril=scales[t]))

    def linear_gaussian_guide() -> Tensor:
        start = dist.MultivariateNormal(solution.means[-1], solution.covariances[-1])
        x = pyro.sample(f"x_{num_steps}", start)
        return scan("chain", step, x, range(num_steps - 1, -1, -1))

    return linear_gaussian_guide
