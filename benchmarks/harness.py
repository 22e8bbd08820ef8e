# SPDX-License-Identifier: Apache-2.0
"""Timing by ratio: the variants run in turn, so that a busy machine slows all of them alike."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version


@dataclass(frozen=True)
class Row:
    """One line of the results: what was measured, the figure, and what it is held against."""

    name: str
    measured: str
    target: str
    met: bool


def medians(variants: dict[str, Callable[[], object]], *, rounds: int) -> dict[str, float]:
    """Median seconds of each variant over ``rounds`` rounds, after one warm-up round."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for call in variants.values():
        call()
    for _ in range(rounds):
        for name, call in variants.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def paired_ratio(
    ours: Callable[[], object], theirs: Callable[[], object], *, rounds: int
) -> tuple[float, float, float]:
    """Median of the paired time ratios ours / theirs, and the two median times."""
    ratios, first, second = [], [], []
    ours(), theirs()
    for _ in range(rounds):
        start = time.perf_counter()
        ours()
        middle = time.perf_counter()
        theirs()
        end = time.perf_counter()
        ratios.append((middle - start) / (end - middle))
        first.append(middle - start)
        second.append(end - middle)
    return statistics.median(ratios), statistics.median(first), statistics.median(second)


def machine() -> str:
    """One sentence on where the figures were taken."""
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as info:
            model = next(
                line.split(":")[1].strip() for line in info if line.startswith("model name")
            )
    except (OSError, StopIteration):
        model = platform.machine()
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "pyro-ppl", "numpy"))
    return f"{model}, {os.cpu_count()} cores, Python {platform.python_version()}, {packages}"


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table."""
    lines = ["| measured | figure | target | met |", "|---|---|---|---|"]
    lines += [
        f"| {r.name} | {r.measured} | {r.target} | {'yes' if r.met else 'NO'} |" for r in rows
    ]
    return "\n".join(lines)
