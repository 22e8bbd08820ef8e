# SPDX-License-Identifier: Apache-2.0
"""Peak memory of a million weighted draws of eight floats, in a process of its own."""

from __future__ import annotations

import subprocess
import sys

from benchmarks.harness import Row

TITLE = "Memory"
SCRIPT = """
import resource
import psutil
import pyro_tilt
before = psutil.Process().memory_info().rss
import pyro, torch, pyro.distributions as dist
from pyro_tilt.infer import ImportanceSampler
def program():
    return pyro.sample("x", dist.Normal(torch.zeros(8), torch.ones(8)).to_event(1))
result = ImportanceSampler(
    program, reward=lambda x: x[..., 0], beta=0.5, num_samples=1_000_000, seed=0, progress=False
).run()
assert result.samples["x"].shape == (1_000_000, 8)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print((peak - before) / 1e6)
"""


def run() -> list[Row]:
    output = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True
    )
    megabytes = float(output.stdout)
    return [
        Row(
            "peak memory above `import pyro_tilt`, 1,000,000 weighted draws of 8 floats",
            f"{megabytes:.0f} MB",
            "under 300 MB",
            megabytes < 300,
        )
    ]
