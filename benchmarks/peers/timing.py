# SPDX-License-Identifier: Apache-2.0
"""Runs a sampler seed after seed and prints what it took, for a parent process to read."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from importlib.metadata import version

LOG_Z = 2.5
PARTICLES, SWEEPS, THRESHOLD = 10_000, 10, 0.5
RADIUS, SCALE = 4.0, 0.4


def report(sampler: Callable[[int], float], seeds: int, package: str) -> None:
    """
    Prints one line of JSON: the first call, then wall time, CPU time and error of every seed.

    The first call, with a seed that is not counted, pays for compilation and lazy imports.
    """
    start = time.perf_counter()
    sampler(seeds)
    first = time.perf_counter() - start
    wall, cpu, error = [], [], []
    for seed in range(seeds):
        started, used = time.perf_counter(), time.process_time()
        estimate = sampler(seed)
        wall.append(time.perf_counter() - started)
        cpu.append(time.process_time() - used)
        error.append(estimate - LOG_Z)
    found = {"version": version(package), "first": first, "wall": wall, "cpu": cpu, "error": error}
    print(json.dumps(found))
