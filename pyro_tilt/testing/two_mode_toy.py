# SPDX-License-Identifier: Apache-2.0
"""A planar diffusion with a rare rewarded region, solved on a grid."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_tilt import rewards
from pyro_tilt.poutine.scan import scan
from pyro_tilt.testing.grid_chain import (
    GridChain,
    gaussian_density,
    interpolate,
    solve_grid_chain,
)
from pyro_tilt.testing.step_program import StepProgram

__all__ = ["TwoModeToy", "two_mode_toy"]

EDGE = -7.0


@dataclass(frozen=True)
class TwoModeToy(StepProgram):
    r"""
    A diffusion of the plane with modes at (5, 0) and (-5, 0), rewarded left of -7.

    Sites ``x_T``, ..., ``x_0`` of event shape (2,). The first coordinate is a Markov chain of its
    own, so all laws and soft values are known on a grid; the second is Gaussian and never tilted.

    :ivar chain: laws and soft values of the first coordinate.
    :ivar kernel_mean: the mean of :math:`x_t`, a function of :math:`x_{t+1}`, shape (..., 2),
        and t.
    :ivar kernel_scales: the standard deviation of each coordinate, shape (T,).
    :ivar mass: aligned probability of the rewarded region.
    :ivar base_mass: its probability under the program.
    """

    chain: GridChain
    kernel_mean: Callable[[Tensor, int], Tensor]
    kernel_scales: Tensor
    mass: float
    base_mass: float

    @property
    def envelope_proposals(self) -> float:
        r"""
        Mean proposals per step of exact rejection under the global bound :math:`\beta`.

        A step from :math:`y` takes :math:`e^\beta / \psi(y)` of them, and the mean of
        :math:`1 / \psi` over the aligned law is :math:`1 / Z` at every step.
        """
        return math.exp(self.beta - self.log_normalizer)

    def probabilities(self, edges: Tensor, *, aligned: bool = True) -> Tensor:
        r"""
        The law of the first coordinate of :math:`x_0` over bins.

        :param edges: inner edges of the bins in increasing order, shape (K - 1,); the outer bins
            are unbounded.
        :param aligned: of the aligned law, otherwise of the base.
        :returns: shape (K,).
        """
        beta = self.beta if aligned else 0.0
        edges = edges.double()
        low, high = self._base_cdf(edges.clamp(max=EDGE)), self._base_cdf(edges)
        weighted = math.exp(beta) * low + (high - low)
        total = 1.0 + math.expm1(beta) * self.base_mass
        cdf = weighted / total
        return torch.cat([cdf.new_zeros(1), cdf, cdf.new_ones(1)]).diff()

    def _base_cdf(self, x: Tensor) -> Tensor:
        means = _drift(self.chain.grid, *_rates(self.num_steps), 0)
        below = _normal_cdf((x.unsqueeze(-1) - means) / self.kernel_scales[0])
        return below @ self.chain.densities[1] * self.chain.spacing


_WEIGHTS = torch.tensor([0.95, 0.05], dtype=torch.float64)
_MODES = torch.tensor([5.0, -5.0], dtype=torch.float64)


def two_mode_toy(*, beta: float = 5.0, num_steps: int = 19, points: int = 801) -> TwoModeToy:
    r"""
    The two-mode example of learned Chernoff baselines (Madhow et al., 2026, arXiv 2602.07738).

    Unit covariances, weights .95 and .05, and with :math:`n` = T + 1 and
    :math:`\kappa = 4 \log(n) / n` the schedule :math:`\alpha_0 = .98`,
    :math:`1 - \alpha_t = \kappa \min(.02\, (1 + \kappa)^{t + 1}, 1)` (in the authors' public
    prototype), :math:`\bar\alpha_t = \prod_{s \le t} \alpha_s`, and the exact score of the
    mixture noised to :math:`\bar\alpha_t`:

    .. math::

        x_t \sim N\Bigl(\frac{x_{t+1} + (1 - \alpha_t) \nabla \log p_t(x_{t+1})}{\sqrt{\alpha_t}},
        \frac{1 - \alpha_t}{\alpha_t}\Bigr).

    The reward is 1 left of -7 and 0 elsewhere, so that beta is the height B of the example. The
    jump is integrated in closed form at the last step. Sums over a grid with a point on the
    jump and spacing .025, which count that point as unrewarded, give the slightly smaller masses
    .1301, .5249 and .8909 for beta 3, 5 and 7.

    :param beta: multiplies the reward.
    :param num_steps: the number T of steps, one less than the prototype's schedule has entries.
    :param points: of the grid over [-14, 14].

    >>> case = two_mode_toy(beta=3.0)
    >>> round(case.mass, 4), round(case.envelope_proposals, 2)
    (0.1323, 17.56)
    """
    alphas, kept = _rates(num_steps)
    scales = ((1.0 - alphas) / alphas).sqrt()
    grid = torch.linspace(-14.0, 14.0, points, dtype=torch.float64)

    def last_soft_value(y: Tensor) -> Tensor:
        rewarded = _normal_cdf((EDGE - _drift(y, alphas, kept, 0)) / scales[0])
        return torch.log1p(math.expm1(beta) * rewarded)

    chain = solve_grid_chain(
        grid,
        gaussian_density(grid),
        lambda y, t: _drift(y, alphas, kept, t),
        scales,
        beta * _indicator(grid),
        log_first_soft_value=last_soft_value(grid),
    )

    def mean(x: Tensor, t: int) -> Tensor:
        return torch.stack([_drift(x[..., 0], alphas, kept, t), alphas[t].sqrt() * x[..., 1]], -1)

    def log_soft_value(x: Tensor, t: int) -> Tensor:
        first = x[..., 0]
        if t == 0:
            return beta * _indicator(first)
        if t == 1:
            return last_soft_value(first)
        return interpolate(grid, chain.log_soft_values[t], first)

    rewarded = _normal_cdf((EDGE - _drift(grid, alphas, kept, 0)) / scales[0])
    base_mass = float(chain.densities[1] @ rewarded) * chain.spacing
    mass = math.exp(beta - chain.log_normalizer) * base_mass
    return TwoModeToy(
        program=_program(mean, scales),
        guide=None,
        reward=rewards.Bounded(lambda x: _indicator(x[..., 0]), low=0.0, high=1.0, event_dim=1),
        beta=beta,
        log_normalizer=chain.log_normalizer,
        kl=beta * mass - chain.log_normalizer,
        reward_mean=mass,
        base_reward_mean=base_mass,
        num_steps=num_steps,
        initial_step=num_steps,
        log_soft_value=log_soft_value,
        wrong_twist=lambda x, t: 0.7 * torch.sin(0.4 * x[..., 0] + 0.6 * x[..., 1] + t),
        chain=chain,
        kernel_mean=mean,
        kernel_scales=scales,
        mass=mass,
        base_mass=base_mass,
    )


def _rates(num_steps: int) -> tuple[Tensor, Tensor]:
    size = num_steps + 1
    speed = 4.0 * math.log(size) / size
    powers = torch.arange(1, num_steps + 1, dtype=torch.float64)
    alphas = 1.0 - speed * (0.02 * (1.0 + speed) ** powers).clamp(max=1.0)
    alphas[0] = 0.98
    return alphas, alphas.cumprod(0)


def _drift(y: Tensor, alphas: Tensor, kept: Tensor, t: int) -> Tensor:
    centers = kept[t].sqrt() * _MODES
    share = (_WEIGHTS.log() - 0.5 * (y.unsqueeze(-1) - centers).square()).softmax(-1)
    return (alphas[t] * y + (1.0 - alphas[t]) * (share @ centers)) / alphas[t].sqrt()


def _indicator(x: Tensor) -> Tensor:
    return (x < EDGE).double()


def _normal_cdf(x: Tensor) -> Tensor:
    return 0.5 * torch.erfc(-x / math.sqrt(2.0))


def _program(mean: Callable[[Tensor, int], Tensor], scales: Tensor) -> Callable[[], Tensor]:
    origin = scales.new_zeros(2)

    def step(x: Tensor, t: int) -> Tensor:
        return pyro.sample(f"x_{t}", dist.Normal(mean(x, t), scales[t]).to_event(1))

    def two_modes() -> Tensor:
        start = dist.Normal(origin, torch.ones_like(origin)).to_event(1)
        x = pyro.sample(f"x_{len(scales)}", start)
        return scan("chain", step, x, range(len(scales) - 1, -1, -1))

    return two_modes
