# SPDX-License-Identifier: Apache-2.0
"""SMC over a program beside the loop that a torch user would write, and how its cost grows.

The loop by hand draws and scores with ``torch.distributions``, resamples by the same rule, and
stores what SMC stores: the reindexed state and first state, the first ancestors, the log weights
in float64, and for each step the effective sample size, the evidence, whether it resampled and how
many were chosen. Neither side validates the arguments of distributions while it runs.
"""

from __future__ import annotations

import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Normal

from benchmarks.harness import Row, paired_ratio
from pyro_tilt import scan
from pyro_tilt.infer import SMC

TITLE = "SMC over the steps of a program"
STEPS = 50
DECAY, NOISE, ERROR = torch.tensor(0.9), torch.tensor(0.5), torch.tensor(1.0)
ZERO, ONE = torch.tensor(0.0), torch.tensor(1.0)
DATA = list(torch.randn(STEPS, generator=torch.Generator().manual_seed(0)).unbind())

Draw = Callable[[int], Tensor]
Move = Callable[[Tensor, int], tuple[Tensor, Tensor]]


def scalar() -> Tensor:
    """A Gaussian chain observed with noise."""

    def step(x: Tensor, k: int) -> Tensor:
        x = pyro.sample(f"x_{k}", dist.Normal(DECAY * x, NOISE))
        pyro.sample(f"y_{k}", dist.Normal(x, ERROR), obs=DATA[k])
        return x

    return scan("chain", step, pyro.sample("x", dist.Normal(ZERO, ONE)), range(STEPS))


def draw_scalar(count: int) -> Tensor:
    return Normal(ZERO, ONE).sample((count,))


