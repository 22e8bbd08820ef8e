# SPDX-License-Identifier: Apache-2.0
"""Runs every benchmark and writes RESULTS.md beside this file: ``python -m benchmarks``."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import torch

from benchmarks.harness import machine, table

MODULES = ("bench_importance", "bench_pool", "bench_tilted", "bench_memory")
INTRODUCTION = """\
# Benchmark results

Written by `make bench`. Every ratio is the median of paired runs within one process, so that a
busy machine slows both sides alike; single figures move by about 20 %. One torch thread, CPU time.
"""


def main() -> int:
    torch.set_num_threads(1)
    sections = [INTRODUCTION, f"Machine: {machine()}.\n"]
    missed = 0
    for name in MODULES:
        module = importlib.import_module(f"benchmarks.{name}")
        print(f"{module.TITLE} ...", flush=True)
        rows = module.run()
        missed += sum(not row.met for row in rows)
        print(table(rows), flush=True)
        sections.append(f"## {module.TITLE}\n\n{table(rows)}\n")
    Path(__file__).with_name("RESULTS.md").write_text("\n".join(sections))
    return min(missed, 1)


if __name__ == "__main__":
    sys.exit(main())
