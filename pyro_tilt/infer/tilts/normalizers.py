# SPDX-License-Identifier: Apache-2.0
r"""Estimates of :math:`\Lambda(\theta) = \log E\, e^{\langle\theta, x_0\rangle}` of a diffusion."""

from __future__ import annotations

import math
import warnings
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_tilt.infer.errors import SamplerWarning
from pyro_tilt.infer.tilts.linear_draws import check_tilts, linear_tilt_draws
from pyro_tilt.infer.tilts.protocols import DiffusionModel
from pyro_tilt.ops.importance import as_double, log_evidence

__all__ = [
    "Normalizer",
    "line_normalizer",
    "telescoping_normalizer",
    "telescoping_size",
    "thermodynamic_normalizer",
]


class Normalizer(NamedTuple):
    """
    An estimate of a log normaliser.

    :ivar value: the estimate.
    :ivar error: its estimated error.
    :ivar rows: rows of the denoiser that it took.
    """

    value: float
    error: float
    rows: int


def telescoping_size(
    theta_norm: float, radius: float, *, epsilon: float, delta: float
) -> tuple[int, int]:
    r"""
    Rungs and draws per rung that make the telescoping product right within a relative
    :math:`\epsilon` with probability :math:`1 - \delta`.

    With :math:`N = \max(1, \lceil C |\theta| \rceil)` rungs every term lies in [1/e, e], and
    Hoeffding's inequality asks for :math:`\tfrac{e^2}{2} \log(2N/\delta) / \epsilon'^2` draws with
    :math:`\epsilon' = \epsilon / (2 (1 + e) e N)`: the algorithm of Moitra, Risteski and Rohatgi
    2026, arXiv 2602.16570, with the constant that its proof needs.

    :param theta_norm: the norm of theta.
    :param radius: C, a bound on the norm of the data.
    :param epsilon: the relative error.
    :param delta: the probability of a larger one.

    >>> telescoping_size(1.0, 2.0, epsilon=0.5, delta=0.1)
    (2, 89107)
    """
    rungs = max(1, math.ceil(radius * theta_norm))
    each = epsilon / (2.0 * (1.0 + math.e) * math.e * rungs)
    return rungs, math.ceil(math.e**2 / 2.0 * math.log(2.0 * rungs / delta) / each**2)


def telescoping_normalizer(
    base: DiffusionModel,
    theta: Tensor,
    *,
    radius: float,
    num_samples: int | None = None,
    epsilon: float = 0.1,
    delta: float = 0.05,
    **options: Any,
) -> Normalizer:
    r"""
    :math:`\Lambda(\theta) = \sum_{k=1}^N \log E_{p_{(k-1)\theta/N}}\, e^{\langle\theta, x\rangle /
    N}`.

    Each mean is over draws of the tilt before it. The error is by the delta method.

    :param base: the model.
    :param theta: of the event shape.
    :param radius: a bound on the norm of the data, which sets the number N of rungs.
    :param num_samples: draws per rung; by default those of :func:`telescoping_size`, for which the
        relative error of :math:`e^\Lambda` is at most ``epsilon`` with probability 1 - ``delta``
        where the sampler is exact.
    :param epsilon: see :func:`telescoping_size`.
    :param delta: see :func:`telescoping_size`.
    :param options: of :func:`linear_tilt_draws`.
    :raises ValueError: for a radius that is not positive, or that half of the draws of a rung lie
        beyond; a warning tells of fewer.
    """
    if not 0.0 < radius < math.inf:
        raise ValueError(f"radius must be positive and finite, got {radius}")
    theta, _ = check_tilts(base, theta, 1)
    size = float(theta.double().norm())
    rungs, wanted = telescoping_size(size, radius, epsilon=epsilon, delta=delta)
    n = wanted if num_samples is None else num_samples
    value, variance = 0.0, 0.0
    norms = []
    for k in range(rungs):
        draws = linear_tilt_draws(base, theta * (k / rungs), n, **options)
        norms.append(draws.detach().flatten(1).norm(dim=-1))
        _refuse_radius(norms[-1], radius)
        log_mean, error = log_evidence(_inner(draws, theta) / rungs)
        value, variance = value + float(log_mean), variance + float(error) ** 2
    _warn_of_radius(torch.cat(norms), radius)
    return Normalizer(value, math.sqrt(variance), rungs * n * _calls(base, options))


def _refuse_radius(norms: Tensor, radius: float) -> None:
    if float(norms.median()) > radius:
        raise ValueError(
            f"radius = {radius:g} does not bound the norm of the data: half of the draws have one "
            f"above {float(norms.median()):.4g}, and the largest has {float(norms.max()):.4g}"
        )


