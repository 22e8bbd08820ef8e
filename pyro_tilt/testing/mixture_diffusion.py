# SPDX-License-Identifier: Apache-2.0
"""Ancestral diffusion sampling of a scalar Gaussian mixture, solved by quadrature."""

from __future__ import annotations

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

__all__ = ["MixtureDiffusion1D", "mixture_diffusion"]


@dataclass(frozen=True)
class MixtureDiffusion1D(StepProgram):
    r"""
    A scalar diffusion with the exact score of a Gaussian mixture, as it runs in T steps.

    Sites ``x_T`` ~ N(0, 1), then ``x_{T-1}``, ..., ``x_0`` with Gaussian kernels. Laws are those
    of the discretised chain, not of the mixture.

    :ivar chain: its laws and soft values on a grid.
    :ivar denoise: the posterior mean of the clean value, a function of :math:`x_t` and t.
    :ivar kernel_mean: the mean of :math:`x_t`, a function of :math:`x_{t+1}` and t.
    :ivar kernel_scales: its standard deviation, shape (T,).
    :ivar alpha_bar: :math:`\bar\alpha_t`, shape (T + 1,).
    :ivar components: weights, means and scales of the mixture, each of shape (3,).
    """

    chain: GridChain
    denoise: Callable[[Tensor, int], Tensor]
    kernel_mean: Callable[[Tensor, int], Tensor]
    kernel_scales: Tensor
    alpha_bar: Tensor
    components: tuple[Tensor, Tensor, Tensor]

    def probabilities(self, edges: Tensor, *, step: int = 0, aligned: bool = True) -> Tensor:
        r"""
        The law of :math:`x_t` over bins.

        :param edges: inner edges of the bins in increasing order, shape (K - 1,); the outer bins
            are unbounded.
        :param step: the time t.
        :param aligned: of the aligned law, otherwise of the base.
        :returns: shape (K,).
        """
        laws = self.chain.target_densities if aligned else self.chain.densities
        density, spacing = laws[step], self.chain.spacing
        # Simpson's rule on every cell, with midpoints by interpolation.
        middle = interpolate(self.chain.grid, density, self.chain.grid[:-1] + spacing / 2)
        cells = (density[:-1] + density[1:] + 4.0 * middle) * spacing / 6.0
        cumulative = torch.cat([cells.new_zeros(1), cells.cumsum(0)])
        inner = interpolate(self.chain.grid, cumulative, edges.double())
        return torch.cat([inner.new_zeros(1), inner, inner.new_ones(1)]).diff()


_WEIGHTS = torch.tensor([0.25, 0.45, 0.3], dtype=torch.float64)
_MEANS = torch.tensor([-1.8, 0.4, 2.1], dtype=torch.float64)
_SCALES = torch.tensor([0.5, 0.35, 0.6], dtype=torch.float64)


def mixture_diffusion(
    *, beta: float = 1.0, num_steps: int = 8, points: int = 801
) -> MixtureDiffusion1D:
    r"""
    DDIM with :math:`\eta = 1` (Song et al., 2020, arXiv 2010.02502) on a mixture of three modes.

    With :math:`\sigma_t^2 = \frac{1 - \bar\alpha_t}{1 - \bar\alpha_{t+1}}
    (1 - \bar\alpha_{t+1} / \bar\alpha_t)` and the exact :math:`\hat x_0(x_{t+1})`,

    .. math::

        x_t \sim N\Bigl(\sqrt{\bar\alpha_t}\, \hat x_0 + \sqrt{1 - \bar\alpha_t - \sigma_t^2}\;
        \frac{x_{t+1} - \sqrt{\bar\alpha_{t+1}}\, \hat x_0}{\sqrt{1 - \bar\alpha_{t+1}}},\;
        \sigma_t^2\Bigr).

    :math:`\bar\alpha_0 = 0.98`, so that the last kernel has a density too. The reward
    :math:`\tanh(x - 1/2)` is mild: weights have light tails.

    :param beta: multiplies the reward.
    :param num_steps: the number T of steps.
    :param points: of the grid over [-8, 8].

    >>> case = mixture_diffusion()
    >>> case.probabilities(torch.tensor([0.0])).shape, case.reward_mean > case.base_reward_mean
    (torch.Size([2]), True)
    """
    noise = torch.linspace(0.02**0.25, 0.995**0.25, num_steps + 1, dtype=torch.float64) ** 4
    kept = 1.0 - noise
    scales = (noise[:-1] / noise[1:] * (1.0 - kept[1:] / kept[:-1])).sqrt()

    def denoise(x: Tensor, t: int) -> Tensor:
        root, spread = kept[t].sqrt(), kept[t] * _SCALES.square() + noise[t]
        excess = x.unsqueeze(-1) - root * _MEANS
        share = (_WEIGHTS.log() - 0.5 * spread.log() - 0.5 * excess.square() / spread).softmax(-1)
        return (share * (_MEANS + root * _SCALES.square() / spread * excess)).sum(-1)

    def mean(x: Tensor, t: int) -> Tensor:
        clean = denoise(x, t + 1)
        direction = (x - kept[t + 1].sqrt() * clean) / noise[t + 1].sqrt()
        return kept[t].sqrt() * clean + (noise[t] - scales[t].square()).sqrt() * direction

    grid = torch.linspace(-8.0, 8.0, points, dtype=torch.float64)
    chain = solve_grid_chain(grid, gaussian_density(grid), mean, scales, beta * _reward(grid))

    def log_soft_value(x: Tensor, t: int) -> Tensor:
        return beta * _reward(x) if t == 0 else interpolate(grid, chain.log_soft_values[t], x)

    moments = [
        float((law * _reward(grid)).sum()) * chain.spacing
        for law in (chain.target_densities[0], chain.densities[0])
    ]
    return MixtureDiffusion1D(
        program=_program(mean, scales),
        guide=None,
        reward=rewards.Bounded(_reward, low=-1.0, high=1.0, event_dim=0),
        beta=beta,
        log_normalizer=chain.log_normalizer,
        kl=beta * moments[0] - chain.log_normalizer,
        reward_mean=moments[0],
        base_reward_mean=moments[1],
        num_steps=num_steps,
        initial_step=num_steps,
        log_soft_value=log_soft_value,
        wrong_twist=lambda x, t: 0.8 * torch.sin(1.7 * x + 0.9 * t),
        chain=chain,
        denoise=denoise,
        kernel_mean=mean,
        kernel_scales=scales,
        alpha_bar=kept,
        components=(_WEIGHTS, _MEANS, _SCALES),
    )


def _reward(x: Tensor) -> Tensor:
    return torch.tanh(x - 0.5)


def _program(mean: Callable[[Tensor, int], Tensor], scales: Tensor) -> Callable[[], Tensor]:
    zero, one = scales.new_zeros(()), scales.new_ones(())

    def step(x: Tensor, t: int) -> Tensor:
        return pyro.sample(f"x_{t}", dist.Normal(mean(x, t), scales[t]))

    def mixture() -> Tensor:
        x = pyro.sample(f"x_{len(scales)}", dist.Normal(zero, one))
        return scan("chain", step, x, range(len(scales) - 1, -1, -1))

    return mixture
