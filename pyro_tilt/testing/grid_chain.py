# SPDX-License-Identifier: Apache-2.0
"""Scalar Markov chains with Gaussian kernels, solved on a grid."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["GridChain", "gaussian_density", "interpolate", "solve_grid_chain"]


@dataclass(frozen=True)
class GridChain:
    r"""
    The laws of :math:`x_t \sim N(\mu_t(x_{t+1}), \sigma_t^2)` and of their exponential tilt.

    Sums over the grid are integrals to rounding, as long as the spacing is at most half of every
    :math:`\sigma_t` and the grid reaches beyond all mass: the trapezoid rule converges faster than
    any power on smooth functions that vanish at the ends.

    :ivar grid: equally spaced points, shape (G,).
    :ivar transitions: ``transitions[t][i, j]`` is the probability of cell j at time t after
        ``grid[i]`` at time t + 1, shape (T, G, G), rows summing to 1.
    :ivar densities: ``densities[t]`` is the base density of :math:`x_t`, shape (T + 1, G).
    :ivar log_soft_values: ``log_soft_values[t]`` is the log of the mean exponential of the final
        tilt given :math:`x_t`, shape (T + 1, G).
    :ivar log_normalizer: its log mean over the initial law.
    """

    grid: Tensor
    transitions: Tensor
    densities: Tensor
    log_soft_values: Tensor
    log_normalizer: float

    @property
    def spacing(self) -> float:
        """The distance of two points of the grid."""
        return float(self.grid[1] - self.grid[0])

    @property
    def target_densities(self) -> Tensor:
        """``target_densities[t]`` is the aligned density of :math:`x_t`, shape (T + 1, G)."""
        return self.densities * (self.log_soft_values - self.log_normalizer).exp()

    def log_mgf(self, order: float, step: int) -> Tensor:
        r"""
        :math:`\log E[e^{s v_t(x_t)} \mid x_{t+1}]` at every point of the grid, shape (G,).

        :param order: the order s.
        :param step: the time t; a final tilt that jumps is integrated by its values on the grid.
        """
        return _log_mean(self.transitions[step], order * self.log_soft_values[step])


def solve_grid_chain(
    grid: Tensor,
    initial: Tensor,
    mean: Callable[[Tensor, int], Tensor],
    scales: Tensor,
    log_tilt: Tensor,
    *,
    log_first_soft_value: Tensor | None = None,
) -> GridChain:
    r"""
    Solve a chain forwards for its laws and backwards for its soft values.

    :param grid: equally spaced points, shape (G,).
    :param initial: the density of :math:`x_T` on the grid, shape (G,).
    :param mean: the mean :math:`\mu_t` of the kernel to :math:`x_t`, a function of
        :math:`x_{t+1}` and t.
    :param scales: :math:`\sigma_t`, shape (T,).
    :param log_tilt: the final tilt on the grid, shape (G,).
    :param log_first_soft_value: the exact :math:`v_1` on the grid, shape (G,), where the final
        tilt jumps, so that sums over the grid would miss by the spacing.
    :raises ValueError: if the grid is too coarse for a kernel.

    >>> grid = torch.linspace(-8, 8, 401, dtype=torch.float64)
    >>> normal = torch.exp(-grid**2 / 2) / math.sqrt(2 * math.pi)
    >>> scales = torch.tensor([0.8], dtype=torch.float64)
    >>> chain = solve_grid_chain(grid, normal, lambda x, t: 0.6 * x, scales, grid)
    >>> round(chain.log_normalizer, 10)
    0.5
    """
    spacing = float(grid[1] - grid[0])
    if spacing > 0.5 * float(scales.min()):
        raise ValueError(
            f"a grid spacing of {spacing:.3g} is too coarse for a kernel scale of "
            f"{float(scales.min()):.3g}"
        )
    transitions, densities, values = [], [initial], [log_tilt]
    for t, scale in enumerate(scales.tolist()):
        score = -0.5 * ((grid - mean(grid, t).unsqueeze(-1)) / scale).square()
        transitions.append(score.softmax(-1))
        values.append(_log_mean(transitions[-1], values[-1]))
        if t == 0 and log_first_soft_value is not None:
            values[-1] = log_first_soft_value
    for kernel in reversed(transitions):
        densities.append(densities[-1] @ kernel)
    mass = (initial * spacing).log()
    return GridChain(
        grid=grid,
        transitions=torch.stack(transitions),
        densities=torch.stack(densities[::-1]),
        log_soft_values=torch.stack(values),
        log_normalizer=float((mass + values[-1]).logsumexp(0)),
    )


def _log_mean(kernel: Tensor, values: Tensor) -> Tensor:
    top = values.max()
    return (kernel @ (values - top).exp()).log() + top


def interpolate(grid: Tensor, values: Tensor, x: Tensor) -> Tensor:
    """
    Interpolation of degree five on an equally spaced grid, constant from the third cell outwards.

    :param grid: shape (G,).
    :param values: at the points of the grid, shape (G,).
    :param x: where to interpolate, any shape.

    >>> grid = torch.linspace(-2, 2, 41, dtype=torch.float64)
    >>> interpolate(grid, grid**5 - grid, torch.tensor([0.5, 1.01], dtype=torch.float64))
    tensor([-0.4687,  0.0410], dtype=torch.float64)
    """
    last = len(grid) - 4.0
    place = ((x.to(grid.dtype) - grid[0]) / (grid[1] - grid[0])).clamp(2.0, last)
    left = place.floor()
    index, nodes = left.long(), range(-2, 4)
    gaps = [place - left - node for node in nodes]
    total = torch.zeros_like(place)
    for node in nodes:
        weight = torch.ones_like(place)
        for other, gap in zip(nodes, gaps):
            if other != node:
                weight = weight * (gap / (node - other))
        total = total + weight * values[index + node]
    return total


def gaussian_density(x: Tensor, loc: Tensor | float = 0.0, scale: Tensor | float = 1.0) -> Tensor:
    """The density of a Gaussian."""
    return (-0.5 * ((x - loc) / scale).square()).exp() / (scale * math.sqrt(2.0 * math.pi))
