# SPDX-License-Identifier: Apache-2.0
import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_tilt import diffusion, scan

F64 = torch.float64


@pytest.fixture
def mixture():
    """Three unequal components in the plane, no two alike."""
    locs = torch.tensor([[-2.0, 0.3], [1.5, 1.0], [0.8, -2.0]], dtype=F64)
    scales = torch.tensor([[0.6, 0.5], [0.4, 0.7], [0.5, 0.3]], dtype=F64)
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=F64)
    return dist.MixtureSameFamily(dist.Categorical(weights), dist.Normal(locs, scales).to_event(1))


@pytest.fixture
def model(mixture):
    return diffusion.MixtureDiffusion(mixture, diffusion.VP.linear(40))


@pytest.fixture
def network():
    """A diffusion of which no prediction is known to be exact."""
    return diffusion.NetworkDiffusion(
        lambda x, t: 0.3 * x, diffusion.VP.linear(20), (2,), prediction="epsilon", dtype=F64
    )


@pytest.fixture
def program():
    def two_sites():
        z = pyro.sample("z", dist.Normal(torch.tensor(0.3, dtype=F64), 1.0))
        return pyro.sample("x", dist.Normal(z, 0.5))

    return two_sites


@pytest.fixture
def walk():
    """A program with steps whose sites are continuous."""

    def step(x, t):
        return pyro.sample(f"x_{t}", dist.Normal(0.9 * x + 0.1, 0.5))

    return lambda: scan("walk", step, torch.tensor(0.2, dtype=F64), range(3))


@pytest.fixture
def cube():
    """Signs of four numbers, uniform, and the numbers."""
    numbers = torch.tensor([3.0, 1.0, 2.0, 2.0], dtype=F64)

    def signs():
        bits = pyro.sample("bits", dist.Bernoulli(torch.full((4,), 0.5, dtype=F64)).to_event(1))
        return pyro.deterministic("signs", 2.0 * bits - 1.0, event_dim=1)

    return signs, numbers
