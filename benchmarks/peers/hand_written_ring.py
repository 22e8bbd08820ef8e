# SPDX-License-Identifier: Apache-2.0
"""Bisection, systematic resampling and random-walk sweeps in plain torch: ``... SEEDS``."""

from __future__ import annotations

import math
import sys

import torch
from torch import Tensor

from benchmarks.peers.pyro_tilt_ring import Ring
from benchmarks.peers.timing import PARTICLES, SWEEPS, THRESHOLD, report


def sample(ring: Ring, seed: int) -> float:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(PARTICLES, 2, generator=generator)
    weight, prior = ring.log_ratio(x).double(), ring.log_prior(x).double()
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
            new_weight, new_prior = ring.log_ratio(y).double(), ring.log_prior(y).double()
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


if __name__ == "__main__":
    torch.set_num_threads(1)
    ring = Ring()
    report(lambda seed: sample(ring, seed), int(sys.argv[1]), "torch")
