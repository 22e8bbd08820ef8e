# SPDX-License-Identifier: Apache-2.0
"""A diffusion whose data are a Gaussian mixture, with exact predictions at every level."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributions as td
from torch import Tensor

from pyro_tilt.diffusion.levels import Level
from pyro_tilt.diffusion.model import Diffusion
from pyro_tilt.diffusion.schedules import Schedule
from pyro_tilt.distributions.registry import find_tilt
from pyro_tilt.rewards import Reward

__all__ = ["MixtureDiffusion"]


class MixtureDiffusion(Diffusion):
    r"""
    A Gaussian mixture as a diffusion model with exact scores.

    With components :math:`w_k N(m_k, C_k)` and :math:`V_k = a^2 C_k + s^2 I`,

    .. math::

        E[x_0 | x_t = x] = \sum_k \rho_k(x)\, \bigl(m_k + a C_k V_k^{-1} (x - a m_k)\bigr), \qquad
        \rho_k \propto w_k N(x; a m_k, V_k).

    Diagonal covariances cost a few products of a matrix of states with one of K rows, so that a
    thousand dimensions are no trouble; full ones are rotated into their eigenvectors.

    :param mixture: a ``MixtureSameFamily`` without batch shape, over ``MultivariateNormal``,
        ``LowRankMultivariateNormal`` or ``Independent(Normal, 1)``; or one such component.
    :param schedule: the noise levels.
    :raises TypeError: for another family.
    :raises ValueError: for a mixture with a batch shape.

    >>> import pyro.distributions as dist
    >>> from pyro_tilt.diffusion import VP
    >>> parts = dist.MultivariateNormal(torch.tensor([[-2.0, 0.0], [2.0, 1.0]]), torch.eye(2))
    >>> mixture = dist.MixtureSameFamily(dist.Categorical(torch.tensor([0.7, 0.3])), parts)
    >>> base = MixtureDiffusion(mixture, VP.linear(50))
    >>> base.denoise(torch.zeros(2), base.schedule.start)
    tensor([-0.8000,  0.3000])
    """

    exact = True

    def __init__(self, mixture: Any, schedule: Schedule) -> None:
        if not isinstance(schedule, Schedule):
            raise TypeError(f"schedule must be a Schedule, got {type(schedule).__name__}")
        self.mixture, self.schedule = mixture, schedule
        logits, components = _parts(mixture)
        self._log_weights = logits
        self._loc, self._variances, self._rotation = _spectrum(components)
        self._reference = (
            self._variances.mean(0)
            if self._rotation is None
            else (self._variances.mean().expand(self._variances.shape[-1]))
        )
        self.event_shape = self._loc.shape[-1:]
        self.dtype, self.device = self._loc.dtype, self._loc.device
        self._cache: dict[tuple[float, float], _Coefficients] = {}

    def denoise(self, x: Tensor, level: Level) -> Tensor:
        if x.shape[-1:] != self.event_shape:
            raise ValueError(
                f"states must end in the event shape {tuple(self.event_shape)}, "
                f"got {tuple(x.shape)}"
            )
        return self._denoise(x.reshape(-1, x.shape[-1]), self._at(level)).reshape(x.shape)

    def log_density(self, x: Tensor, level: Level) -> Tensor:
        r"""
        The log density of :math:`x_t` at a level.

        :param x: states of shape batch + event shape.
        :param level: the noise level.
        :returns: of the batch shape.

        >>> import pyro.distributions as dist
        >>> from pyro_tilt.diffusion import VE
        >>> base = MixtureDiffusion(dist.MultivariateNormal(torch.zeros(2), torch.eye(2)),
        ...                         VE.geometric(10, 50.0))
        >>> round(base.log_density(torch.zeros(2), base.schedule.levels[-1]).item(), 4)
        -1.8379
        """
        rows, c = x.reshape(-1, x.shape[-1]), self._at(level)
        scores, _ = self._scores(rows, c)
        common = ((rows - c.centre).square() / c.reference).sum(-1)
        constant = c.reference.log().sum() + rows.shape[-1] * math.log(2 * math.pi)
        return (scores.logsumexp(-1) - 0.5 * (common + constant)).reshape(x.shape[:-1])

    def tilted_law(self, reward: Reward) -> Any:
        r"""
        The exact tilt of the data by a reward, as a mixture again.

        :param reward: linear or quadratic, beta folded in.
        :returns: the tilt with its normaliser, an :class:`~pyro_tilt.distributions.ExactTilt`.
        :raises ValueError: where the tilt does not exist.
        :raises NotImplementedError: where it is no mixture known in closed form.
        """
        found = find_tilt(self.mixture, reward)
        if found is None or found.law is None:
            raise NotImplementedError(
                f"no closed form is known for a {type(reward).__name__} reward on "
                f"{type(self.mixture).__name__}"
            )
        return found

    def log_normalizer(self, theta: Tensor) -> Tensor:
        r"""
        :math:`\Lambda(\theta) = \log E\, e^{\langle\theta, x_0\rangle}`, exactly.

        :param theta: of shape batch + event shape.
        :returns: of the batch shape, in float64.
        """
        theta, loc = theta.double(), self._loc.double()
        inner, variances = theta @ loc.T, self._variances.double()
        if self._rotation is None:
            spread = theta.square() @ variances.T
        else:
            turned = torch.einsum("...d,kde->...ke", theta, self._rotation.double())
            spread = (turned.square() * variances).sum(-1)
        return (self._log_weights.double() + inner + 0.5 * spread).logsumexp(-1)

    def _at(self, level: Level) -> _Coefficients:
        key = (level.a, level.s)
        if key not in self._cache:
            if len(self._cache) > 4096:
                self._cache.clear()
            self._cache[key] = self._coefficients(*key)
        return self._cache[key]

    def _coefficients(self, a: float, s: float) -> _Coefficients:
        loc, variances = self._loc.double(), self._variances.double()
        spread = a * a * variances + s * s
        reference = a * a * self._reference.double() + s * s
        middle = loc.mean(0)
        gap = a * (loc - middle)
        turned, home = gap, loc
        if self._rotation is not None:
            rotation = self._rotation.double()
            turned = torch.einsum("kd,kde->ke", gap, rotation)
            home = torch.einsum("kd,kde->ke", loc, rotation)
        # Of -|u - gap|^2 / (2 spread) the part -|u|^2 / (2 reference) is common to all components,
        # and leaving it out is what keeps the digits of their differences at high noise.
        slope, pull = turned / spread, s * s / spread * home
        if self._rotation is not None:
            slope = torch.einsum("ke,kde->kd", slope, rotation)
            pull = torch.einsum("ke,kde->kd", pull, rotation)
        constant = -0.5 * (turned.square() / spread + (spread / reference).log()).sum(-1)
        return _Coefficients(
            centre=(a * middle).to(self._loc),
            reference=reference.to(self._loc),
            curvature=(0.5 * (spread - reference) / (spread * reference)).to(self._loc),
            slope=slope.to(self._loc),
            constant=(constant + self._log_weights.double()).to(self._loc),
            gain=(a * variances / spread).to(self._loc),
            pull=pull.to(self._loc),
        )

    def _scores(self, x: Tensor, c: _Coefficients) -> tuple[Tensor, Tensor | None]:
        """Log weights of the components up to a common term; the states in their eigenvectors."""
        away = x - c.centre
        linear = torch.addmm(c.constant, away, c.slope.T)
        if self._rotation is None:
            return torch.addmm(linear, away.square(), c.curvature.T), None
        turned = torch.einsum("nd,kde->nke", away, self._rotation)
        return linear + (turned.square() * c.curvature).sum(-1), turned

    def _denoise(self, x: Tensor, c: _Coefficients) -> Tensor:
        x = x.to(self._loc)
        scores, turned = self._scores(x, c)
        share = scores.softmax(-1)
        if self._rotation is None or turned is None:
            return torch.addcmul(share @ c.pull, share @ c.gain, x)
        centre = torch.einsum("d,kde->ke", c.centre, self._rotation)
        pulled = share.unsqueeze(-1) * c.gain * (turned + centre)
        return share @ c.pull + torch.einsum("nke,kde->nd", pulled, self._rotation)


class _Coefficients:
    """What a level makes of the components; each (K, d), except centre, reference, constant."""

    def __init__(self, **tensors: Tensor) -> None:
        self.__dict__.update(tensors)

    centre: Tensor
    reference: Tensor
    curvature: Tensor
    slope: Tensor
    constant: Tensor
    gain: Tensor
    pull: Tensor


def _parts(mixture: Any) -> tuple[Tensor, Any]:
    components, logits = mixture, None
    if isinstance(mixture, td.MixtureSameFamily):
        components = mixture.component_distribution
        logits = mixture.mixture_distribution.logits.log_softmax(-1)
    if mixture.batch_shape != torch.Size():
        raise ValueError(f"the mixture must have no batch shape, got {tuple(mixture.batch_shape)}")
    if logits is None:
        components = components.expand((1,))
        logits = torch.zeros(1, dtype=components.mean.dtype, device=components.mean.device)
    return logits, components


def _spectrum(components: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    """Locations, eigenvalues of the covariances, and their eigenvectors if they are not axes."""
    inner = getattr(components, "base_dist", None)
    if isinstance(components, td.Independent) and isinstance(inner, td.Normal):
        if len(components.event_shape) != 1:
            raise TypeError(
                "components must be vectors: Independent(Normal, 1), got event shape "
                f"{tuple(components.event_shape)}"
            )
        return inner.loc, inner.scale.square(), None
    if isinstance(components, td.MultivariateNormal | td.LowRankMultivariateNormal):
        covariance = components.covariance_matrix
        diagonal = covariance.diagonal(dim1=-2, dim2=-1)
        if bool((covariance == torch.diag_embed(diagonal)).all()):
            return components.loc, diagonal, None
        values, vectors = torch.linalg.eigh(covariance.double())
        return components.loc, values.to(covariance), vectors.to(covariance)
    raise TypeError(
        "MixtureDiffusion needs a mixture of MultivariateNormal, LowRankMultivariateNormal or "
        f"Independent(Normal, 1) components, got {type(components).__name__}"
    )
