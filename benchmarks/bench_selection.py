# SPDX-License-Identifier: Apache-2.0
"""Every selection rule on one tabular language model: exact laws at n = 1, ..., 128."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from scipy import stats
from torch import Tensor

from benchmarks.harness import Row
from pyro_tilt import rewards
from pyro_tilt.diagnostics import kl
from pyro_tilt.infer import BestOfN, ExpBestOfN, SoftBestOfN, TruncatedRejection
from pyro_tilt.language import TabularLM, laws

TITLE = "Selection on a tabular language model (4 tokens, length 4, beta 4), exact laws"
BETA, THRESHOLD, BLOCK, NS = 4.0, 0.7, 2, (1, 2, 4, 8, 16, 32, 64, 128)
CHECKED, DRAWS = 8, 20_000
LM = TabularLM.random(4, 4, seed=1)
DRAFT = TabularLM.random(4, 4, order=1, seed=2).law()
TABLE = torch.rand(256, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
BASE = LM.law()
TARGET = laws.tilt(BASE, TABLE, BETA)
CUBE = (4,) * 4

Rule = Callable[[int], tuple[Tensor, str]]
"""Maps n to the log law and the sequences that it takes, of the target model unless said."""


def reward(tokens: Tensor) -> Tensor:
    return TABLE[LM.index(tokens)]


def accepted(weights: Tensor, law: Tensor, n: int) -> tuple[float, float]:
    """The chance of a hit in n draws, and how many draws an early exit needs."""
    rate = float((law * weights).sum() / weights[law > 0].max())
    hit = -math.expm1(n * math.log1p(-rate))
    return hit, hit / rate


def exp_best_of_n(n: int) -> tuple[Tensor, str]:
    draws = accepted((BETA * TABLE).exp(), BASE, n)[1]
    return laws.exp_best_of_n(BASE, TABLE, BETA, n).log(), f"{draws:.2f}"


def truncated(n: int) -> tuple[Tensor, str]:
    hit, draws = accepted((BETA * TABLE).exp(), BASE, n)
    return laws.truncated_rejection(BASE, TABLE, BETA, n).log(), f"{draws + 1.0 - hit:.2f}"


def gsi(n: int, *, fallback: str) -> tuple[Tensor, str]:
    options = (DRAFT, BASE, TABLE, BETA, n, THRESHOLD)
    rejected = 1.0 - float(laws.gsi_acceptance(*options))
    return laws.gsi(*options, fallback=fallback).log(), f"{n} draft + {n * rejected:.2f}"


def exact_accept(n: int) -> tuple[Tensor, str]:
    hit, draws = accepted(BASE / DRAFT * (BETA * TABLE).exp(), DRAFT, n)
    law = laws.exact_accept(DRAFT, BASE, TABLE, BETA, n)
    return law.log(), f"{draws:.2f} draft + {n * (1.0 - hit):.2f}"


def by_blocks(n: int, *, soft: bool) -> tuple[Tensor, str]:
    values = LM.soft_values(TABLE, BETA) if soft else LM.mean_values(TABLE)
    choose = partial(laws.soft_best_of_n, beta=1.0) if soft else laws.best_of_n
    logs = BASE.log().reshape(CUBE)
    # Small probabilities of a sequence are products that would underflow.
    law = laws.blockwise(logs, values, BLOCK, partial(choose, n=n, log=True), log=True)
    return law.flatten(), str(n)


RULES: dict[str, Rule] = {
    "best of n": lambda n: (laws.best_of_n(BASE, TABLE, n).log(), str(n)),
    "soft best of n": lambda n: (laws.soft_best_of_n(BASE, TABLE, BETA, n).log(), str(n)),
    "exp best of n": exp_best_of_n,
    "truncated rejection": truncated,
    "best of n, blocks of 2, mean values": partial(by_blocks, soft=False),
    "soft best of n, blocks of 2, soft values": partial(by_blocks, soft=True),
    f"GSI, threshold {THRESHOLD}, published": partial(gsi, fallback="published"),
    f"GSI, threshold {THRESHOLD}, debiased": partial(gsi, fallback="debiased"),
    "exact-accept draft": exact_accept,
}


def describe(log_law: Tensor, draws: str) -> str:
    return (
        f"KL(tilt, law) {float(kl.exact(TARGET.log(), log_law, log=True)):.2e}, "
        f"KL(law, base) {float(kl.exact(log_law, BASE.log(), log=True)):.3f}, "
        f"reward {float((log_law.exp() * TABLE).sum()):.4f}, sequences {draws}"
    )


def simulated() -> Iterator[Row]:
    """Draws of the samplers against the laws of the table."""
    bounded = rewards.Bounded(reward, low=0.0, high=float(TABLE.max()))
    options = {"n": CHECKED, "num_samples": DRAWS, "seed": 0, "progress": False}
    runs = {
        "best of n": BestOfN(LM.program(), reward=bounded, **options),
        "soft best of n": SoftBestOfN(LM.program(), reward=bounded, beta=BETA, **options),
        "exp best of n": ExpBestOfN(LM.program(), reward=bounded, beta=BETA, **options),
        "truncated rejection": TruncatedRejection(
            LM.program(), reward=bounded, beta=BETA, **options
        ),
    }
    for name, sampler in runs.items():
        result = sampler.run()
        log_law, expected = RULES[name](CHECKED)
        law = log_law.exp()
        counts = torch.bincount(LM.index(result.samples["tokens"]), minlength=256).double()
        p_value = stats.chisquare(counts.numpy(), (law / law.sum() * DRAWS).numpy()).pvalue
        used = result.info.get("total_proposals", result.cost.base_draws) / DRAWS
        yield Row(
            f"{name}, n = {CHECKED}, {DRAWS:,} draws against the law",
            f"p = {p_value:.3f}, sequences {used:.2f} (law: {expected})",
            "p above 1e-4",
            p_value > 1e-4,
        )


def run() -> list[Row]:
    rows = [Row("the tilt", describe(TARGET.log(), "-"), "-", True)]
    for name, rule in RULES.items():
        rows += [Row(f"{name}, n = {n}", describe(*rule(n)), "-", True) for n in NS]
    guided = laws.reward_guided(DRAFT, BASE, TABLE, THRESHOLD)
    share = float(DRAFT[TABLE < THRESHOLD].sum())
    rows.append(
        Row(
            f"reward-guided decoding, threshold {THRESHOLD}",
            describe(guided.log(), f"1 draft + {share:.2f}"),
            "-",
            True,
        )
    )
    return rows + list(simulated())
