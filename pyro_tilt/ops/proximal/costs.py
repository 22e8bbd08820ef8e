# SPDX-License-Identifier: Apache-2.0
"""Transport costs between vectors."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from .step import UnboundedProximal

__all__ = [
    "Hamming",
    "Mahalanobis",
    "NormPower",
    "QuadraticCost",
    "SquaredEuclidean",
    "TransportCost",
    "as_cost",
]


class TransportCost(ABC):
    """
    What it costs to move a point: a function of two batches of vectors.

    :ivar continuous: whether points are moved by real amounts.
    """

    continuous: bool = True

    @abstractmethod
    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """
        The cost of each row.

        :param x: where from, shape batch + (d,).
        :param y: where to, of the same shape.
        """

    def slope(self, x: Tensor, y: Tensor) -> Tensor:
        r"""
        The gradient of the cost in ``y``. Times :math:`\lambda` and at the proximal point it is the
        gradient of the envelope, :math:`\nabla r^\lambda(x) = \lambda \nabla_y c(x, T(x))`
        (Danskin's theorem), since these costs depend on :math:`y - x` alone.

        :param x: where from.
        :param y: where to.
        """
        raise NotImplementedError(f"{self!r} has no gradient")

    def linear(self, slopes: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
        r"""
        The best move for a linear reward, and :math:`\max_s \langle g, s\rangle - \lambda c(s)`.

        :param slopes: :math:`g`, shape batch + (d,).
        :param penalty: :math:`\lambda > 0`.
        :returns: the move, batch + (d,), and the gain, batch.
        :raises UnboundedProximal: where the penalty is too low.
        """
        raise NotImplementedError(f"no linear reward is known under {self!r}")

    def linear_growth(self, slopes: Tensor) -> float:
        """
        What a penalty must exceed for linear rewards.

        :param slopes: shape batch + (d,).
        """
        return 0.0

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class QuadraticCost(TransportCost):
    r"""Half a squared norm, :math:`\tfrac12 (y-x)^\top M (y-x)`."""

    @abstractmethod
    def unwhiten(self, moves: Tensor) -> Tensor:
        r"""
        Moves whose cost is :math:`\tfrac12\|w\|^2`, in the coordinates of the points.

        :param moves: :math:`w`, shape (n, d).
        """

    @abstractmethod
    def dual(self, slopes: Tensor) -> Tensor:
        r"""
        :math:`M^{-1} g`.

        :param slopes: :math:`g`, shape batch + (d,).
        """

    @abstractmethod
    def whiten_slope(self, slopes: Tensor) -> Tensor:
        """
        Gradients in the coordinates of :meth:`unwhiten`.

        :param slopes: gradients in the coordinates of the points, (n, d).
        """

    def linear(self, slopes: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
        move = self.dual(slopes) / penalty
        return move, 0.5 * (slopes * move).sum(-1)


class SquaredEuclidean(QuadraticCost):
    r"""
    :math:`c(x, y) = \tfrac12 \|y - x\|_2^2`: half the squared norm.

    >>> SquaredEuclidean()(torch.zeros(1, 2), torch.tensor([[3.0, 4.0]]))
    tensor([12.5000])
    """

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        return 0.5 * (y - x).square().sum(-1)

    def slope(self, x: Tensor, y: Tensor) -> Tensor:
        return y - x

    def unwhiten(self, moves: Tensor) -> Tensor:
        return moves

    def dual(self, slopes: Tensor) -> Tensor:
        return slopes

    def whiten_slope(self, slopes: Tensor) -> Tensor:
        return slopes


class Mahalanobis(QuadraticCost):
    r"""
    :math:`c(x, y) = \tfrac12 (y - x)^\top M (y - x)`.

    :param M: symmetric and positive definite, shape (d, d).
    :raises ValueError: if it is not.

    >>> Mahalanobis(torch.diag(torch.tensor([1.0, 4.0])))(torch.zeros(1, 2), torch.ones(1, 2))
    tensor([2.5000])
    """

    def __init__(self, M: Tensor) -> None:
        if M.dim() != 2 or M.shape[0] != M.shape[1] or not M.is_floating_point():
            raise ValueError(f"M must be a real square matrix, got shape {tuple(M.shape)}")
        wide = M.detach().double()
        factor, failed = torch.linalg.cholesky_ex(wide)
        scale = float(wide.abs().max()) if wide.numel() else 0.0
        if int(failed) or not bool(torch.allclose(wide, wide.mT, rtol=0.0, atol=1e-6 * scale)):
            raise ValueError("M of a Mahalanobis cost must be symmetric and positive definite")
        self.M = (M + M.mT) / 2
        self._factor = factor
        eye = torch.eye(len(M), dtype=factor.dtype, device=factor.device)
        self._unwhiten = torch.linalg.solve_triangular(factor, eye, upper=False)

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        move = y - x
        return 0.5 * (move * (move @ self.M.to(move))).sum(-1)

    def slope(self, x: Tensor, y: Tensor) -> Tensor:
        return (y - x) @ self.M.to(x)

    def unwhiten(self, moves: Tensor) -> Tensor:
        return moves @ self._unwhiten.to(moves)

    def dual(self, slopes: Tensor) -> Tensor:
        inverse = self._unwhiten.mT @ self._unwhiten
        return (slopes.to(inverse) @ inverse).to(slopes)

    def whiten_slope(self, slopes: Tensor) -> Tensor:
        return slopes @ self._unwhiten.mT.to(slopes)

    def __repr__(self) -> str:
        return f"Mahalanobis(M of shape {tuple(self.M.shape)})"


class NormPower(TransportCost):
    r"""
    :math:`\tfrac1p \|y - x\|_2^p`, or elementwise :math:`\tfrac1p \sum_i |y_i - x_i|^p`.

    With p = 1 it is the distance itself: where the reward is :math:`\lambda`-Lipschitz, nothing
    moves.

    :param p: at least one.
    :param elementwise: sum the powers of the coordinates.
    :raises ValueError: for a smaller or infinite ``p``.

    >>> NormPower(3.0)(torch.zeros(1, 2), torch.tensor([[0.0, 3.0]]))
    tensor([9.])
    """

    def __init__(self, p: float, *, elementwise: bool = False) -> None:
        if not 1.0 <= p < math.inf:
            raise ValueError(f"p of a NormPower must be a number of at least one, got {p}")
        self.p, self.elementwise = float(p), elementwise

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        move = y - x
        if self.elementwise:
            return move.abs().pow(self.p).sum(-1) / self.p
        return torch.linalg.vector_norm(move, dim=-1).pow(self.p) / self.p

    def slope(self, x: Tensor, y: Tensor) -> Tensor:
        move = y - x
        if self.elementwise:
            return move.sign() * move.abs().pow(self.p - 1.0)
        size = torch.linalg.vector_norm(move, dim=-1, keepdim=True)
        return torch.where(size > 0, move / size.clamp(min=1e-300) * size.pow(self.p - 1.0), 0.0)

    def linear(self, slopes: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
        sizes = self._sizes(slopes)
        if self.p == 1.0:
            if float(sizes.amax()) > penalty:
                raise UnboundedProximal(penalty, float(sizes.amax()))
            return torch.zeros_like(slopes), slopes.new_zeros(slopes.shape[:-1])
        power = 1.0 / (self.p - 1.0)
        lengths = (sizes / penalty).pow(power)
        direction = torch.where(sizes > 0, slopes / sizes.where(sizes > 0, 1.0), 0.0)
        gain = (1.0 - 1.0 / self.p) * sizes * lengths
        return direction * lengths, gain.sum(-1)

    def linear_growth(self, slopes: Tensor) -> float:
        return float(self._sizes(slopes).amax()) if self.p == 1.0 else 0.0

    def _sizes(self, slopes: Tensor) -> Tensor:
        if self.elementwise:
            return slopes.abs()
        return torch.linalg.vector_norm(slopes, dim=-1, keepdim=True)

    def __repr__(self) -> str:
        return f"NormPower({self.p:g}{', elementwise=True' if self.elementwise else ''})"


class Hamming(TransportCost):
    """
    The number of positions at which two rows differ, for tokens.

    >>> Hamming()(torch.tensor([[1, 2, 3]]), torch.tensor([[1, 0, 0]]))
    tensor([2.])
    """

    continuous = False

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        dtype = x.dtype if x.is_floating_point() else torch.get_default_dtype()
        return (x != y).sum(-1).to(dtype)


_NAMES: dict[str, type[TransportCost]] = {
    "squared_euclidean": SquaredEuclidean,
    "hamming": Hamming,
}


def as_cost(cost: TransportCost | str) -> TransportCost:
    """
    A transport cost as it is, or one by its name.

    :param cost: a cost, ``"squared_euclidean"``, ``"euclidean"`` (the distance itself) or
        ``"hamming"``.
    :raises ValueError: for another word.
    :raises TypeError: for anything else.

    >>> as_cost("squared_euclidean"), as_cost("euclidean")
    (SquaredEuclidean(), NormPower(1))
    """
    if isinstance(cost, NormPower) and cost.p == 2.0:
        return SquaredEuclidean()
    if isinstance(cost, TransportCost):
        return cost
    if not isinstance(cost, str):
        raise TypeError(f"cost must be a name or a TransportCost, got {type(cost).__name__}")
    if cost == "euclidean":
        return NormPower(1.0)
    if cost not in _NAMES:
        raise ValueError(
            f"cost must be one of {', '.join([*_NAMES, 'euclidean'])}, or a cost of pyro_tilt.ops "
            f"such as Mahalanobis(M) or NormPower(p); got {cost!r}"
        )
    return _NAMES[cost]()
