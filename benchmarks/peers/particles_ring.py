# SPDX-License-Identifier: Apache-2.0
"""Tempered SMC of particles from N(0, I) to the ring: ``... particles_ring SEEDS [SWEEPS ESS]``."""

from __future__ import annotations

import math
import sys
import warnings

import numpy as np

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import particles
    from particles import distributions
    from particles import smc_samplers as ssp

from benchmarks.peers.timing import LOG_Z, PARTICLES, RADIUS, SCALE, SWEEPS, THRESHOLD, report

ANGLES = np.arange(8) * (math.pi / 4)
CENTRES = RADIUS * np.stack([np.cos(ANGLES), np.sin(ANGLES)]) / SCALE**2
LOG_MODE = math.log(8 * 2 * math.pi * SCALE**2)


class Ring(ssp.TemperingBridge):
    def logtarget(self, theta: np.ndarray) -> np.ndarray:
        inner = theta @ CENTRES
        top = inner.max(-1)
        # The floor keeps exp away from numbers that underflow, which are slow.
        total = np.exp(np.maximum(inner - top[:, None], -80.0)).sum(-1)
        square = (theta**2).sum(-1)
        return top + np.log(total) - 0.5 * (square + RADIUS**2) / SCALE**2 - LOG_MODE + LOG_Z


def sample(seed: int, sweeps: int, threshold: float) -> float:
    np.random.seed(seed)
    base = distributions.MvNormal(loc=np.zeros(2), cov=np.eye(2))
    move = ssp.AdaptiveMCMCSequence(mcmc=ssp.ArrayRandomWalk(), len_chain=sweeps + 1)
    bridge = Ring(base_dist=base)
    model = ssp.AdaptiveTempering(
        model=bridge, wastefree=False, len_chain=sweeps + 1, move=move, ESSrmin=threshold
    )
    run = particles.SMC(fk=model, N=PARTICLES)
    run.run()
    return float(run.logLt)


def main(seeds: int, sweeps: int = SWEEPS, threshold: float = THRESHOLD) -> None:
    report(lambda seed: sample(seed, sweeps, threshold), seeds, "particles")


if __name__ == "__main__":
    settings = {"sweeps": int(sys.argv[2]), "threshold": float(sys.argv[3])} if sys.argv[3:] else {}
    main(int(sys.argv[1]), **settings)
