# SPDX-License-Identifier: Apache-2.0
"""Runs benchmarks and writes RESULTS.md beside this file: ``python -m benchmarks [NAME ...]``.

Without names every benchmark runs. With names (``importance``, ``smc``, ...) those run, and the
sections of the others stay as they were. Each runs in a process of its own.
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

MODULES = (
    "bench_importance",
    "bench_pool",
    "bench_tilted",
    "bench_memory",
    "bench_smc",
    "bench_tempered",
    "bench_lcb",
    "bench_digits",
    "bench_diffusion",
    "bench_ink",
    "bench_convex",
    "bench_transport",
    "bench_landscape",
    "bench_selection",
    "bench_language",
    "bench_molecules",
    "bench_constrained_peers",
)
RESULTS = Path(__file__).with_name("RESULTS.md")
HERE = "--here"
INTRODUCTION = """\
# Benchmark results

Written by `make bench`, each section by a process of its own. Every ratio is the median of paired
runs within that process, so that a busy machine slows both sides alike; single figures move by
about 20 %. One torch thread, CPU time.
"""


def run_here(name: str) -> None:
    """Runs one benchmark in this process and prints its rows as JSON."""
    torch.set_num_threads(1)
    module = importlib.import_module(f"benchmarks.{name}")
    rows = [asdict(row) | {"met": bool(row.met)} for row in module.run()]
    print(json.dumps({"title": module.TITLE, "rows": rows}))


def run_apart(name: str) -> tuple[str, list[Row]]:
    """Runs one benchmark in a fresh process, whose memory no other has shaped."""
    command = [sys.executable, "-m", "benchmarks", HERE, name]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    found = json.loads(output.splitlines()[-1])
    return found["title"], [Row(**row) for row in found["rows"]]


def sections() -> dict[str, str]:
    """The sections of RESULTS.md by title."""
    if not RESULTS.exists():
        return {}
    parts = RESULTS.read_text().split("\n## ")[1:]
    return {title: body.strip() for title, _, body in (part.partition("\n") for part in parts)}


def write(found: dict[str, str]) -> None:
    """Writes RESULTS.md."""
    parts = [INTRODUCTION, f"Machine: {machine()}.\n"]
    parts += [f"## {title}\n\n{body}\n" for title, body in found.items()]
    RESULTS.write_text("\n".join(parts))


def main(arguments: list[str]) -> int:
    if arguments[:1] == [HERE]:
        run_here(arguments[1])
        return 0
    arguments = [name if name.startswith("bench_") else f"bench_{name}" for name in arguments]
    unknown = sorted(set(arguments) - set(MODULES))
    if unknown:
        known = ", ".join(name.removeprefix("bench_") for name in MODULES)
        raise SystemExit(f"no benchmarks {', '.join(unknown)}; there are {known}")
    if not arguments:
        write({})
    missed = 0
    for name in arguments or MODULES:
        print(f"{name} ...", flush=True)
        title, rows = run_apart(name)
        missed += sum(not row.met for row in rows)
        print(table(rows), flush=True)
        write(sections() | {title: table(rows)})
    return min(missed, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
