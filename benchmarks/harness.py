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

NO_TARGET = ("-", "none")


@dataclass(frozen=True)
class Row:
    """One line of the results: what was measured, the figure, and what it is held against."""

    name: str
    measured: str
    target: str
    met: bool


def paired_ratio(
    ours: Callable[[], object],
    theirs: Callable[[], object],
    *,
    rounds: int,
    blocks: tuple[int, int] = (10, 10),
) -> tuple[float, float, float]:
    """Median of the paired ratios of CPU time ours / theirs, and the two median times of a call.

    Each side runs its ``blocks`` times in a row before the other, so that each finds its own caches
    warm, as in a loop of a user's.
    """

    def clock(call: Callable[[], object], block: int) -> float:
        start = time.process_time()
        for _ in range(block):
            call()
        return (time.process_time() - start) / block

    clock(ours, blocks[0]), clock(theirs, blocks[1])
    pairs = [(clock(ours, blocks[0]), clock(theirs, blocks[1])) for _ in range(rounds)]
    ratio = statistics.median(first / second for first, second in pairs)
    return ratio, statistics.median(p[0] for p in pairs), statistics.median(p[1] for p in pairs)


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
    for row in rows:
        met = "-" if row.target in NO_TARGET else "yes" if row.met else "NO"
        cells = (row.name, row.measured, row.target, met)
        lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    return "\n".join(lines)
