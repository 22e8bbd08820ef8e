# SPDX-License-Identifier: Apache-2.0
"""Runs every benchmark and writes RESULTS.md beside this file: ``python -m benchmarks``.

``python -m benchmarks NAME`` runs one in this process and prints its rows as JSON.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.harness import Row, machine, table

MODULES = ("bench_importance", "bench_pool", "bench_tilted", "bench_memory", "bench_tempered")
INTRODUCTION = """\
# Benchmark results

Written by `make bench`, each section by a process of its own. Every ratio is the median of paired
runs within that process, so that a busy machine slows both sides alike; single figures move by
about 20 %. One torch thread, CPU time.
"""


def run_one(name: str) -> None:
    """Runs one benchmark here and prints its rows as JSON."""
    torch.set_num_threads(1)
    module = importlib.import_module(f"benchmarks.{name}")
    print(json.dumps({"title": module.TITLE, "rows": [asdict(row) for row in module.run()]}))


def run_apart(name: str) -> tuple[str, list[Row]]:
    """Runs one benchmark in a fresh process, whose memory no other has shaped."""
    command = [sys.executable, "-m", "benchmarks", name]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    found = json.loads(output.splitlines()[-1])
    return found["title"], [Row(**row) for row in found["rows"]]


def main() -> int:
    if len(sys.argv) > 1:
        run_one(sys.argv[1])
        return 0
    sections = [INTRODUCTION, f"Machine: {machine()}.\n"]
    missed = 0
    for name in MODULES:
        print(f"{name} ...", flush=True)
        title, rows = run_apart(name)
        missed += sum(not row.met for row in rows)
        print(table(rows), flush=True)
        sections.append(f"## {title}\n\n{table(rows)}\n")
    Path(__file__).with_name("RESULTS.md").write_text("\n".join(sections))
    return min(missed, 1)


if __name__ == "__main__":
    sys.exit(main())
