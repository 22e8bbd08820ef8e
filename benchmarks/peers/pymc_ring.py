# SPDX-License-Identifier: Apache-2.0
"""SMC of PyMC, with its automatic settings, from N(0, I) to the ring: ``... pymc_ring SEEDS``."""

from __future__ import annotations

import logging
import math
import sys
import warnings
from typing import Any

import numpy as np
import pymc as pm
import pytensor.tensor as pt

from benchmarks.peers.timing import LOG_Z, PARTICLES, RADIUS, SCALE, report

ANGLES = np.arange(8) * (math.pi / 4)
CENTRES = RADIUS * np.stack([np.cos(ANGLES), np.sin(ANGLES)], -1)
LOG_MODE = math.log(8 * 2 * math.pi * SCALE**2)


def build() -> pm.Model:
    with pm.Model() as model:
        x = pm.Normal("x", 0.0, 1.0, shape=2)
        square = (x**2).sum()
        inner = pt.logsumexp(pt.dot(CENTRES, x) / SCALE**2)
        log_ring = inner - 0.5 * (square + RADIUS**2) / SCALE**2 - LOG_MODE + LOG_Z
        pm.Potential("ratio", log_ring + 0.5 * square + math.log(2 * math.pi))
    return model


def sample(model: pm.Model, seed: int) -> float:
    with model:
        found: Any = pm.sample_smc(
            draws=PARTICLES,
            chains=1,
            cores=1,
            random_seed=seed,
            progressbar=False,
            compute_convergence_checks=False,
        )
    values = np.asarray(found.sample_stats["log_marginal_likelihood"].values[0])
    last = [value for value in np.ravel(values) if value is not None]
    return float(np.ravel(last[-1])[-1])


def main(seeds: int) -> None:
    logging.getLogger("pymc").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    model = build()
    report(lambda seed: sample(model, seed), seeds, "pymc")


if __name__ == "__main__":
    main(int(sys.argv[1]))
