# SPDX-License-Identifier: Apache-2.0
"""Figures are closed, and a short chain with known lineages."""

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_tilt import scan
from pyro_tilt.infer import SMC


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def _chain(num_particles=60, *, steps=12, **options):
    """A random walk that is observed at every step."""
    data = torch.linspace(0.0, 2.0, steps)

    def step(carry, y):
        x, t = carry
        x = pyro.sample(f"x_{t}", dist.Normal(0.9 * x, 0.7))
        pyro.sample(f"y_{t}", dist.Normal(x, 0.4), obs=y)
        return x, t + 1

    def program():
        return scan("chain", step, (torch.tensor(0.0), 0), data)[0]

    settings = {"keep_paths": True, "check_lineage": False, "seed": 0} | options
    return SMC(program, num_particles=num_particles, **settings).run()


@pytest.fixture
def chain():
    return _chain
