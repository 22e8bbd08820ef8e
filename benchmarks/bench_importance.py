# SPDX-License-Identifier: Apache-2.0
"""ImportanceSampler beside pyro.infer.Importance and beside the same work written by hand."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Importance
from torch import Tensor

from benchmarks.harness import Row, paired_ratio
from pyro_tilt import align
from pyro_tilt.infer import ImportanceSampler
from pyro_tilt.ops.importance import log_evidence
from pyro_tilt.ops.psis import pareto_smooth

TITLE = "Importance sampling, a six-site Gaussian chain"
ZERO, ONE, SCALE = torch.tensor(0.0), torch.tensor(1.0), torch.tensor(0.7)
BETA = 0.5


def chain() -> Tensor:
    """Six Gaussian sites, each around half of the one before."""
    x = pyro.sample("x_0", dist.Normal(ZERO, ONE))
    for step in range(1, 6):
        x = pyro.sample(f"x_{step}", dist.Normal(0.5 * x, SCALE))
    return x


def reward(x: Tensor) -> Tensor:
    return torch.sin(x)


def by_hand(count: int) -> dict[str, Tensor]:
    """The same draws, weights, smoothing and evidence in plain torch."""
    x = torch.normal(ZERO.expand(count), ONE.expand(count))
    sites = {"x_0": x}
    for step in range(1, 6):
        x = torch.normal(0.5 * x, SCALE.expand(count))
        sites[f"x_{step}"] = x
    log_weights = BETA * reward(x).double()
    pareto_smooth(log_weights)
    log_evidence(log_weights)
    return sites


def run() -> list[Row]:
    aligned = align(chain, reward, BETA)
    pyros, _, _ = paired_ratio(
        lambda: Importance(aligned, num_samples=1000).run(),
        lambda: ImportanceSampler(aligned, num_samples=1000).run(),
        rounds=5,
    )
    hand, ours_seconds, hand_seconds = paired_ratio(
        lambda: ImportanceSampler(aligned, num_samples=100_000).run(),
        lambda: by_hand(100_000),
        rounds=60,
    )
    return [
        Row(
            "pyro.infer.Importance / ImportanceSampler, time, 1,000 draws",
            f"{pyros:.0f}",
            "at least 300",
            pyros >= 300,
        ),
        Row(
            "ImportanceSampler / hand-written torch, time, 100,000 draws, smoothing included",
            f"{hand:.2f} ({1e3 * ours_seconds:.1f} ms / {1e3 * hand_seconds:.1f} ms)",
            "at most 1.2",
            hand <= 1.2,
        ),
    ]
