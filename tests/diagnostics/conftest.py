# SPDX-License-Identifier: Apache-2.0
"""Small results, made by hand."""

import math

import pytest
import torch

from pyro_tilt.infer import BaseDraws, Certificate, Cost, WeightedSamples
from pyro_tilt.ops.psis import pareto_smooth

CONSISTENT = Certificate(
    target="joint tilt", law="consistent", budget="num_samples", covers="nothing", excludes="much"
)


def _weighted(num=1000, *, chains=1, beta=1.0, scale=1.0, shift=0.5, below=-math.inf, **fields):
    """Normal draws x with reward ``scale * x + shift``, -inf where x lies under ``below``."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(num * chains, generator=generator, dtype=torch.float64)
    y = torch.randn(num * chains, 2, 3, generator=generator)
    reward = (scale * x + shift).masked_fill(x < below, -math.inf)
    log_weights = beta * reward if beta else torch.zeros_like(reward)
    smoothed, k = pareto_smooth(log_weights)
    return WeightedSamples(
        **{
            "kind": "weighted",
            "samples": {"x": x, "y": y},
            "log_weights": log_weights,
            "psis_log_weights": smoothed,
            "pareto_k": float(k),
            "stats": {"reward": reward},
            "beta": beta,
            "base": BaseDraws(reward=reward, log_factors=torch.zeros_like(reward)),
            "chain_sizes": (num,) * chains,
            "certificate": CONSISTENT,
            "cost": Cost(base_draws=num * chains, reward_calls=num * chains, seconds=0.25),
            "sampler": "ImportanceSampler",
            **fields,
        }
    )


def _clipped(num=1000, *, chains=1, baseline=1.0, capped=0, **fields):
    """Draws as rejection under a baseline would give them, out of 5000 normal base draws."""
    generator = torch.Generator().manual_seed(11)
    x = torch.randn(5000, generator=generator, dtype=torch.float64)
    weights = x.exp()
    accept = (x - baseline).clamp(max=0.0).exp()
    picks = torch.multinomial(accept, num * chains, replacement=True, generator=generator)
    clipped = float((weights - math.exp(baseline)).clamp(min=0.0).sum() / weights.sum())
    log_z = weights.mean().log()
    hit = torch.zeros(num * chains, dtype=torch.bool)
    hit[:capped] = True
    return WeightedSamples(
        **{
            "kind": "iid",
            "samples": {"x": x[picks]},
            "log_weights": log_z.expand(num * chains).clone(),
            "log_normalizer": log_z,
            "log_normalizer_error": torch.tensor(0.02, dtype=torch.float64),
            "chain_log_normalizers": log_z + torch.linspace(-0.01, 0.01, chains).double(),
            "chain_sizes": (num,) * chains,
            "stats": {
                "reward": x[picks],
                "proposals": torch.ones(num * chains, dtype=torch.long),
                "capped": hit,
            },
            "info": {
                "acceptance_rate": float(accept.mean()),
                "baseline": baseline,
                "clipped_mass": clipped,
                "clipped_mass_upper": 1.5 * clipped,
                "total_proposals": 4321.0,
            },
            "base": BaseDraws(reward=x, log_factors=torch.zeros_like(x)),
            "beta": 1.0,
            "certificate": Certificate(
                target="joint tilt",
                law="bounded",
                total_variation=0.3,
                confidence=0.95,
                covers="clipping",
                excludes="nothing",
            ),
            "cost": Cost(base_draws=4321, reward_calls=4321, network_rows=99, seconds=1.5),
            "sampler": "LCB",
            **fields,
        }
    )


def _stepped(num=500, *, chains=2, steps=12):
    """Weighted draws of a sampler with steps."""
    result = _weighted(num, chains=chains, scale=0.3)
    generator = torch.Generator().manual_seed(3)
    ess = num * (0.2 + 0.8 * torch.rand(chains, steps, generator=generator))
    running = torch.rand(chains, steps, generator=generator, dtype=torch.float64).cumsum(1)
    table = {"ess": ess, "resampled": ess < 0.5 * num, "log_normalizer": running}
    return _weighted(
        num,
        chains=chains,
        scale=0.3,
        steps={name: rows if chains > 1 else rows[0] for name, rows in table.items()},
        chain_log_normalizers=running[:, -1],
        log_normalizer=running[:, -1].mean(),
        log_normalizer_error=torch.tensor(0.1, dtype=torch.float64),
        base=None,
        sampler="SMC",
        samples=result.samples,
    )


@pytest.fixture
def weighted():
    return _weighted


@pytest.fixture
def clipped():
    return _clipped


@pytest.fixture
def stepped():
    return _stepped
