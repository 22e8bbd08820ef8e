# SPDX-License-Identifier: Apache-2.0
"""TemperedSMC from N(0, I) to the ring: ``... pyro_tilt_ring SEEDS [f32 | f64] [SWEEPS ESS]``."""

from __future__ import annotations

import math
import sys

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from benchmarks.peers.timing import LOG_Z, PARTICLES, RADIUS, SCALE, SWEEPS, THRESHOLD, report
from pyro_tilt.infer import TemperedSMC

LOG_MODE = math.log(8 * 2 * math.pi * SCALE**2)


class Ring:
    """
    The prior N(0, I) as a program, and the log density of the ring times e^2.5 over it.

    :param dtype: of the particles.
    """

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        angles = torch.arange(8, dtype=dtype) * (math.pi / 4)
        self.centres = RADIUS * torch.stack([angles.cos(), angles.sin()], -1) / SCALE**2
        self.zero, self.one = torch.zeros(2, dtype=dtype), torch.ones(2, dtype=dtype)

    def program(self) -> Tensor:
        return pyro.sample("x", dist.Normal(self.zero, self.one).to_event(1))

    def log_prior(self, x: Tensor) -> Tensor:
        return -0.5 * x.square().sum(-1) - math.log(2 * math.pi)

    def log_ratio(self, x: Tensor) -> Tensor:
        inner = torch.tensordot(self.centres, x, dims=([1], [-1]))
        top = inner.amax(0)
        # The floor keeps exp away from numbers that underflow, which take ten times as long.
        total = (inner - top).clamp_(min=-80.0).exp_().sum(0)
        constant = LOG_Z - LOG_MODE + math.log(2 * math.pi) - 0.5 * (RADIUS / SCALE) ** 2
        return top + total.log_() + (0.5 - 0.5 / SCALE**2) * x.square().sum(-1) + constant


def main(
    seeds: int,
    dtype: torch.dtype = torch.float32,
    sweeps: int = SWEEPS,
    threshold: float = THRESHOLD,
) -> None:
    torch.set_num_threads(1)
    ring = Ring(dtype)

    def sample(seed: int) -> float:
        sampler = TemperedSMC(
            ring.program,
            reward=ring.log_ratio,
            num_particles=PARTICLES,
            moves=sweeps,
            ess_threshold=threshold,
            seed=seed,
            progress=False,
        )
        return float(sampler.run().log_normalizer)

    report(sample, seeds, "torch")


if __name__ == "__main__":
    double = torch.float64 if sys.argv[2:3] == ["f64"] else torch.float32
    settings = {"sweeps": int(sys.argv[3]), "threshold": float(sys.argv[4])} if sys.argv[4:] else {}
    main(int(sys.argv[1]), double, **settings)