def move_scalar(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    x = Normal(DECAY * x, NOISE).sample()
    return x, Normal(x, ERROR).log_prob(DATA[k])


def move_formula(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The same in bare formulas, the normalising constant worked out beforehand."""
    x = DECAY * x + NOISE * torch.randn(len(x))
    return x, -0.5 * (DATA[k] - x).square() - LOG_ROOT


LOG_ROOT = 0.5 * math.log(2 * math.pi)
NETWORK = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 64))
DIRECTION = torch.randn(64, generator=torch.Generator().manual_seed(1)) / 64
ORIGIN = torch.zeros(64)


def neural() -> Tensor:
    """A chain in 64 dimensions whose kernel is a network, with a factor at every step."""

    def step(x: Tensor, k: int) -> Tensor:
        x = pyro.sample(f"x_{k}", dist.Normal(NETWORK(x), NOISE).to_event(1))
        pyro.factor(f"f_{k}", x @ DIRECTION)
        return x

    start = pyro.sample("x", dist.Normal(ORIGIN, NOISE).to_event(1))
    return scan("chain", step, start, range(STEPS))


def draw_neural(count: int) -> Tensor:
    return Normal(ORIGIN, NOISE).sample((count,))


def move_neural(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    x = Normal(NETWORK(x), NOISE).sample()
    return x, x @ DIRECTION


class Filtered(NamedTuple):
    """What the loop by hand returns."""

    log_normalizer: float
    log_weights: Tensor
    state: Tensor
    first: Tensor
    ancestor: Tensor
    steps: dict[str, Tensor]


def by_hand(draw: Draw, move: Move, count: int) -> Filtered:
    """Bootstrap filter with systematic resampling below half of the particles."""
    x = first = draw(count)
    ancestor = torch.arange(count)
    fresh = torch.zeros(count, dtype=torch.float64)
    log_weights, log_z = fresh, 0.0
    sizes, evidence, resampled, chosen = [], [], [], []
    for k in range(STEPS):
        x, increment = move(x, k)
        log_weights = log_weights + increment
        top = log_weights.max()
        weights = (log_weights - top).exp()
        total = weights.sum()
        size = float(total.square() / weights.square().sum())
        log_mean = log_z + float(top + total.log()) - math.log(count)
        sizes.append(size)
        evidence.append(log_mean)
        resampled.append(size < 0.5 * count)
        if not resampled[-1]:
            chosen.append(count)
            continue
        uniform = torch.rand((), dtype=torch.float64)
        points = (torch.arange(count, dtype=torch.float64) + uniform) / count
        index = torch.searchsorted((weights / total).cumsum(0), points).clamp(max=count - 1)
        x, first, ancestor = x[index], first[index], ancestor[index]
        chosen.append(int(index.diff().count_nonzero()) + 1)
        log_z, log_weights = log_mean, fresh
    final = log_z + float(log_weights.logsumexp(0)) - math.log(count)
    steps = {
        "ess": torch.tensor(sizes, dtype=torch.float64),
        "log_normalizer": torch.tensor(evidence, dtype=torch.float64),
        "resampled": torch.tensor(resampled),
        "unique_ancestors": torch.tensor(chosen),
    }
    return Filtered(final, log_weights + log_z, x, first, ancestor, steps)


def sampler(program: Callable[[], Tensor], count: int) -> SMC:
    return SMC(program, num_particles=count, check_lineage=False, progress=False)


def ratio(
    program: Callable[[], Tensor], draw: Draw, move: Move, count: int, rounds: int, block: int
) -> tuple[float, str]:
    """CPU time of SMC over that of the loop by hand, and the two in microseconds a step."""
    ours = sampler(program, count)
    with torch.no_grad(), pyro.validation_enabled(False):
        found, first, second = paired_ratio(
            ours.run, lambda: by_hand(draw, move, count), rounds=rounds, blocks=(block, block)
        )
    each = [1e6 * seconds / STEPS for seconds in (first, second)]
    return found, f"{found:.2f} ({each[0]:.0f} / {each[1]:.0f} µs a step)"


BESIDE = (
    ("scalar Gaussian kernel, 1,000 particles", scalar, draw_scalar, move_scalar, 1000, 1.6),
    ("scalar Gaussian kernel, 100,000 particles", scalar, draw_scalar, move_scalar, 100_000, 1.15),
    ("64-256-64 network kernel, 1,000 particles", neural, draw_neural, move_neural, 1000, 1.15),
    (
        "scalar Gaussian kernel, 1,000 particles, bare formulas",
        scalar,
        draw_scalar,
        move_formula,
        1000,
        1.6,
    ),
)


def against_hand() -> list[Row]:
    rows = []
    for name, program, draw, move, count, most in BESIDE:
        rounds, block = (41, 5) if program is scalar and count == 1000 else (9, 1)
        found, text = ratio(program, draw, move, count, rounds, block)
        name = f"SMC / hand-written torch, time, {STEPS} steps, {name}"
        target = "none" if most is None else f"at most {most}"
        rows.append(Row(name, text, target, most is None or found <= most))
    return rows


def chain(steps: int) -> Callable[[], Tensor]:
    """The scalar program at another length."""

    def step(x: Tensor, k: int) -> Tensor:
        x = pyro.sample(f"x_{k}", dist.Normal(DECAY * x, NOISE))
        pyro.sample(f"y_{k}", dist.Normal(x, ERROR), obs=DATA[k % STEPS])
        return x

    return lambda: scan("chain", step, pyro.sample("x", dist.Normal(ZERO, ONE)), range(steps))


def growth(sizes: list[tuple[int, int]], rounds: int) -> tuple[float, list[float]]:
    """Nanoseconds for a particle and step at (particles, steps), and the last over the first."""
    samplers = [sampler(chain(steps), count) for count, steps in sizes]
    found: list[list[float]] = [[] for _ in sizes]
    for warm in samplers:
        warm.run()
    for _ in range(rounds):
        for times, each, (count, steps) in zip(found, samplers, sizes):
            start = time.process_time()
            each.run()
            times.append(1e9 * (time.process_time() - start) / (count * steps))
    ratios = [last / first for first, last in zip(found[0], found[-1])]
    return statistics.median(ratios), [statistics.median(times) for times in found]


def linear() -> list[Row]:
    rows = []
    particles = [(count, 20) for count in (10_000, 100_000, 1_000_000)]
    steps = [(1000, count) for count in (50, 500, 2000)]
    for name, sizes, rounds in (
        ("10,000, 100,000 and 1,000,000 particles, 20 steps", particles, 5),
        ("50, 500 and 2,000 steps, 1,000 particles", steps, 7),
    ):
        found, times = growth(sizes, rounds)
        each = ", ".join(f"{value:.0f}" for value in times)
        rows.append(
            Row(
                f"time of a particle and step, largest / smallest size: {name}",
                f"{found:.2f} ({each} ns)",
                "at most 1.5 (linear cost)",
                found <= 1.5,
            )
        )
    return rows


PATHS = """
import resource
import pyro, torch, pyro.distributions as dist
from pyro_tilt import scan
from pyro_tilt.infer import SMC
torch.set_num_threads(1)
T, N, SCALE, START = 1000, 100_000, torch.tensor(0.5), torch.zeros(8)
def step(x, t):
    x = pyro.sample(f"x_{t}", dist.Normal(0.9 * x, SCALE).to_event(1))
    pyro.factor(f"f_{t}", 0.35 * x[..., 0])
    return x
def program():
    return scan("chain", step, pyro.sample("x", dist.Normal(START, SCALE).to_event(1)), range(T))
result = SMC(
    program,
    num_particles=N,
    seed=0,
    keep_paths=True,
    freeze_schedule=[(t + 1) % 20 == 0 for t in range(T)],
    max_plate_nesting=0,
    check_lineage=False,
    progress=False,
).run()
assert int(result.steps["resampled"].sum()) == T // 20
assert result.paths["x_500"].shape == (N, 8) and result.samples["x_999"].dtype == torch.float32
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
print(peak, result.paths.parts[0].nodes / (N * T))
"""


def memory() -> list[Row]:
    output = subprocess.run([sys.executable, "-c", PATHS], capture_output=True, check=True)
    peak, share = (float(word) for word in output.stdout.split())
    return [
        Row(
            "peak memory of the process, whole paths of 8 float32 values, 100,000 particles, "
            "1,000 steps, resampled every 20",
            f"{peak:.2f} GiB ({100 * share:.0f} % of the nodes live)",
            "under 2 GB",
            peak * 1024**3 < 2e9,
        )
    ]


def run() -> list[Row]:
    return [*against_hand(), *linear(), *memory()]
