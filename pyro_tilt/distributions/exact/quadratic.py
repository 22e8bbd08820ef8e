# SPDX-License-Identifier: Apache-2.0
"""Quadratic rewards, of any signature, on normal laws."""

from __future__ import annotations

from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
import torch.distributions as td
from torch import Tensor

from pyro_tilt.distributions.exact.common import closed_form, fits, promoted, require
from pyro_tilt.distributions.registry import ExactTilt, register_tilt
from pyro_tilt.rewards import Quadratic


class Factored(NamedTuple):
    """The tilted covariance as a lower Cholesky factor, and log det K."""

    scale_tril: Tensor
    log_det: Tensor


@register_tilt(td.Normal, Quadratic)
def normal_quadratic(base: Any, reward: Quadratic) -> ExactTilt | None:
    """Precision 1/s^2 - 2A, which must be positive."""
    if not fits(base, reward):
        return None
    variance = base.scale**2
    gain = 1 - 2 * reward.A * variance
    require(gain > 0, base, "A < 1 / (2 scale^2)", A=reward.A, bound=0.5 / variance)
    loc = (base.loc + variance * reward.b) / gain
    height = (reward.A * loc + reward.b) * loc + reward.c
    log_z = height - (loc - base.loc) ** 2 / (2 * variance) - gain.log() / 2
    return closed_form(base, dist.Normal(loc, base.scale / gain.sqrt()), log_z)


@register_tilt(td.MultivariateNormal, Quadratic)
@register_tilt(td.LowRankMultivariateNormal, Quadratic)
def multivariate_normal_quadratic(base: Any, reward: Quadratic) -> ExactTilt | None:
    """See :func:`gaussian_quadratic`."""
    if not fits(base, reward):
        return None
    return gaussian_quadratic(base, base.loc, base.scale_tril, reward)


@register_tilt(td.Independent, Quadratic)
def independent_quadratic(base: Any, reward: Quadratic) -> ExactTilt | None:
    """Independent normal variables become correlated ones."""
    inner = base.base_dist
    vector = base.reinterpreted_batch_ndims == 1 and not inner.event_shape
    if not vector or not isinstance(inner, td.Normal) or not fits(base, reward):
        return None
    return gaussian_quadratic(base, inner.loc, torch.diag_embed(inner.scale), reward)


def gaussian_quadratic(base: Any, loc: Tensor, tril: Tensor, reward: Quadratic) -> ExactTilt:
    r"""
    The tilt of N(loc, C C') by x'Ax + b'x + c.

    With K = I - 2 C'AC, which must be positive definite, the tilted covariance is
    :math:`C K^{-1} C^\top`. The normaliser is the Laplace approximation at the tilted mean,
    exact here, so that an error of that mean enters to second order only.

    :param loc: location of the base, of shape batch + (d,).
    :param tril: lower Cholesky factor C of its covariance, of shape batch + (d, d).
    :raises ValueError: if K is not positive definite.
    """
    loc, tril, A, b = promoted(loc, tril, reward.A, reward.b)
    dtype = loc.dtype
    loc, tril, A, b = (_widened(tensor) for tensor in (loc, tril, A, b))
    law = tilted_covariance(base, tril, 2 * A)
    slope = b + 2 * (A @ loc.unsqueeze(-1)).squeeze(-1)
    shift = law.scale_tril @ (law.scale_tril.mT @ slope.unsqueeze(-1))
    mean = loc + shift.squeeze(-1)
    white = torch.linalg.solve_triangular(tril, shift, upper=False).squeeze(-1)
    height = (((A @ mean.unsqueeze(-1)).squeeze(-1) + b) * mean).sum(-1) + reward.c
    log_z = height - white.square().sum(-1) / 2 - law.log_det / 2
    tilted = dist.MultivariateNormal(mean.to(dtype), scale_tril=law.scale_tril.to(dtype))
    return closed_form(base, tilted, log_z.to(dtype))


def tilted_covariance(base: Any, tril: Tensor, curvature: Tensor) -> Factored:
    r"""
    :math:`C K^{-1} C^\top` of :math:`K = I - C^\top Q C`, factored without an inverse.

    With K = U U' for an upper triangular U, the lower triangular factor is
    :math:`C U^{-\top}`.

    :param tril: C, lower triangular.
    :param curvature: Q, symmetric.
    :raises ValueError: if K is not positive definite, with its smallest eigenvalue.
    """
    eye = torch.eye(tril.shape[-1], dtype=tril.dtype, device=tril.device)
    K = eye - tril.mT @ curvature @ tril
    K = (K + K.mT) / 2
    factor, info = torch.linalg.cholesky_ex(K.flip(-2, -1))
    if bool((info != 0).any()):
        smallest = torch.linalg.eigvalsh(K.detach())[..., 0]
        require(
            info == 0,
            base,
            "K = I - C'QC positive definite, with Q the Hessian of the reward and CC' the "
            "covariance (smallest eigenvalue of K above 0)",
            smallest_eigenvalue=smallest,
        )
    upper = factor.flip(-2, -1)
    log_det = 2 * upper.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    scale_tril = torch.linalg.solve_triangular(upper, tril.mT.expand(K.shape), upper=True).mT
    return Factored(scale_tril, log_det)


def _widened(tensor: Tensor) -> Tensor:
    """Double precision where the device has it: K may range over many orders of magnitude."""
    return tensor if tensor.device.type == "mps" else tensor.double()
