# SPDX-License-Identifier: Apache-2.0
"""TemperedSMC from N(0, I) to a ring of eight modes, beside hand-written torch and its peers.

Every sampler runs in a process of its own, one after the other, one seed after the other. It is
judged by its mean time times its mean squared error of log Z, in which the number of particles
cancels; the interval is that of a bootstrap over seeds. Peers that are not installed say so.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass

import numpy as np

from benchmarks.harness import Row
from benchmarks.peers.timing import PARTICLES, SWEEPS, THRESHOLD

TITLE = "Tempered SMC, N(0, I) to a ring of eight modes"
SEEDS = int(os.environ.get("PYRO_TILT_BENCH_SEEDS", "200"))
CLOSE = ("2", "0.9")
OURS, TUNED = "TemperedSMC", "TemperedSMC, 2 sweeps at ESS 0.9"
EQUAL = f"{SWEEPS} sweeps at ESS {THRESHOLD}"


@dataclass(frozen=True)
class Contender:
    """A sampler with its settings: the module under ``peers``, its arguments, its seeds."""

    name: str
    module: str
    options: tuple[str, ...] = ()
    seeds: int = SEEDS


CONTENDERS = (
    Contender(f"{OURS}, {EQUAL}", "pyro_tilt_ring"),
    Contender(TUNED, "pyro_tilt_ring", ("f32", *CLOSE)),
    Contender(f"{TUNED}, float64", "pyro_tilt_ring", ("f64", *CLOSE)),
    Contender(f"hand-written torch, {EQUAL}", "hand_written_ring"),
    Contender(f"blackjax, {EQUAL}", "blackjax_ring", ("f32",)),
    Contender("blackjax, 2 sweeps at ESS 0.9", "blackjax_ring", ("f32", *CLOSE)),
    Contender(f"blackjax, {EQUAL}, float64", "blackjax_ring", ("f64",)),
    Contender(f"particles, {EQUAL}, float64", "particles_ring"),
    Contender("PyMC, its own settings, float64", "pymc_ring", (), max(2, SEEDS // 5)),
)


@dataclass(frozen=True)
class Score:
    """Seconds and errors of every seed, in wall and CPU time."""

    wall: np.ndarray
    cpu: np.ndarray
    error: np.ndarray
    first: float

    def product(self, seconds: np.ndarray) -> tuple[float, float, float]:
        """Mean time times mean squared error, and its 95 % bootstrap interval over seeds."""
        pick = np.random.default_rng(0).integers(len(self.error), size=(4000, len(self.error)))
        square = self.error**2
        spread = seconds[pick].mean(1) * square[pick].mean(1)
        low, high = np.quantile(spread, [0.025, 0.975])
        return float(seconds.mean() * square.mean()), float(low), float(high)


def compete(contender: Contender) -> Score | str:
    """Runs a contender in a fresh process; in place of a score, why there is none."""
    command = [sys.executable, "-m", f"benchmarks.peers.{contender.module}", str(contender.seeds)]
    done = subprocess.run([*command, *contender.options], capture_output=True, text=True)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        missing = last[0].startswith(("ModuleNotFoundError", "ImportError"))
        return "not installed" if missing else f"failed: {last[0][:80]}"
    found = json.loads(done.stdout.splitlines()[-1])
    arrays = (np.array(found[name]) for name in ("wall", "cpu", "error"))
    return Score(*arrays, first=found["first"])


def run() -> list[Row]:
    scores = {each.name: compete(each) for each in CONTENDERS}
    rows = [_row(each, scores[each.name]) for each in CONTENDERS]
    for clock in ("wall", "cpu"):
        rows.append(_comparison(scores, clock))
    return rows


def _row(contender: Contender, score: Score | str) -> Row:
    name = f"{contender.name}, {PARTICLES:,} particles, {contender.seeds} seeds"
    if isinstance(score, str):
        return Row(name, score, "-", score == "not installed")
    wall, cpu = score.product(score.wall), score.product(score.cpu)
    measured = (
        f"{score.wall.mean():.3f} s wall, {score.cpu.mean():.3f} s CPU (first call "
        f"{score.first:.1f} s); bias {score.error.mean():+.4f}, "
        f"RMSE {np.sqrt((score.error**2).mean()):.4f}; wall x MSE {wall[0]:.2e} "
        f"[{wall[1]:.2e}, {wall[2]:.2e}], CPU x MSE {cpu[0]:.2e}"
    )
    if not contender.name.startswith(f"{OURS}, {EQUAL}"):
        return Row(name, measured, "-", True)
    met = score.cpu.mean() <= 0.15 and float(np.sqrt((score.error**2).mean())) <= 0.03
    return Row(name, measured, "at most 0.15 s CPU, RMSE at most 0.03", met)


def _comparison(scores: dict[str, Score | str], clock: str) -> Row:
    products = {
        name: score.product(getattr(score, clock))[0]
        for name, score in scores.items()
        if isinstance(score, Score)
    }
    ours = min(value for name, value in products.items() if name.startswith(OURS))
    theirs = {
        name: value
        for name, value in products.items()
        if not name.startswith((OURS, "hand-written"))
    }
    title = f"best of TemperedSMC / best peer, {clock} x MSE"
    if not theirs:
        return Row(title, "no peer installed", "below 1", True)
    best = min(theirs, key=lambda name: theirs[name])
    ratio = ours / theirs[best]
    return Row(title, f"{ratio:.2f} (the best peer: {best})", "below 1", ratio < 1.0)
