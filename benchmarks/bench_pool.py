# SPDX-License-Identifier: Apache-2.0
"""Pooled proposals beside Pyro's Rejector: how many draws are thrown away unused."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import Rejector
from torch import Tensor

from benchmarks.harness import Row
from pyro_tilt import rewards
from pyro_tilt.infer import Rejection

TITLE = "Pooled proposals, 100,000 draws"
COUNT = 100_000


class Counting(dist.Uniform):
    """A uniform law that counts the values it draws."""

    drawn = 0

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        values = super().rsample(sample_shape)
        type(self).drawn += values.numel()
        return values


def rejector_waste(rate: float, count: int) -> float:
    """Share of Pyro's proposals beyond the ``count / rate`` that rejection needs."""
    Counting.drawn = 0
    law = Rejector(
        Counting(torch.tensor(0.0), torch.tensor(1.0)),
        lambda u: torch.where(u < rate, 0.0, -math.inf),
        torch.tensor(math.log(rate)),
    )
    law.expand((count,)).sample()
    return 1.0 - count / rate / Counting.drawn


def pooled_waste(rate: float) -> float:
    def program() -> Tensor:
        return pyro.sample("u", dist.Uniform(torch.tensor(0.0), torch.tensor(1.0)))

    reward = rewards.Constraint(lambda u: u < rate)
    result = Rejection(
        program, reward=reward, num_samples=COUNT, max_batch=2**20, seed=0, progress=False
    ).run()
    return result.info["wasted"] / result.cost.base_draws


def run() -> list[Row]:
    pyro.set_rng_seed(0)
    rows = []
    for rate in (0.1, 0.01, 0.001):
        share = pooled_waste(rate)
        rows.append(
            Row(
                f"proposals wasted of all, acceptance {rate:g}",
                f"{100 * share:.2f} %",
                "at most 2 %",
                share <= 0.02,
            )
        )
    waste = rejector_waste(0.1, 1000)
    rows.append(
        Row(
            "for comparison: pyro Rejector, 1,000 draws, acceptance 0.1",
            f"{100 * waste:.0f} %",
            "none",
            True,
        )
    )
    return rows
