# SPDX-License-Identifier: Apache-2.0
"""The normal law restricted to an interval."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.utils import broadcast_all

from pyro_tilt.distributions.half_line import half_line_support

_FEW = tuple(zip(*np.polynomial.legendre.leggauss(10)))
_MANY = tuple(zip(*np.polynomial.legendre.leggauss(48)))
# Standard deviations beyond which a normal tail holds less than 1e-300 of the mass kept.
_FAR = 50.0


class TruncatedNormal(TorchDistribution):
    r"""
    A normal law restricted to an interval, accurate however far the interval lies in its tail.

    .. math::

        p(x) \propto e^{-(x - \mu)^2 / 2 s^2}\, 1[\text{low} \le x \le \text{high}]

    Everything is computed relative to the mode, with the scaled complementary error function, so
    that no probability underflows.

    :param loc: location of the normal law, of the batch shape.
    :param scale: scale of the normal law, positive, of the batch shape.
    :param low: lower end, ``-inf`` allowed.
    :param high: upper end, ``inf`` allowed.
    :raises ValueError: if ``low`` is not below ``high``.

    >>> law = TruncatedNormal(torch.tensor(-20.0), 1.0, low=0.0)
    >>> law.mean
    tensor(0.0498)
    >>> bool((law.sample((100,)) >= 0).all())
    True
    """

    arg_constraints = {
        "loc": constraints.real,
        "scale": constraints.positive,
        "low": constraints.dependent,
        "high": constraints.dependent,
    }
    has_rsample = True

    def __init__(
        self,
        loc: Tensor | float,
        scale: Tensor | float,
        low: Tensor | float = -math.inf,
        high: Tensor | float = math.inf,
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.loc, self.scale, self.low, self.high = broadcast_all(loc, scale, low, high)
        if not bool((self.low < self.high).all()):
            raise ValueError(f"low must be below high, got low={low} and high={high}")
        super().__init__(self.loc.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> TruncatedNormal:
        new = self._get_checked_instance(TruncatedNormal, _instance)
        batch_shape = torch.Size(batch_shape)
        for name in ("loc", "scale", "low", "high"):
            setattr(new, name, getattr(self, name).expand(batch_shape))
        super(TruncatedNormal, new).__init__(batch_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> constraints.Constraint:
        return half_line_support(self.low, self.high)

    @property
    def mode(self) -> Tensor:
        return torch.minimum(torch.maximum(self.loc, self.low), self.high)

    @property
    def _flip(self) -> Tensor:
        """Where the law is mirrored, for its left end to be the nearer to ``loc``."""
        return self.low - self.loc < self.loc - self.high

    @property
    def _ends(self) -> tuple[Tensor, Tensor]:
        """Standardised ends ``a < b`` of the mirrored law, with ``|a| <= b`` unless infinite."""
        a, b = self._standardise(self.low), self._standardise(self.high)
        return torch.where(self._flip, -b, a), torch.where(self._flip, -a, b)

    def _standardise(self, end: Tensor) -> Tensor:
        """Standardised ends whose gradients are zero, rather than NaN, where infinite."""
        infinite = end.isinf()
        return torch.where(
            infinite, end, (torch.where(infinite, self.loc, end) - self.loc) / self.scale
        )

    @property
    def log_mass_from_mode(self) -> Tensor:
        r"""
        :math:`\log \int e^{-(x - \mu)^2/2s^2 + (m - \mu)^2/2s^2} dx / s` over the interval, with
        :math:`m` the mode.
        """
        return _log_mass_from_mode(*self._ends)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        mode = self.mode
        excess = (value - mode) * (value + mode - 2 * self.loc) / (2 * self.scale**2)
        log_density = -excess - self.scale.log() - self.log_mass_from_mode
        inside = (value >= self.low) & (value <= self.high)
        return torch.where(inside, log_density, -math.inf)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        shape = self._extended_shape(sample_shape)
        return self._quantile(torch.rand(shape, dtype=self.loc.dtype, device=self.loc.device))

    def cdf(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        a, b = self._ends
        mass = self.log_mass_from_mode.exp()
        tail = a > 0
        sign = torch.where(self._flip, -1.0, 1.0).to(a.dtype)
        excess = (sign * (value - self.mode) / self.scale).clamp(min=0.0)
        a_tail = torch.where(tail, a, 1.0)
        excess = torch.where(tail, torch.minimum(excess, b - a_tail), 0.0)
        drop = torch.exp(-excess * (a_tail + excess / 2))
        outer = _scaled_upper(a_tail) - drop * _scaled_upper(a_tail + excess)
        z = torch.minimum(torch.maximum(sign * (value - self.loc) / self.scale, a), b)
        inner = math.sqrt(2 * math.pi) * (torch.special.ndtr(z) - torch.special.ndtr(a))
        below = (torch.where(tail, outer, inner) / mass).clamp(0.0, 1.0)
        return torch.where(self._flip, 1 - below, below)

    def icdf(self, value: Tensor) -> Tensor:
        return self._quantile(torch.where(self._flip, 1 - value, value))

    @property
    def _moments(self) -> tuple[Tensor, Tensor]:
        """Mean and variance of the mirrored, standardised law, from its left end or ``loc``."""
        return _moments(*self._ends)

    @property
    def mean(self) -> Tensor:
        shift = self.scale * self._moments[0]
        sign = torch.where(self._flip, -1.0, 1.0).to(shift.dtype)
        return self.mode + sign * shift

    @property
    def variance(self) -> Tensor:
        return self.scale**2 * self._moments[1]

    def _quantile(self, u: Tensor) -> Tensor:
        """The quantile at ``u`` of the mirrored law, mirrored back; differentiable."""
        a, b = self._ends
        mass = self.log_mass_from_mode.exp()
        tail = a > 0
        sign = torch.where(self._flip, -1.0, 1.0).to(u.dtype)
        outer = self.mode + sign * self.scale * _tail_excess(u, torch.where(tail, a, 1.0), mass)
        left = torch.special.ndtr(torch.where(tail, -1.0, a))
        mass = torch.where(tail, 1.0, mass / math.sqrt(2 * math.pi))
        below = (left + u * mass).clamp(min=torch.finfo(u.dtype).tiny)
        above = torch.special.ndtr(-b) + (1 - u) * mass
        lower = below < 0.5
        z = torch.special.ndtri(torch.where(lower, below, above.clamp(max=0.5)))
        inner = self.loc + sign * self.scale * torch.where(lower, z, -z)
        value = torch.where(tail, outer, inner)
        return torch.minimum(torch.maximum(value, self.low), self.high)


def _scaled_upper(a: Tensor) -> Tensor:
    r""":math:`\int_a^\infty e^{-(z^2 - a^2)/2} dz` for ``a`` not negative."""
    return math.sqrt(math.pi / 2) * torch.special.erfcx(a / math.sqrt(2))


def _log_mass_from_mode(a: Tensor, b: Tensor) -> Tensor:
    r""":math:`\log \int_a^b e^{-(z^2 - \gamma^2)/2} dz` with :math:`\gamma = \max(a, 0)`."""
    near = a.clamp(min=0.0)
    narrow = (b - near) * (b + near) < 2.0
    tail = (a > 0) & ~narrow
    a_tail = torch.where(tail, a, 1.0)
    b_tail = torch.minimum(torch.where(tail, b, 9.0), a_tail + _FAR)
    drop = torch.exp(-(b_tail - a_tail) * (b_tail + a_tail) / 2)
    outer = (_scaled_upper(a_tail) - drop * _scaled_upper(b_tail)).log()
    centre = ~(tail | narrow)
    a_mid = torch.where(centre, a, -1.0).clamp(min=-_FAR)
    b_mid = torch.where(centre, b, 9.0).clamp(max=_FAR)
    outside = torch.special.ndtr(a_mid) + torch.special.ndtr(-b_mid)
    inner = 0.5 * math.log(2 * math.pi) + torch.log1p(-outside)
    result = torch.where(tail, outer, inner)
    if bool(narrow.any()):
        a, b = torch.where(narrow, a, 0.0), torch.where(narrow, b, 1.0)
        result = torch.where(narrow, _interval_sums(a, b, _FEW)[0].log(), result)
    return result


def _interval_sums(a: Tensor, b: Tensor, rule: Any) -> tuple[Tensor, Tensor, Tensor]:
    r"""Gauss-Legendre integrals of 1, z - g and (z - g)^2 against the scaled density."""
    near = a.clamp(min=0.0)
    half, start = (b - a) / 2, a.clamp(max=0.0)
    zeroth = first = second = torch.zeros_like(half)
    for node, weight in rule:
        step = start + half * (1 + float(node))
        term = float(weight) * half * torch.exp(-step * (step + 2 * near) / 2)
        zeroth, first, second = zeroth + term, first + step * term, second + step**2 * term
    return zeroth, first, second


def _moments(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of z - g and variance, by quadrature over the part that holds all but e^-40."""
    near = a.clamp(min=0.0)
    reach = 80.0 / (near + (near**2 + 80.0).sqrt())
    zeroth, first, second = _interval_sums(a.clamp(min=-9.0), torch.minimum(b, near + reach), _MANY)
    mean = first / zeroth
    return mean, second / zeroth - mean**2


def _tail_excess(u: Tensor, a: Tensor, mass: Tensor) -> Tensor:
    """
    The excess over ``a > 0`` at which a share ``u`` of the mass lies below.

    Newton's method on the log survival function, which is concave, from a start to the right of
    the root: it descends to the root monotonically. The last step alone carries gradients, which
    are then those of the implicit function.
    """

    def target(a: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
        return _scaled_upper(a).log(), torch.log1p(-u * share)

    with torch.no_grad():
        log_upper, level = target(a, (mass / _scaled_upper(a)).clamp(max=1.0))
        t = -2 * level / (a + (a**2 - 2 * level).sqrt())
        for _ in range(6):
            upper = _scaled_upper(a + t)
            gap = upper.log() - log_upper - t * (a + t / 2) - level
            t = (t + gap * upper).clamp(min=0.0)
        slope = _scaled_upper(a + t)
    log_upper, level = target(a, (mass / _scaled_upper(a)).clamp(max=1.0))
    gap = _scaled_upper(a + t).log() - log_upper - t * (a + t / 2) - level
    return t + gap * slope
