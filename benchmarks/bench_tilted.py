# SPDX-License-Identifier: Apache-2.0
"""Tilted(Normal, Linear) beside torch's own Normal."""

from __future__ import annotations

import torch
from pyro.distributions import Normal

from benchmarks.harness import Row, paired_ratio
from pyro_tilt import Tilted, rewards

TITLE = "Tilted(Normal, Linear) at a million values"
COUNT = 1_000_000


def run() -> list[Row]:
    base = Normal(torch.tensor(0.3), torch.tensor(1.2))
    tilted = Tilted(base, rewards.Linear(torch.tensor(1.5)), beta=2.0)
    plain = torch.distributions.Normal(torch.tensor(0.3), torch.tensor(1.2))
    x = plain.sample((COUNT,))
    rows = []
    for name, ours, theirs in (
        ("log_prob", lambda: tilted.log_prob(x), lambda: plain.log_prob(x)),
        ("sample", lambda: tilted.sample((COUNT,)), lambda: plain.sample((COUNT,))),
    ):
        ratio, first, second = paired_ratio(ours, theirs, rounds=15)
        rows.append(
            Row(
                f"Tilted.{name} / torch Normal.{name}, time",
                f"{ratio:.2f} ({1e3 * first:.1f} ms / {1e3 * second:.1f} ms)",
                "at most 1.5",
                ratio <= 1.5,
            )
        )
    return rows
