# SPDX-License-Identifier: Apache-2.0
"""The loss whose minimiser is a log moment generating function."""

from __future__ import annotations

from torch import Tensor

__all__ = ["linex_loss"]

# Beyond it the exponential goes on as a line: convex still, and finite in single precision.
_STEEPEST = 20.0
# Below it the exponential and its slope are taken as zero, -inf included.
_VANISHED = 80.0


def linex_loss(values: Tensor, returns: Tensor) -> Tensor:
    r"""
    The LINEX loss, up to a term without ``values``.

    .. math:: \ell(f) = e^{A - f} + f, \qquad
        \arg\min_f E\,\ell(f) = \log E\, e^{A}

    Its excess over the minimum is :math:`e^{d} - d - 1` with d the amount by which f lies below the
    log moment generating function: to underestimate, the side that starves particles, costs
    exponentially. The loss is convex in f and unbiased from one draw of A per state (Varian 1975;
    Zellner 1986). A return of ``-inf`` is legal.

    :param values: f, shape (N,).
    :param returns: A, shape (N,).
    :returns: the loss of each pair, shape (N,).

    >>> import math, torch
    >>> returns = torch.tensor([0.0, math.log(3.0)])
    >>> best = torch.tensor([math.log(2.0)] * 2, requires_grad=True)
    >>> linex_loss(best, returns).sum().backward()
    >>> abs(best.grad.sum().item()) < 1e-6
    True
    """
    gap = (returns - values).clamp(min=-_VANISHED)
    near = gap.clamp(max=_STEEPEST)
    return near.exp() * (1.0 + gap - near) + values
