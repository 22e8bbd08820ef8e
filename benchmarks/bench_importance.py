# SPDX-License-Identifier: Apache-2.0
"""ImportanceSampler beside pyro.infer.Importance and beside the same work written by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Importance
from torch import Tensor

from benchmarks.harness import Row, paired_ratio
from pyro_tilt import align
from pyro_tilt.diagnostics.arviz_compat import import_arviz
from pyro_tilt.infer import ImportanceSampler
from pyro_tilt.ops.psis import pareto_smooth

TITLE = "Importance sampling, a six-site Gaussian chain"
ZERO, ONE, SCALE = torch.tensor(0.0), torch.tensor(1.0), torch.tensor(0.7)
BETA = 0.5
ARVIZ = import_arviz()


def chain() -> Tensor:
    """Six Gaussian sites, each around half of the one before."""
    x = pyro.sample("x_0", dist.Normal(ZERO, ONE))
    for step in range(1, 6):
        x = pyro.sample(f"x_{step}", dist.Normal(0.5 * x, SCALE))
    return x


def reward(x: Tensor) -> Tensor:
    return torch.sin(x)


def by_hand(count: int, smooth: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """The same draws, weights, smoothing and evidence as a user would write them in torch."""
    x = torch.randn(count)
    sites = {"x_0": x}
    for step in range(1, 6):
        x = 0.5 * x + SCALE * torch.randn(count)
        sites[f"x_{step}"] = x
    values = reward(x)
    if values.isnan().any() or (values == math.inf).any():
        raise ValueError("bad reward")
    log_weights = BETA * values.double()
    evidence = log_weights.logsumexp(0) - math.log(count)
    size = 1.0 / log_weights.softmax(0).square().sum()
    error = (1.0 / size - 1.0 / count).sqrt()
    return {
        **sites,
        "log_weights": log_weights,
        "smoothed": smooth(log_weights),
        "evidence": torch.stack([evidence, error, size]),
    }


def smooth_by_arviz(log_weights: Tensor) -> Tensor:
    smoothed, _ = ARVIZ.psislw(log_weights.numpy())
    return torch.from_numpy(smoothed)


def smooth_by_ours(log_weights: Tensor) -> Tensor:
    return pareto_smooth(log_weights)[0]


def run() -> list[Row]:
    aligned = align(chain, reward, BETA)
    sampler = ImportanceSampler(aligned, num_samples=100_000)
    hand, ours, theirs = paired_ratio(
        sampler.run, lambda: by_hand(100_000, smooth_by_arviz), rounds=20
    )
    helped, _, _ = paired_ratio(sampler.run, lambda: by_hand(100_000, smooth_by_ours), rounds=20)
    pyros, _, _ = paired_ratio(
        lambda: Importance(aligned, num_samples=1000).run(),
        lambda: ImportanceSampler(aligned, num_samples=1000).run(),
        rounds=7,
        blocks=(1, 20),
    )
    return [
        Row(
            "pyro.infer.Importance / ImportanceSampler, time, 1,000 draws",
            f"{pyros:.0f}",
            "at least 300",
            pyros >= 300,
        ),
        Row(
            "ImportanceSampler / hand-written torch with ArviZ's smoothing, time, 100,000 draws",
            f"{hand:.2f} ({1e3 * ours:.1f} ms / {1e3 * theirs:.1f} ms)",
            "at most 1.2",
            hand <= 1.2,
        ),
        Row(
            "ImportanceSampler / hand-written torch that calls our pareto_smooth, the same",
            f"{helped:.2f}",
            "none",
            True,
        ),
    ]
