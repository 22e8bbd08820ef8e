# SPDX-License-Identifier: Apache-2.0
"""Adaptive Gauss-Kronrod integration of exponentials, for a batch of integrands at once.

Integrands are given by their logarithm, and each element of the batch has panels of its own,
laid where probing found its mass.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

LogIntegrand = Callable[[Tensor], Tensor]

# Kronrod's extension of Gauss's rule of seven points: positive nodes, their weights, and the
# weights of every second node in Gauss's rule (R. Piessens et al., QUADPACK, 1983).
NODES = (
    0.991455371120812639206854697526329,
    0.949107912342758524526189684047851,
    0.864864423359769072789712788640926,
    0.741531185599394439863864773280788,
    0.586087235467691130294144691693013,
    0.405845151377397166906606412076961,
    0.207784955007898467600689403773245,
    0.0,
)
KRONROD = (
    0.022935322010529224963732008058970,
    0.063092092629978553290700663189204,
    0.104790010322250183839876322541518,
    0.140653259715525918745189590510238,
    0.169004726639267902826583426598550,
    0.190350578064785409913256402421014,
    0.204432940075298892414161999234649,
    0.209482141084727828012999174891714,
)
GAUSS = (
    0.129484966168869693270611432679082,
    0.279705391489276667901467771423780,
    0.381830050505118944950369775488975,
    0.417959183673469387755102040816327,
)

# Below the top by this many nats an integrand is left out.
DEPTH = 60.0
# Neighbouring points of a flank differ by at most this many nats.
STEP = 4.0
# Steps smaller than this many nats are no jumps.
JUMP = 1e-3
MAX_VALUES = 1 << 22
MAX_PANELS = 6000
# Rounds in which the error must halve.
PATIENCE = 8


def _rule(like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Nodes in [-1, 1], log weights of Kronrod and of Gauss (``-inf`` where Gauss has no node)."""
    gauss = [0.0, GAUSS[0], 0.0, GAUSS[1], 0.0, GAUSS[2], 0.0, GAUSS[3]]
    nodes = like.new_tensor([-n for n in NODES] + list(reversed(NODES[:-1])))
    kronrod = like.new_tensor([*KRONROD, *reversed(KRONROD[:-1])])
    return nodes, kronrod.log(), like.new_tensor([*gauss, *reversed(gauss[:-1])]).log()


