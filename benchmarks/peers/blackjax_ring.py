# SPDX-License-Identifier: Apache-2.0
"""blackjax from N(0, I) to the ring: ``... blackjax_ring SEEDS [f32 | f64] [SWEEPS ESS]``."""

from __future__ import annotations

import math
import sys
from typing import Any

import blackjax
import jax
import jax.numpy as jnp
from blackjax.smc import resampling

from benchmarks.peers.timing import LOG_Z, PARTICLES, RADIUS, SCALE, SWEEPS, THRESHOLD, report

LOG_MODE = math.log(8 * 2 * math.pi * SCALE**2)


def log_prior(x: Any) -> Any:
    return -0.5 * (x**2).sum() - math.log(2 * math.pi)


def log_ratio(x: Any) -> Any:
    angles = jnp.arange(8) * (math.pi / 4)
    centres = RADIUS * jnp.stack([jnp.cos(angles), jnp.sin(angles)], -1)
    inner = jax.scipy.special.logsumexp(centres @ x / SCALE**2)
    log_ring = inner - 0.5 * ((x**2).sum() + RADIUS**2) / SCALE**2 - LOG_MODE + LOG_Z
    return log_ring - log_prior(x)


def random_walk(key: Any, state: Any, log_density: Any, cov_factor: Any) -> Any:
    """One random-walk step with the population's covariance."""
    kernel = blackjax.additive_step_random_walk.build_kernel()

    def step(key: Any, position: Any) -> Any:
        return cov_factor @ jax.random.normal(key, position.shape, position.dtype)

    return kernel(key, state, log_density, step)


def program(sweeps: int, threshold: float) -> Any:
    """The whole run as one compiled function of a key."""
    kernel = blackjax.adaptive_tempered_smc.build_kernel(
        log_prior,
        log_ratio,
        random_walk,
        blackjax.additive_step_random_walk.init,
        resampling.systematic,
        threshold,
    )

    @jax.jit
    def run(key: Any) -> Any:
        key, draw = jax.random.split(key)
        start = blackjax.smc.tempered.init(jax.random.normal(draw, (PARTICLES, 2)))

        def unfinished(carry: Any) -> Any:
            return carry[1].tempering_param < 1.0

        def stage(carry: Any) -> Any:
            key, state, log_z, count = carry
            key, used = jax.random.split(key)
            factor = jnp.linalg.cholesky(jnp.cov(state.particles.T, aweights=state.weights))
            factor = factor * (2.38 / math.sqrt(2.0))
            state, info = kernel(used, state, sweeps, {"cov_factor": factor[None]})
            return key, state, log_z + info.log_likelihood_increment, count + 1

        return jax.lax.while_loop(unfinished, stage, (key, start, jnp.zeros(()), 0))[2:]

    return run


def main(seeds: int, *, double: bool, sweeps: int = SWEEPS, threshold: float = THRESHOLD) -> None:
    jax.config.update("jax_enable_x64", double)
    run = program(sweeps, threshold)
    report(lambda seed: float(run(jax.random.key(seed))[0]), seeds, "blackjax")


if __name__ == "__main__":
    settings = {"sweeps": int(sys.argv[3]), "threshold": float(sys.argv[4])} if sys.argv[4:] else {}
    main(int(sys.argv[1]), double=sys.argv[2:3] == ["f64"], **settings)
