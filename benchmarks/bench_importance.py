# SPDX-License-Identifier: Apache-2.0
"""ImportanceSampler beside pyro.infer.Importance and beside the same work written by hand."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
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
PROCESSES = 21
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
    with np.errstate(over="ignore"):
        smoothed, _ = ARVIZ.psislw(log_weights.numpy())
    return torch.from_numpy(smoothed)


def smooth_by_ours(log_weights: Tensor) -> Tensor:
    return pareto_smooth(log_weights)[0]


def smooth_by_torch(log_weights: Tensor) -> Tensor:
    """Pareto smoothing of one row of many weights, after Zhang and Stephens (2009)."""
    count = len(log_weights)
    length = math.ceil(min(count / 5, 3 * math.sqrt(count)))
    top, index = log_weights.topk(length + 1)
    peak, cutoff = top[0], (top[-1] - top[0]).exp()
    excess = (top[:-1] - peak).exp().flip(0) - cutoff
    grid = 30 + math.isqrt(length)
    steps = torch.arange(1, grid + 1, dtype=torch.float64)
    b = (1 - (grid / (steps - 0.5)).sqrt()) / (3 * excess[int(length / 4 + 0.5) - 1])
    b = b + 1 / excess[-1]
    k = torch.log1p(-b[:, None] * excess).mean(1)
    b = ((length * ((-b / k).log() - k - 1)).softmax(0) * b).sum()
    k = torch.log1p(-b * excess).mean()
    sigma, k = -k / b, (length * k + 5) / (length + 10)
    points = (torch.arange(length, dtype=torch.float64) + 0.5) / length
    quantiles = sigma * torch.expm1(-k * torch.log1p(-points)) / k + cutoff
    smoothed = log_weights.clone()
    smoothed[index[:-1]] = (quantiles.log() + peak).clamp(max=peak).flip(0)
    return smoothed


SMOOTH = (smooth_by_torch, smooth_by_ours, smooth_by_arviz)


def against_hand() -> tuple[float, ...]:
    """Time of the sampler over that of each hand-written version, in this process."""
    torch.set_num_threads(1)
    sampler = ImportanceSampler(align(chain, reward, BETA), num_samples=100_000)
    log_weights = sampler.run().log_weights
    # Tied weights of the tail may swap places.
    hand, ours = (smooth(log_weights).sort().values for smooth in SMOOTH[:2])
    torch.testing.assert_close(hand, ours)
    return tuple(
        paired_ratio(sampler.run, lambda: by_hand(100_000, smooth), rounds=15)[0]  # noqa: B023
        for smooth in SMOOTH
    )


def spread(ratios: Sequence[float]) -> tuple[float, str]:
    middle = statistics.median(ratios)
    return middle, f"{middle:.2f} ({min(ratios):.2f} to {max(ratios):.2f} over {len(ratios)})"


def run() -> list[Row]:
    # How often the allocator gives memory back differs between processes and moves both sides.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        ratios = [pool.submit(against_hand).result() for _ in range(PROCESSES)]
    (hand, hand_text), (shared, shared_text), (_, arviz_text) = map(spread, zip(*ratios))
    aligned = align(chain, reward, BETA)
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
            "ImportanceSampler / hand-written torch, time, 100,000 draws, smoothing included, "
            "median over processes",
            hand_text,
            "at most 1.2",
            hand <= 1.2,
        ),
        Row(
            "the same, with our pareto_smooth in place of hand-written smoothing",
            shared_text,
            "at most 1.2",
            shared <= 1.2,
        ),
        Row(
            "for comparison: the same with ArviZ's smoothing on the hand-written side",
            arviz_text,
            "none",
            True,
        ),
    ]
