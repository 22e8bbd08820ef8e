# SPDX-License-Identifier: Apache-2.0
"""TemperedSMC beside the same work written by hand, from N(0, I) to a ring of eight modes."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from benchmarks.harness import Row
from pyro_tilt.infer import TemperedSMC

TITLE = "Tempered SMC, N(0, I) to a ring of eight modes"
PARTICLES, SWEEPS, SEEDS, THRESHOLD = 10_000, 10, 20, 0.5
LOG_Z = 2.5
RADIUS, SCALE = 4.0, 0.4
ANGLES = torch.arange(8) * (math.pi / 4)
CENTRES = RADIUS * torch.stack([ANGLES.cos(), ANGLES.sin()], -1)
LOG_MODE = math.log(8 * 2 * math.pi * SCALE**2)
ZERO, ONE = torch.zeros(2), torch.ones(2)


def program() -> Tensor:
    return pyro.sample("x", dist.Normal(ZERO, ONE).to_event(1))


def log_ratio(x: Tensor) -> Tensor:
    """Log density of the ring, times e^2.5, over that of N(0, I)."""
    inner = torch.logsumexp(x @ CENTRES.T / SCALE**2, -1)
    log_ring = inner - 0.5 * (x.square().sum(-1) + RADIUS**2) / SCALE**2 - LOG_MODE + LOG_Z
    return log_ring - log_prior(x)


def log_prior(x: Tensor) -> Tensor:
    return -0.5 * x.square().sum(-1) - math.log(2 * math.pi)


def ours(seed: int) -> float:
    sampler = TemperedSMC(
        program,
        reward=log_ratio,
        num_particles=PARTICLES,
        moves=SWEEPS,
        ess_threshold=THRESHOLD,
        seed=seed,
        progress=False,
    )
    return float(sampler.run().log_normalizer)


def by_hand(seed: int) -> float:
    """Bisection, systematic resampling and random-walk sweeps in plain torch."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(PARTICLES, 2, generator=generator)
    weight, prior = log_ratio(x).double(), log_prior(x).double()
    beta, log_z = 0.0, 0.0
    while beta < 1.0:
        target = _next(weight, beta)
        increment = (target - beta) * weight
        log_z += float(increment.logsumexp(0)) - math.log(PARTICLES)
        points = (torch.arange(PARTICLES) + torch.rand((), generator=generator)) / PARTICLES
        index = torch.searchsorted(increment.softmax(0).cumsum(0), points.double())
        index = index.clamp(max=PARTICLES - 1)
        x, weight, prior, beta = x[index], weight[index], prior[index], target
        factor = torch.linalg.cholesky(torch.cov(x.T)) * (2.38 / math.sqrt(2.0))
        for _ in range(SWEEPS):
            y = x + torch.randn(PARTICLES, 2, generator=generator) @ factor.T
            new_weight, new_prior = log_ratio(y).double(), log_prior(y).double()
            gain = new_prior - prior + beta * (new_weight - weight)
            uniform = torch.rand(PARTICLES, dtype=torch.float64, generator=generator)
            accept = uniform.log() < gain
            x = torch.where(accept.unsqueeze(-1), y, x)
            weight = torch.where(accept, new_weight, weight)
            prior = torch.where(accept, new_prior, prior)
    return log_z


def _next(weight: Tensor, beta: float) -> float:
    def size(target: float) -> float:
        weights = ((target - beta) * weight).softmax(0)
        return 1.0 / float(weights.square().sum())

    if size(1.0) >= THRESHOLD * PARTICLES:
        return 1.0
    low, high = beta, 1.0
    for _ in range(30):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if size(middle) > THRESHOLD * PARTICLES else (low, middle)
    return low


def measure(samplers: dict[str, Callable[[int], float]]) -> dict[str, tuple[float, list[float]]]:
    """Median seconds and errors of log Z, the samplers in turn on every seed."""
    times: dict[str, list[float]] = {name: [] for name in samplers}
    errors: dict[str, list[float]] = {name: [] for name in samplers}
    for sampler in samplers.values():
        sampler(SEEDS)
    for seed in range(SEEDS):
        for name, sampler in samplers.items():
            start = time.perf_counter()
            errors[name].append(sampler(seed) - LOG_Z)
            times[name].append(time.perf_counter() - start)
    return {name: (statistics.median(times[name]), errors[name]) for name in samplers}


def run() -> list[Row]:
    found = measure({"TemperedSMC": ours, "hand-written torch": by_hand})
    rows = []
    for name, (seconds, errors) in found.items():
        bias = statistics.fmean(errors)
        rmse = math.sqrt(statistics.fmean(error * error for error in errors))
        kept = name != "TemperedSMC"
        rows += [
            Row(
                f"{name}, median time, {PARTICLES:,} particles, {SWEEPS} sweeps",
                f"{seconds:.3f} s",
                "-" if kept else "at most 0.15 s",
                kept or seconds <= 0.15,
            ),
            Row(
                f"{name}, log Z over {SEEDS} seeds",
                f"bias {bias:+.4f}, RMSE {rmse:.4f}",
                "-" if kept else "RMSE at most 0.03",
                kept or rmse <= 0.03,
            ),
        ]
    ratio = found["TemperedSMC"][0] / found["hand-written torch"][0]
    rows.append(Row("TemperedSMC / hand-written torch, time", f"{ratio:.2f}", "-", True))
    return rows
