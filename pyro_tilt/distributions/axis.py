# SPDX-License-Identifier: Apache-2.0
"""A line mapped onto the support of a scalar law, so that every scale and every end is in reach."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, MixtureSameFamily, Transform, VonMises, constraints
from torch.nn.functional import logsigmoid

# How far the line reaches: to e^300 at an infinite end or at zero, and to the precision of
# float64 at another finite end. Single precision overflows sooner.
FAR = 300.0
FAR_SINGLE = 80.0
NEAR = 30.0


@dataclass(frozen=True)
class Axis:
    """
    A monotone map from t in the real line to x in the support, for every batch element.

    Sinh of t on the whole line, exp on a half line, the logistic function on an interval: power
    laws at an end become exponentials in t.

    :ivar low: lower ends of the support, of the batch shape, in float64.
    :ivar high: upper ends.
    :ivar center: where t = 0 lies on the whole line.
    :ivar scale: the unit of x.
    :ivar reach: how far t goes at an infinite end.
    """

    low: Tensor
    high: Tensor
    center: Tensor
    scale: Tensor
    reach: float

    @classmethod
    def around(cls, low: Tensor, high: Tensor, draws: Tensor, reach: float) -> Axis:
        """
        The axis of a support, centred where the draws of its law are.

        :param low: lower ends, of the batch shape, all of them infinite or none.
        :param high: upper ends, likewise.
        :param draws: shape ``(n,) + batch_shape``.
        :param reach: see above.
        """
        ordered = draws.to(torch.float64).sort(0).values
        quarter = len(ordered) // 4
        center, spread = ordered[2 * quarter], ordered[3 * quarter] - ordered[quarter]
        if math.isfinite(float(low.detach().amax())):
            spread = center - low.detach()
        elif math.isfinite(float(high.detach().amax())):
            spread = high.detach() - center
        fallback = center.abs().clamp(min=1e-30)
        return cls(low, high, center, torch.where(spread > 0, spread, fallback), reach)

    @property
    def open_below(self) -> bool:
        return not bool((self.low > -math.inf).all())

    @property
    def open_above(self) -> bool:
        return not bool((self.high < math.inf).all())

    @property
    def limits(self) -> tuple[float, float]:
        """The smallest and the largest t."""
        low = self.reach if self.open_below or not bool(self.low.any()) else NEAR
        high = self.reach if self.open_above or not bool(self.high.any()) else NEAR
        return -low, high

    def value(self, t: Tensor) -> Tensor:
        """The point of the support at t, strictly inside."""
        if self.open_below and self.open_above:
            return self.center + self.scale * t.sinh()
        if self.open_above:
            x = self.low + self.scale * t.exp()
        elif self.open_below:
            x = self.high - self.scale * (-t).exp()
        else:
            width = self.high - self.low
            x = torch.where(
                t < 0, self.low + width * t.sigmoid(), self.high - width * (-t).sigmoid()
            )
        infinity = torch.full_like(self.low, math.inf)
        first = torch.nextafter(self.low, infinity).detach()
        last = torch.nextafter(self.high, -infinity).detach()
        return x.clamp(first, last)

    def log_jacobian(self, t: Tensor) -> Tensor:
        """The log derivative of :meth:`value`."""
        if self.open_below and self.open_above:
            return self.scale.log() + t.abs() + torch.log1p((-2 * t.abs()).exp()) - math.log(2)
        if self.open_above:
            return self.scale.log() + t
        if self.open_below:
            return self.scale.log() - t
        return (self.high - self.low).log() + logsigmoid(t) + logsigmoid(-t)

    def inverse(self, x: Tensor) -> Tensor:
        """The t of a point of the support, within the limits."""
        if self.open_below and self.open_above:
            t = ((x - self.center) / self.scale).asinh()
        elif self.open_above:
            t = ((x - self.low) / self.scale).log()
        elif self.open_below:
            t = -((self.high - x) / self.scale).log()
        else:
            t = ((x - self.low) / (self.high - self.low)).logit()
        return t.nan_to_num(nan=0.0).clamp(*self.limits)


def support_ends(base: Distribution) -> tuple[Any, Any] | None:
    """The ends of the support of a scalar continuous law, None where they cannot be told."""
    if isinstance(base, VonMises):
        return -math.pi, math.pi
    support: Any = base.support
    mixed = isinstance(base, MixtureSameFamily)
    if isinstance(base, MixtureSameFamily):
        support = base.component_distribution.support
    if support.is_discrete or support.event_dim:
        return None
    if isinstance(support, type(constraints.real)):
        return -math.inf, math.inf
    if not (hasattr(support, "lower_bound") or hasattr(support, "upper_bound")):
        return None
    low = getattr(support, "lower_bound", -math.inf)
    high = getattr(support, "upper_bound", math.inf)
    if mixed:
        low = low.amin(-1) if isinstance(low, Tensor) and low.dim() else low
        high = high.amax(-1) if isinstance(high, Tensor) and high.dim() else high
    return low, high


def in_double(part: Any) -> Any:
    """
    A copy of a distribution in float64, on the same graph, that does not check its arguments.

    :param part: a distribution or a transform; modules are left as they are.
    """
    return _doubled(part, {})


def _doubled(value: Any, made: dict[int, Any]) -> Any:
    """The value in float64; ``made`` holds copies by id, as inverse transforms hold each other."""
    if isinstance(value, Tensor):
        return value.to(torch.float64) if value.is_floating_point() else value
    if type(value) in (list, tuple):
        return type(value)(_doubled(item, made) for item in value)
    if isinstance(value, nn.Module) or not isinstance(value, (Distribution, Transform)):
        return value
    if id(value) not in made:
        new = made[id(value)] = copy.copy(value)
        for name, item in vars(value).items():
            vars(new)[name] = _doubled(item, made)
        if isinstance(new, Distribution):
            new._validate_args = False
    return made[id(value)]
