# SPDX-License-Identifier: Apache-2.0
"""Warm starts: draws near a linear tilt by reweighting the base, along a ladder where needed."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_tilt.infer.tilts.linear_draws import linear_tilt_draws
from pyro_tilt.infer.tilts.protocols import DiffusionModel
from pyro_tilt.ops.importance import as_double, effective_sample_size, log_evidence
from pyro_tilt.ops.resampling import systematic

__all__ = ["WarmStart", "warm_start"]

MAX_RUNGS = 200


class WarmStart(NamedTuple):
    """
    Draws near the tilted law, equally weighted.

    :ivar values: ``(n,)`` + event shape.
    :ivar log_normalizer: estimate of the log normaliser.
    :ivar error: its standard error, as if the draws of a rung were independent.
    :ivar ess: the smallest share of effective draws of a rung.
    :ivar rungs: number of reweightings.
    :ivar rows: rows of the denoiser.
    :ivar ancestors: the base draw that each comes from, ``(n,)``.
    """

    values: Tensor
    log_normalizer: float
    error: float
    ess: float
    rungs: int
    rows: int
    ancestors: Tensor


def warm_start(
    base: DiffusionModel,
    theta: Tensor,
    n: int,
    *,
    max_z: float,
    ess_threshold: float,
    options: dict[str, Any],
) -> WarmStart:
    r"""
    Resamples draws of the base by :math:`e^{\langle\theta, x\rangle}`, in one go or by a ladder.

    At a rung the tilt grows from :math:`\tau\theta` to the largest :math:`\tau'\theta` at which the
    effective share of the draws is at least ``ess_threshold``; the resampled draws are noised to
    the level with :math:`z = (s/a)\tau'|\theta|` = ``max_z`` and run down from there.

    :param base: the model.
    :param theta: the tilt, of the event shape.
    :param n: number of draws.
    :param max_z: the cap on z.
    :param ess_threshold: in (0, 1).
    :param options: of :func:`linear_tilt_draws`.
    :raises ValueError: if the ladder has no end.
    """
    schedule, size = base.schedule, float(theta.double().norm())
    calls = base.evaluations(options["sampler"], len(schedule.levels) - 1)
    values = linear_tilt_draws(base, torch.zeros_like(theta), n, **options)
    ancestors = torch.arange(n, device=values.device)
    reached, log_z, variance, least, rows = 0.0, 0.0, 0.0, 1.0, n * calls
    for rung in range(1, MAX_RUNGS + 1):
        rewards = as_double((values * theta).flatten(1).sum(-1))
        gain = _gain(rewards, 1.0 - reached, ess_threshold)
        value, error = log_evidence(gain * rewards)
        log_z, variance = log_z + float(value), variance + float(error) ** 2
        least = min(least, float(effective_sample_size(gain * rewards)) / n)
        # In random order, so that blocks of draws do not share their ancestors more than others.
        index = systematic(gain * rewards, n)[torch.randperm(n, device=rewards.device)]
        values, ancestors, reached = values[index], ancestors[index], reached + gain
        if reached >= 1.0 - 1e-9:
            return WarmStart(values, log_z, math.sqrt(variance), least, rung, rows, ancestors)
        lower = schedule.starting_at(min(schedule.levels[0].ratio, max_z / (reached * size)))
        values = linear_tilt_draws(base, reached * theta, n, schedule=lower, warm=values, **options)
        rows += n * base.evaluations(options["sampler"], len(lower.levels) - 1)
    raise ValueError(
        f"after {MAX_RUNGS} rungs the ladder has reached {reached:.3g} of the tilt: theta is too "
        f"large for {n} draws at ess_threshold={ess_threshold}; draw more or lower the threshold"
    )


def _gain(rewards: Tensor, left: float, threshold: float) -> float:
    """The largest step of the ladder that keeps the effective share, at most ``left``."""
    n = len(rewards)

    def share(step: float) -> float:
        return float(effective_sample_size(step * rewards)) / n

    if share(left) >= threshold:
        return left
    low, high = 0.0, left
    for _ in range(40):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if share(middle) >= threshold else (low, middle)
    return low
