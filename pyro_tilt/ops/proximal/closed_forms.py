# SPDX-License-Identifier: Apache-2.0
"""Proximal maps in closed form: moves of points, without the rewards at them."""

from __future__ import annotations

import torch
from torch import Tensor

from .costs import QuadraticCost, TransportCost
from .step import UnboundedProximal

__all__ = ["prox_linear", "prox_max_affine", "prox_quadratic", "prox_support", "prox_tokens"]


def prox_linear(x: Tensor, slope: Tensor, penalty: float, cost: TransportCost) -> Tensor:
    r"""
    :math:`\arg\max_y \langle g, y\rangle - \lambda c(x, y)`: one move for all points.

    :param x: points, (n, d).
    :param slope: :math:`g`, (d,).
    :param penalty: :math:`\lambda`.
    :param cost: the transport cost.
    :raises UnboundedProximal: under the distance itself, for a penalty below the slope.

    >>> from pyro_tilt.ops.proximal import SquaredEuclidean
    >>> prox_linear(torch.zeros(1, 2), torch.tensor([1.0, 2.0]), 2.0, SquaredEuclidean())
    tensor([[0.5000, 1.0000]])
    """
    return x + cost.linear(slope.to(x), penalty)[0]


def prox_max_affine(
    x: Tensor, slopes: Tensor, intercepts: Tensor, penalty: float, cost: TransportCost
) -> Tensor:
    r"""
    :math:`\arg\max_y \max_j \langle v_j, y\rangle + b_j - \lambda c(x, y)`.

    The two maxima change places: the best piece is the one whose own envelope is largest.

    :param x: points, (n, d).
    :param slopes: :math:`v`, (pieces, d).
    :param intercepts: :math:`b`, (pieces,).
    :param penalty: :math:`\lambda`.
    :param cost: the transport cost.
    :raises UnboundedProximal: as :func:`prox_linear`.

    >>> from pyro_tilt.ops.proximal import SquaredEuclidean
    >>> v, b = torch.tensor([[1.0], [-3.0]]), torch.zeros(2)
    >>> prox_max_affine(torch.tensor([[0.1], [5.0]]), v, b, 2.0, SquaredEuclidean())
    tensor([[-1.4000],
            [ 5.5000]])
    """
    moves, gains = cost.linear(slopes.to(x), penalty)
    envelopes = x @ slopes.to(x).mT + (intercepts.to(x) + gains)
    return x + moves[envelopes.argmax(-1)]


def prox_quadratic(
    x: Tensor, hessian: Tensor, slope: Tensor, penalty: float, cost: QuadraticCost
) -> Tensor:
    r"""
    :math:`\arg\max_y \tfrac12 y^\top Q y + \langle g, y\rangle - \lambda c(x, y)`, that is
    :math:`(\lambda M - Q)^{-1}(\lambda M x + g)`.

    Solved in an eigenbasis of :math:`Q` against :math:`M`, in which eigenvalues of nothing but
    rounding count as zero, so that a curvature of :math:`-10^{12}` beside flat directions is
    handled to full precision.

    :param x: points, (n, d).
    :param hessian: :math:`Q`, symmetric of any signature, (d, d).
    :param slope: :math:`g`, (d,).
    :param penalty: :math:`\lambda`, above the largest eigenvalue of :math:`M^{-1} Q`.
    :param cost: half a squared norm.
    :raises UnboundedProximal: for a smaller penalty.

    >>> from pyro_tilt.ops.proximal import SquaredEuclidean
    >>> Q = torch.tensor([[-1e12, 0.0], [0.0, 0.0]], dtype=torch.float64)
    >>> x = torch.ones(1, 2, dtype=torch.float64)
    >>> (prox_quadratic(x, Q, torch.zeros(2), 1.0, SquaredEuclidean()) - x).round(decimals=6)
    tensor([[-1.,  0.]], dtype=torch.float64)
    """
    values, vectors = quadratic_spectrum(hessian, cost)
    top = float(values.amax()) if values.numel() else 0.0
    if not penalty > top:
        raise UnboundedProximal(penalty, top)
    # Column j of the basis is a move of unit half-norm cost; Q acts on it as values_j M.
    along = _components(x, values, vectors, cost) + (slope.to(vectors) @ vectors)
    return x + ((along / (penalty - values)) @ vectors.mT).to(x)


def quadratic_spectrum(hessian: Tensor, cost: QuadraticCost) -> tuple[Tensor, Tensor]:
    """
    Eigenvalues of :math:`M^{-1} Q` and M-orthonormal eigenvectors as columns, in float64.

    :param hessian: :math:`Q`, (d, d).
    :param cost: half a squared norm.
    """
    wide = hessian.detach().double()
    eye = torch.eye(len(wide), dtype=wide.dtype, device=wide.device)
    moves = cost.unwhiten(eye)
    values, vectors = torch.linalg.eigh(moves @ wide @ moves.mT)
    eps = torch.finfo(hessian.dtype).eps * len(wide)
    rounding = values.abs() <= eps * values.abs().amax() if len(wide) > 1 else values == 0
    return values.masked_fill(rounding, 0.0), moves.mT @ vectors


def _components(x: Tensor, values: Tensor, vectors: Tensor, cost: QuadraticCost) -> Tensor:
    """The components of Q x in the basis, eigenvalue by eigenvalue."""
    wide = x.to(vectors)
    # Rows of the basis times M x are the coordinates of x; the slope of the cost from 0 is M x.
    return values * (cost.slope(torch.zeros_like(wide), wide) @ vectors)


def prox_tokens(x: Tensor, scores: Tensor, penalty: float) -> Tensor:
    r"""
    :math:`\arg\max_y \sum_i \varphi_i(y_i) - \lambda\,\#\{i : y_i \ne x_i\}`.

    A token changes to the best one where that gains more than the penalty.

    :param x: tokens, (n, length), integer or of integer value.
    :param scores: :math:`\varphi`, (length, vocabulary).
    :param penalty: :math:`\lambda \ge 0`.

    >>> prox_tokens(torch.tensor([[0, 0]]), torch.tensor([[0.0, 3.0], [0.0, 1.0]]), 2.0)
    tensor([[1, 0]])
    """
    index = x.long()
    best, place = scores.max(-1)
    held = scores.expand(len(x), -1, -1).gather(-1, index.unsqueeze(-1)).squeeze(-1)
    return torch.where((best - held).double() > penalty, place, index).to(x.dtype)


def prox_support(
    x: Tensor, support: Tensor, rewards: Tensor, penalty: float, cost: TransportCost
) -> Tensor:
    r"""
    The index of the best of finitely many points, :math:`\arg\max_j r_j - \lambda c(x, y_j)`, the
    nearest of equally good ones.

    :param x: points, (n, d).
    :param support: the points allowed, (m, d).
    :param rewards: their rewards, (m,).
    :param penalty: :math:`\lambda`.
    :param cost: the transport cost.

    >>> from pyro_tilt.ops.proximal import SquaredEuclidean
    >>> at, r = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([0.0, 1.0, 1.5])
    >>> prox_support(torch.zeros(1, 1), at, r, 1.0, SquaredEuclidean())
    tensor([1])
    """
    costs = cost(x.unsqueeze(1), support.to(x.device).unsqueeze(0))
    values = rewards.to(costs.device).double() - penalty * costs.double()
    # Of equal values the nearest, so that ties at the penalty of a ball break alike everywhere.
    return costs.masked_fill(values < values.amax(-1, keepdim=True), torch.inf).argmin(-1)