def _warn_of_radius(norms: Tensor, radius: float) -> None:
    outside = norms > radius
    if bool(outside.any()):
        warnings.warn(
            f"{int(outside.sum())} of {len(norms)} draws have a norm above radius = {radius:g}, "
            f"the largest {float(norms.max()):.4g}: the number of rungs, and what epsilon and "
            "delta promise, assume that none has. Raise radius",
            SamplerWarning,
            stacklevel=3,
        )


def thermodynamic_normalizer(
    base: DiffusionModel,
    theta: Tensor,
    *,
    nodes: int = 6,
    num_samples: int = 1000,
    **options: Any,
) -> Normalizer:
    r"""
    :math:`\Lambda(\theta) = \int_0^1 \langle\theta, E_{p_{\tau\theta}} x\rangle\, d\tau`, by
    Gauss-Legendre nodes.

    The error is that of the means; the quadrature adds to it where :math:`\Lambda` is far from a
    polynomial along the way.

    :param base: the model.
    :param theta: of the event shape.
    :param nodes: number of nodes.
    :param num_samples: draws per node.
    :param options: of :func:`linear_tilt_draws`.
    """
    theta, _ = check_tilts(base, theta, 1)
    points, weights = _gauss(nodes)
    tilts = points.to(theta).reshape(-1, *(1,) * theta.dim()) * theta
    draws = linear_tilt_draws(base, tilts.repeat_interleave(num_samples, 0), **options)
    rewards = _inner(draws, theta).reshape(nodes, num_samples).cpu()
    value = float(weights @ rewards.mean(-1))
    spread = rewards.var(-1) / num_samples if num_samples > 1 else rewards.mean(-1) * math.nan
    error = math.sqrt(float(weights.square() @ spread))
    return Normalizer(value, error, nodes * num_samples * _calls(base, options))


def line_normalizer(
    base: DiffusionModel,
    theta: Tensor,
    *,
    ratio: float | None = None,
    centre: Tensor | None = None,
    nodes: int = 16,
) -> Normalizer:
    r"""
    Without a single draw, from predictions along a line at high noise.

    .. math::

        I_\sigma = \int_0^1 \langle\theta, D_p(m + \tau\sigma^2\theta; \sigma)\rangle\, d\tau
        = \Lambda + \log E_{p_\theta} e^{-|x - m|^2 / 2\sigma^2}
        - \log E_p\, e^{-|x - m|^2 / 2\sigma^2}

    where :math:`D_p(\cdot; \sigma)` predicts from :math:`x_0 + \sigma\epsilon` and m is any centre.
    As the last two terms vanish like :math:`1/\sigma^2`, the value is
    :math:`2 I_\sigma - I_{\sigma/\sqrt 2}` and the error :math:`|I_\sigma - I_{\sigma/\sqrt 2}|`;
    the identity is derived here. To a network the line is an extrapolation by
    :math:`\sigma|\theta|` standard deviations.

    :param base: the model.
    :param theta: of the event shape.
    :param ratio: :math:`\sigma`; by default the noise ratio of the model's first level.
    :param centre: m; by default the prediction from the state zero.
    :param nodes: number of Gauss-Legendre nodes.
    """
    theta, _ = check_tilts(base, theta, 1)
    sigma = base.schedule.levels[0].ratio if ratio is None else ratio
    points, weights = _gauss(nodes)
    taus = points.to(theta).reshape(-1, *(1,) * theta.dim())
    integrals = []
    for each in (sigma, sigma / math.sqrt(2.0)):
        level = base.schedule.starting_at(each).levels[0]
        middle = base.denoise(torch.zeros_like(theta), level) if centre is None else centre
        line = level.a * (middle + taus * (level.ratio**2 * theta))
        integrals.append(float(weights @ _inner(base.denoise(line, level), theta).cpu()))
    far, near = integrals
    rows = 2 * (nodes + (centre is None))
    return Normalizer(2.0 * far - near, abs(far - near), rows)


def _inner(draws: Tensor, theta: Tensor) -> Tensor:
    return as_double(draws).flatten(1) @ as_double(theta).flatten()


def _gauss(nodes: int) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre nodes and weights on [0, 1], in float64."""
    points, weights = np.polynomial.legendre.leggauss(nodes)
    return torch.from_numpy(0.5 * (points + 1.0)), torch.from_numpy(0.5 * weights)


def _calls(base: DiffusionModel, options: dict[str, Any]) -> int:
    return base.evaluations(options.get("sampler", "ancestral"), len(base.schedule.levels) - 1)
