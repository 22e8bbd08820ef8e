# SPDX-License-Identifier: Apache-2.0
"""Tilts along a few features of a model whose normalisers have to be estimated."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_tilt.infer.tilts.convex_family import DrawOptions, ExactFamily, TiltFamily
from pyro_tilt.infer.tilts.normalizers_shared import SharedNormalizers
from pyro_tilt.infer.tilts.protocols import DiffusionModel

__all__ = ["PooledFamily", "make_family"]

# Effective draws of a tilt, as a share of those of one anchor, that make it known or reachable.
_KNOWN, _REACHABLE = 0.3, 0.03
_MAX_ANCHORS = 48


def make_family(
    base: DiffusionModel,
    features: Tensor,
    offset: Tensor | None = None,
    options: DrawOptions | None = None,
) -> TiltFamily:
    """
    The family of a model, exact where the model knows its tilts.

    :param base: the model.
    :param features: shape (k, d).
    :param offset: shape (d,).
    :param options: how to draw.
    """
    kind = ExactFamily if ExactFamily.fits(base) else PooledFamily
    return kind(base, features, offset, options)


class PooledFamily(TiltFamily):
    """
    Draws of a growing set of tilts, pooled by :class:`SharedNormalizers`.

    An anchor is added where a tilt that is asked for has few effective draws, from the known ones
    outwards. To a network, whose inputs must not be shifted far, the draws of a new anchor start
    from the pool, reweighted and resampled, at the level that ``max_z`` allows; the inverse
    effective sample size of each such start is added to the variance of all normalisers.
    """

    exact = False
    slack = 0.1

    def __init__(
        self,
        base: DiffusionModel,
        features: Tensor,
        offset: Tensor | None = None,
        options: DrawOptions | None = None,
    ) -> None:
        super().__init__(base, features, offset, options)
        self.anchors = self.features.new_zeros((1, self.features.shape[-1]))
        self.parts: list[Tensor] = []
        self.shared: SharedNormalizers | None = None
        # Draws that start from the pool repeat its errors, which those of the pool do not show.
        self.start_variance = 0.0

    def log_normalizer(self, v: Tensor) -> tuple[Tensor, Tensor]:
        self.prepare(v)
        values, errors = self.pool.log_normalizer(self.theta(v))
        return values, (errors.square() + self.start_variance).sqrt()

    @property
    def pool(self) -> SharedNormalizers:
        """The pooled draws, those of the base at first."""
        if self.shared is None:
            n = self.options.normalizer_samples
            self.parts = [self._run(self.anchors.expand(n, -1)).double()]
            self._fit()
        assert self.shared is not None
        return self.shared

    def prepare(self, v: Tensor) -> None:
        wanted = self.theta(v)
        while True:
            known = self._known(wanted)
            if float(known.min()) >= _KNOWN:
                return
            if len(self.anchors) >= _MAX_ANCHORS:
                raise ValueError(
                    f"{len(self.anchors)} tilts with {self.options.normalizer_samples} draws each "
                    "do not reach the normalisers that are needed; draw more of each "
                    "(normalizer_samples=), or lower beta"
                )
            self._add(self._next(wanted, known))

    def box(self, v: Tensor, exit_probability: float) -> tuple[Tensor, Tensor]:
        """The range of the pooled draws, widened: an estimate."""
        self.prepare(v)
        seen = self.project(self.pool.draws)
        low, high = seen.amin(0), seen.amax(0)
        return low - self.slack * (high - low), high + self.slack * (high - low)

    def mean(
        self, v: Tensor, weights: Tensor, log_ratio: Callable[[Tensor], Tensor]
    ) -> tuple[float, float]:
        """From the pooled draws, reweighted."""
        values, _ = self.log_normalizer(v)
        pool = self.pool
        mixed = pool.draws @ self.theta(v).T + (weights.log() - values)
        logs = mixed.logsumexp(-1) - pool.log_mixture
        shares = logs.exp()
        ratios = log_ratio(self.project(pool.draws)).exp()
        mean = float((shares * ratios).sum() / shares.sum())
        spread = (shares * (ratios - mean)).square().sum().sqrt() / shares.sum()
        return mean, float(spread)

    def draw(self, v: Tensor, progress: Callable[[int], Any] | None = None) -> Tensor:
        theta = self.theta(v)
        return self._run(theta, progress=progress, **self._start(theta))

    def _start(self, theta: Tensor) -> dict[str, Any]:
        """Where a run of these tilts starts: at the top, or warm."""
        largest = float(theta.norm(dim=-1).max())
        if largest * self.base.schedule.levels[0].ratio <= self.options.max_z:
            return {}
        rows, place = theta.unique(dim=0, return_inverse=True)
        scores = (self.pool.draws @ rows.T - self.pool.log_mixture.unsqueeze(-1)).T.softmax(-1)
        picks = torch.empty(len(theta), dtype=torch.long, device=theta.device)
        for j in range(len(rows)):
            mine = (place == j).nonzero().flatten()
            picks[mine] = torch.multinomial(scores[j], len(mine), True)
        return {
            "warm": self.pool.draws[picks].to(self.base.dtype),
            "schedule": self.base.schedule.starting_at(self.options.max_z / largest),
        }

    def _known(self, theta: Tensor) -> Tensor:
        pool = self.pool
        return pool.effective(theta) * (len(pool.draws) / self.options.normalizer_samples)

    def _next(self, wanted: Tensor, known: Tensor) -> Tensor:
        """The least known tilt within reach, or a point on the way to the best known one."""
        short = known < _KNOWN
        near = short & (known >= _REACHABLE)
        if bool(near.any()):
            return wanted[torch.where(near, known, math.inf).argmin()]
        goal = wanted[torch.where(short, known, -math.inf).argmax()]
        start = self.anchors[(self.anchors - goal).norm(dim=-1).argmin()]
        share = 0.5 ** torch.arange(1, 12).to(goal)
        steps = start + share.unsqueeze(-1) * (goal - start)
        reach = self._known(steps) >= _REACHABLE
        return steps[int(reach.nonzero()[0])] if bool(reach.any()) else steps[-1]

    def _add(self, theta: Tensor) -> None:
        tilts = theta.expand(self.options.normalizer_samples, -1)
        start = self._start(tilts)
        if start:
            share = float(self.pool.effective(theta[None])[0])
            self.start_variance += 1.0 / (share * len(self.pool.draws))
        self.parts.append(self._run(tilts, **start).double())
        self.anchors = torch.cat([self.anchors, theta[None]])
        self._fit()

    def _fit(self) -> None:
        counts = torch.tensor([len(part) for part in self.parts])
        self.shared = SharedNormalizers.fit(self.anchors, torch.cat(self.parts), counts)
