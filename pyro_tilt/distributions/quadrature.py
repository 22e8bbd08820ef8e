# SPDX-License-Identifier: Apache-2.0
"""Tilts of scalar continuous bases by quadrature."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from pyro.distributions.torch_distribution import MaskedDistribution
from torch import Tensor
from torch.distributions import Distribution

from pyro_tilt.distributions.axis import FAR, FAR_SINGLE, Axis, in_double, support_ends
from pyro_tilt.distributions.inspection import pilot_draws
from pyro_tilt.distributions.panels import (
    DEPTH,
    Panels,
    bridge,
    in_chunks,
    pin_jumps,
    thinned,
    zoom,
)
from pyro_tilt.distributions.quadrature_law import QuadratureLaw, in_closed_form, reward_values
from pyro_tilt.distributions.registry import ExactTilt, register_tilt
from pyro_tilt.rewards import Reward

# Batches up to this size are probed finely.
FINE_BATCH = 256
TOLERANCE = 1e-11
# An error above this is no answer.
WORST_ERROR = 1e-2
# Log densities this far below the largest are zero for every purpose.
NEGLIGIBLE = 745.0
# Slopes of the log integrand in t that say what lies beyond the reach.
STEEP, FLAT = -0.02, -1e-6


class _Integrand:
    """The log density in t of base times exponential reward; ``-inf`` where it cannot matter."""

    def __init__(self, base: Distribution, reward: Reward, axis: Axis, dtype: torch.dtype) -> None:
        self.base, self.reward, self.axis, self.dtype = in_double(base), reward, axis, dtype
        self.floor = -math.inf
        self.name = type(base).__name__

    def __call__(self, t: Tensor) -> Tensor:
        x = self.axis.value(t)
        log_probs = self.base.log_prob(x)
        rewards = reward_values(self.reward, x, self.dtype)
        matters = log_probs > self.floor
        bad = ~(rewards < math.inf)
        if bool((bad & matters).any()):
            kind = "NaN" if bool((rewards.isnan() & matters).any()) else "+inf"
            raise ValueError(
                f"Tilted: the reward is {kind} for {int((bad & matters).sum())} values at which "
                f"{self.name} has positive density; a reward must be a number or -inf"
                + (", and a negative beta turns -inf into +inf" if kind == "+inf" else "")
            )
        keep = (log_probs > -math.inf) & ~bad
        blocked = torch.full_like(log_probs, -math.inf)
        return torch.where(keep, log_probs + rewards + self.axis.log_jacobian(t), blocked)


@register_tilt(Distribution, Reward)
def integrate_tilt(base: Any, reward: Reward) -> ExactTilt | None:
    r"""
    The tilt of any scalar continuous base by any reward, by adaptive quadrature.

    .. math::

        Z = \int p(x)\, e^{r(x)}\, dx

    The stated error is the distance between a Gauss and a Kronrod rule on panels that were laid
    around every mode that probing found, and what lies beyond the last panels. It takes for
    granted that a black-box reward has no spike between all probes.

    :param base: the base law.
    :param reward: the reward, beta folded in.
    :raises ValueError: if the integral does not exist, if the reward is ``-inf`` on the whole
        support, or if it is NaN or ``+inf`` where the base has density.
    """
    if base.event_shape or isinstance(base, MaskedDistribution):
        return None
    ends = support_ends(base)
    if ends is None:
        return None
    with torch.no_grad():
        try:
            axis, draws = _axis(base, reward, ends)
            fn = _Integrand(base, reward, axis, draws.dtype)
            fn.floor = float(fn.base.log_prob(draws.double()).amax()) - NEGLIGIBLE
        except NotImplementedError:
            # A law without a density, or without draws to find it by.
            return None
        panels, tails, beyond = _integrate(fn, axis, draws, _tolerance(reward, draws.dtype))
        error = float((panels.errors().sum(0) + beyond).amax())
        if error > WORST_ERROR:
            return None
        knots, densities, distance = _table(fn, panels)
    log_z, t, log_weights = _normalizer(fn, base, panels, ends, beyond)
    law = QuadratureLaw(
        base, reward, log_z.to(draws.dtype), fn.axis.value(t), log_weights,
        axis=axis, knots=knots, densities=densities, tails=tails,
    )  # fmt: skip
    return ExactTilt(law, law.log_normalizer, "quadrature", max(error, distance))


def _axis(base: Any, reward: Reward, ends: tuple[Any, Any]) -> tuple[Axis, Tensor]:
    draws = pilot_draws(base, 512 if torch.Size(base.batch_shape).numel() <= FINE_BATCH else 64)
    single = draws.dtype != torch.float64 and not in_closed_form(reward)
    low, high = _aligned(ends, draws)
    return Axis.around(low, high, draws, FAR_SINGLE if single else FAR), draws


def _aligned(ends: tuple[Any, Any], draws: Tensor) -> list[Tensor]:
    """Ends in float64 and of the batch shape; where only some are infinite, all are taken so."""
    aligned = []
    for end in ends:
        end = torch.as_tensor(end, device=draws.device).to(torch.float64).expand(draws.shape[1:])
        endless = end.isinf()
        aligned.append(end[endless].amax().expand(end.shape) if bool(endless.any()) else end)
    return aligned


def _tolerance(reward: Reward, dtype: torch.dtype) -> float:
    rounding = 0.0 if in_closed_form(reward) else torch.finfo(dtype).eps
    return max(TOLERANCE, 10 * rounding)


def _integrate(
    fn: _Integrand, axis: Axis, draws: Tensor, tolerance: float
) -> tuple[Panels, Tensor, Tensor]:
    fine = draws[0].numel() <= FINE_BATCH
    stride = 20 if draws[0].numel() <= FINE_BATCH // 16 else 5 if fine else 1
    t = _probes(axis, draws, 0.1 / stride)
    t, h = zoom(fn, t, in_chunks(fn, t), *((8, 16) if fine else (3, 12)))
    t, h = bridge(fn, t, h)
    top = h.amax(0)
    if bool((top == -math.inf).any()):
        raise ValueError(
            f"Tilted: the reward is -inf wherever {fn.name} was probed "
            f"({int((top == -math.inf).sum())} batch elements): the tilt has no mass there"
        )
    inside = h >= top - DEPTH
    first, last = inside.int().argmax(0), len(t) - 1 - inside.flip(0).int().argmax(0)
    _refuse_outgrown(fn, t.gather(0, h.argmax(0, keepdim=True)))
    _refuse_blocked(fn, t, first, last)
    low = t.gather(0, (first - 1).clamp(min=0)[None])
    high = t.gather(0, (last + 1).clamp(max=len(t) - 1)[None])
    t, h = pin_jumps(fn, *thinned(t, h, stride))
    panels = Panels.between(fn, t.clamp(low, high)).refine(fn, tolerance)
    return panels, *_tails(fn, axis, low[0], high[0], panels.log_integral())


def _probes(axis: Axis, draws: Tensor, spacing: float) -> Tensor:
    """Points in ascending order: dense near the middle, sparse far out, and where draws fall."""
    reach = max(abs(end) for end in axis.limits)
    near = torch.arange(0, 10, spacing, dtype=torch.float64)
    far = torch.logspace(1, math.log10(reach), int(min(400, 12 / spacing)), dtype=torch.float64)
    one_side = torch.cat([near, far])
    line = torch.cat([-one_side.flip(0)[:-1], one_side, torch.tensor(axis.limits)])
    line = line.clamp(*axis.limits).unique()
    line = line.to(draws.device).reshape(-1, *(1,) * (draws.dim() - 1))
    line = line.expand(len(line), *draws.shape[1:])
    return torch.cat([line, axis.inverse(draws.to(torch.float64))]).sort(0).values


def _refuse_outgrown(fn: _Integrand, t: Tensor) -> None:
    """An integrand that peaks where rewards are too large to tell apart has no peak at all."""
    x = fn.axis.value(t)
    rounding = torch.finfo(torch.float64 if in_closed_form(fn.reward) else fn.dtype).eps
    lost = reward_values(fn.reward, x, fn.dtype).abs() * rounding > 1
    if bool((lost & (fn.base.log_prob(x) < fn.floor)).any()):
        raise ValueError(_divergent(fn, "the reward outgrows the base"))


def _refuse_blocked(fn: _Integrand, t: Tensor, first: Tensor, last: Tensor) -> None:
    """A reward that overflows right where the integrand is largest has no integral."""
    for index in ((first - 1).clamp(min=0), (last + 1).clamp(max=len(t) - 1)):
        x = fn.axis.value(t.gather(0, index[None]))
        rewards = reward_values(fn.reward, x, fn.dtype)
        if bool((~(rewards < math.inf) & (fn.base.log_prob(x) > -math.inf)).any()):
            raise ValueError(_divergent(fn, "the reward outgrows the base"))


def _divergent(fn: _Integrand, why: str) -> str:
    return (
        f"Tilted: {fn.name} tilted by {fn.reward!r} does not exist: {why}, so that "
        "E_p exp(beta r) is infinite. Lower beta (or change its sign), or bound the reward"
    )


def _tails(
    fn: _Integrand, axis: Axis, low: Tensor, high: Tensor, log_z: Tensor
) -> tuple[Tensor, Tensor]:
    """How fast the integrand falls beyond the panels, and how much of Z may lie there."""
    tails, beyond = [], torch.zeros_like(log_z)
    for edge, side, is_open in ((low, -1, axis.open_below), (high, 1, axis.open_above)):
        at_limit = edge * side >= axis.limits[side > 0] * side
        step = torch.where(at_limit, 2.0, (high - low).clamp(max=4.0) / 8)
        outer, inner = fn(edge[None])[0], fn((edge - side * step)[None])[0]
        fall = ((inner - outer) / step).nan_to_num(nan=math.inf)
        open_and_flat = at_limit & (outer >= log_z - NEGLIGIBLE) & (-fall > STEEP)
        if bool((open_and_flat & (-fall > FLAT)).any()):
            where = "infinity" if is_open else f"the {'upper' if side > 0 else 'lower'} end"
            raise ValueError(_divergent(fn, f"its density does not decay towards {where}"))
        tail = (outer - log_z).exp() / fall.clamp(min=1e-3)
        beyond = beyond + torch.where(open_and_flat, math.inf, tail)
        tails.append(fall if is_open else torch.full_like(fall, math.inf))
    return torch.stack(tails), beyond


def _table(fn: _Integrand, panels: Panels) -> tuple[Tensor, Tensor, float]:
    """Knots, densities there, and the total variation that drawing lines between them costs."""
    mass = (panels.kronrod - panels.log_integral()).exp()
    order = panels.low.argsort(0)
    low, high, mass = (part.gather(0, order) for part in (panels.low, panels.high, mass))
    edges = torch.cat([low, (low + high) / 2, high[-1:]])
    count = 1024 if mass[0].numel() <= FINE_BATCH else 256
    levels = torch.linspace(1e-12, 1 - 1e-12, count, dtype=mass.dtype, device=mass.device)
    by_mass = _quantiles(low, high, mass, levels)
    share = levels.reshape(-1, *(1,) * (mass.dim() - 1))
    start = _quantiles(low, high, mass, levels.new_tensor([1e-10]))
    stop = _quantiles(low, high, mass, levels.new_tensor([1 - 1e-10]))
    coarse = torch.cat([edges, by_mass, start + (stop - start) * share]).sort(0).values
    middle = (coarse[1:] + coarse[:-1]) / 2
    top = panels.log_integral()
    at_coarse, at_middle = ((in_chunks(fn, t) - top).exp() for t in (coarse, middle))
    bend = (at_middle - (at_coarse[1:] + at_coarse[:-1]) / 2).abs() * coarse.diff(dim=0)
    knots = torch.cat([coarse, middle])
    knots, order = knots.sort(0)
    densities = torch.cat([at_coarse, at_middle]).gather(0, order)
    return knots, densities, float(bend.sum(0).amax()) * 2 / 3


def _quantiles(low: Tensor, high: Tensor, mass: Tensor, levels: Tensor) -> Tensor:
    """Quantiles of a law that is uniform within panels."""
    shape = mass.shape[1:]
    low, high, mass = (part.reshape(len(part), -1).T.contiguous() for part in (low, high, mass))
    cumulative = mass.cumsum(-1)
    u = (levels * cumulative[:, -1:]).contiguous()
    cell = torch.searchsorted(cumulative, u).clamp(max=mass.shape[1] - 1)
    share = (u - (cumulative - mass).gather(1, cell)) / mass.gather(1, cell)
    share = share.nan_to_num(nan=0.0).clamp(0, 1)
    left = low.gather(1, cell)
    return (left + (high.gather(1, cell) - left) * share).T.reshape(len(levels), *shape)


def _normalizer(
    fn: _Integrand, base: Distribution, panels: Panels, ends: tuple[Any, Any], beyond: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The log normaliser on the graph of base and reward, the nodes and their log masses."""
    t, log_weights = panels.nodes()
    low, high = _aligned(ends, panels.low)
    fn.axis = replace(fn.axis, low=low, high=high)
    fn.base = in_double(base)
    h = in_chunks(fn, t) + log_weights
    log_z = torch.logsumexp(h, 0)
    return log_z + beyond.log1p(), t, h - log_z