def in_chunks(fn: LogIntegrand, t: Tensor) -> Tensor:
    """``fn`` of points of shape ``(n,) + batch_shape``, a bounded number of them at a time."""
    rows = max(1, MAX_VALUES // max(1, t[0].numel()))
    if len(t) <= rows:
        return fn(t)
    return torch.cat([fn(part) for part in t.split(rows)])


def _neighbours(values: Tensor, outside: float) -> tuple[Tensor, Tensor]:
    edge = values.new_full(values[:1].shape, outside)
    return torch.cat([edge, values[:-1]]), torch.cat([values[1:], edge])


def zoom(fn: LogIntegrand, t: Tensor, h: Tensor, peaks: int, rounds: int) -> tuple[Tensor, Tensor]:
    """
    Points added around the highest local maxima, at scales that shrink towards each.

    :param fn: the log integrand.
    :param t: probed points in ascending order, shape ``(n,) + batch_shape``.
    :param h: the log integrand there.
    :param peaks: how many maxima to follow.
    :param rounds: how often a bracket shrinks, fourfold each time.
    :return: all points and values, in order.
    """
    left, right = _neighbours(h, -math.inf)
    height = torch.where((h >= left) & (h >= right), h, -math.inf)
    top = height.topk(min(peaks, len(t)), dim=0).indices
    low, high = t.gather(0, (top - 1).clamp(min=0)), t.gather(0, (top + 1).clamp(max=len(t) - 1))
    steps = torch.linspace(0, 1, 9, dtype=t.dtype, device=t.device)
    steps = steps.reshape(9, *(1,) * low.dim())
    points, values = [t], [h]
    for _ in range(rounds):
        inner = low + (high - low) * steps
        found = in_chunks(fn, inner.flatten(0, 1)).reshape(inner.shape)
        points.append(inner.flatten(0, 1))
        values.append(found.flatten(0, 1))
        best = found.argmax(0, keepdim=True)
        low = inner.gather(0, (best - 1).clamp(min=0))[0]
        high = inner.gather(0, (best + 1).clamp(max=8))[0]
    everything, order = torch.cat(points).sort(dim=0)
    return everything, torch.cat(values).gather(0, order)


def bridge(fn: LogIntegrand, t: Tensor, h: Tensor, rounds: int = 50) -> tuple[Tensor, Tensor]:
    """
    Points added by halving wherever the integrand falls steeply from near its top.

    A flank between two far points, or a jump, would hide from every node of a wide panel.

    :param fn: the log integrand.
    :param t: points in ascending order, shape ``(n,) + batch_shape``.
    :param h: the log integrand there.
    :param rounds: how often a gap may be halved.
    """
    for _ in range(rounds):
        drop = (h[1:] - h[:-1]).abs()
        steep = (drop > STEP) & (h[1:].maximum(h[:-1]) > h.amax(0) - 2 * DEPTH / 3)
        steep &= t[1:] > t[:-1]
        count = int(steep.sum(0).amax())
        if count == 0:
            break
        gap = torch.where(steep, drop, -1.0).topk(count, dim=0).indices
        middle = (t.gather(0, gap) + t.gather(0, gap + 1)) / 2
        t, order = torch.cat([t, middle]).sort(dim=0)
        h = torch.cat([h, in_chunks(fn, middle)]).gather(0, order)
    return t, h


def thinned(t: Tensor, h: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """
    Every ``stride``-th point and all on steep stretches; the rest fall onto the one before.

    :param t: points in ascending order, shape ``(n,) + batch_shape``.
    :param h: the log integrand there.
    """
    drop = h.diff(dim=0).abs() > STEP / 8
    steep = torch.cat([drop, drop[-1:]]) | torch.cat([drop[:1], drop])
    index = torch.arange(len(t), device=t.device).reshape(-1, *(1,) * (t.dim() - 1))
    keep = steep | (index % stride == 0) | (index == len(t) - 1)
    last = torch.where(keep, index, 0).cummax(0).values
    return t.gather(0, last), h.gather(0, last)


def pin_jumps(fn: LogIntegrand, t: Tensor, h: Tensor, rounds: int = 50) -> tuple[Tensor, Tensor]:
    """
    Points added by halving wherever halving a gap does not shrink the step across it.

    A jump that falls between an edge of a panel and its outermost node shows in neither rule.

    :param fn: the log integrand.
    :param t: points in ascending order, shape ``(n,) + batch_shape``.
    :param h: the log integrand there.
    :param rounds: how often a gap may be halved.
    """
    parent = torch.zeros_like(h)
    for _ in range(rounds):
        drop = (h[1:] - h[:-1]).abs()
        stays = (drop > JUMP) & (drop > 0.9 * parent[:-1]) & (t[1:] > t[:-1])
        stays &= h[1:].maximum(h[:-1]) > h.amax(0) - 2 * DEPTH / 3
        count = int(stays.sum(0).amax())
        if count == 0:
            break
        # Gaps that only fill up the count are marked as smooth, never to be halved again.
        size, gap = torch.where(stays, drop, -1.0).topk(count, dim=0)
        size = torch.where(size > 0, size, math.inf)
        middle = (t.gather(0, gap) + t.gather(0, gap + 1)) / 2
        parent = torch.cat([parent.scatter(0, gap, size), size])
        t, order = torch.cat([t, middle]).sort(dim=0, stable=True)
        h = torch.cat([h, in_chunks(fn, middle)]).gather(0, order)
        parent = parent.gather(0, order)
    return t, h


@dataclass
class Panels:
    """
    Panels with their integrals by both rules, in logarithms.

    :ivar low: lower edges, shape ``(panels,) + batch_shape``.
    :ivar high: upper edges; equal to the lower where a panel is empty.
    :ivar kronrod: log integrals by Kronrod's rule.
    :ivar gauss: log integrals by Gauss's rule.
    """

    low: Tensor
    high: Tensor
    kronrod: Tensor
    gauss: Tensor

    @classmethod
    def between(cls, fn: LogIntegrand, edges: Tensor) -> Panels:
        """The panels between edges in ascending order, empty ones dropped."""
        low, high = edges[:-1], edges[1:]
        empty = high <= low
        order = empty.to(torch.int8).argsort(dim=0, stable=True)
        most = max(1, int((~empty).sum(0).amax()))
        return cls.of(fn, low.gather(0, order)[:most], high.gather(0, order)[:most])

    @classmethod
    def of(cls, fn: LogIntegrand, low: Tensor, high: Tensor) -> Panels:
        rows = max(1, MAX_VALUES // (15 * max(1, low[0].numel())))
        parts = [cls._integrate(fn, a, b) for a, b in zip(low.split(rows), high.split(rows))]
        return cls(low, high, *(torch.cat(part) for part in zip(*parts)))

    @staticmethod
    def _integrate(fn: LogIntegrand, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        nodes, kronrod, gauss = _rule(low)
        half = (high - low) / 2
        shape = (15, *(1,) * low.dim())
        t = (low + high) / 2 + half * nodes.reshape(shape)
        h = fn(t.flatten(0, 1)).reshape(t.shape) + half.log()
        by_kronrod = torch.logsumexp(h + kronrod.reshape(shape), 0)
        return by_kronrod, torch.logsumexp(h + gauss.reshape(shape), 0)

    def nodes(self) -> tuple[Tensor, Tensor]:
        """Every node and the log of its weight, shape ``(15 * panels,) + batch_shape``."""
        nodes, kronrod, _ = _rule(self.low)
        shape = (15, *(1,) * self.low.dim())
        half = (self.high - self.low) / 2
        t = (self.low + self.high) / 2 + half * nodes.reshape(shape)
        return t.flatten(0, 1), (half.log() + kronrod.reshape(shape)).flatten(0, 1)

    def log_integral(self) -> Tensor:
        return torch.logsumexp(self.kronrod, 0)

    def errors(self) -> Tensor:
        """How far the rules are apart in each panel, relative to the whole integral."""
        whole = self.log_integral()
        return ((self.kronrod - whole).exp() - (self.gauss - whole).exp()).abs()

    def refine(self, fn: LogIntegrand, tolerance: float) -> Panels:
        """Halve the worst panels until the rules agree within the tolerance, or stop improving."""
        panels = self
        totals: list[float] = []
        while True:
            errors = panels.errors()
            total = errors.sum(0)
            totals.append(float(total.amax()))
            stuck = len(totals) > PATIENCE and totals[-1] > totals[-1 - PATIENCE] / 2
            if totals[-1] <= tolerance or stuck or len(panels.low) > MAX_PANELS:
                return panels
            # Rounding leaves some error in every panel; only what stands out is worth halving.
            poor = (errors > errors.amax(0) / 8) & (total > tolerance)
            panels = panels._halve(fn, errors, max(1, min(64, int(poor.sum(0).amax()))))

    def _halve(self, fn: LogIntegrand, errors: Tensor, count: int) -> Panels:
        worst = errors.topk(count, dim=0).indices
        low, high = self.low.gather(0, worst), self.high.gather(0, worst)
        middle = (low + high) / 2
        new = Panels.of(fn, torch.cat([low, middle]), torch.cat([middle, high]))
        parts = []
        for name in ("low", "high", "kronrod", "gauss"):
            fresh = getattr(new, name)
            kept = getattr(self, name).scatter(0, worst, fresh[:count])
            parts.append(torch.cat([kept, fresh[count:]]))
        return Panels(*parts)
