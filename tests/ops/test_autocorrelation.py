# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch
from pyro.ops.stats import effective_sample_size

from pyro_tilt.ops.autocorrelation import chain_effective_sample_size


def autoregression(rho, shape, seed=0):
    """Stationary AR(1) chains along the second dimension."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(shape, generator=generator, dtype=torch.float64)
    values = [noise[:, 0]]
    for step in range(1, shape[1]):
        values.append(rho * values[-1] + math.sqrt(1 - rho**2) * noise[:, step])
    return torch.stack(values, 1)


@pytest.mark.parametrize("rho", [0.0, 0.9, -0.5])
@pytest.mark.parametrize("shape", [(1, 101, 3), (3, 200, 2, 2), (4, 50)])
def test_agrees_with_pyro(rho, shape):
    values = autoregression(rho, shape)
    draws = shape[0] * shape[1]
    ours = chain_effective_sample_size(values)
    theirs = effective_sample_size(values).clamp(max=draws * math.log10(draws))
    assert ours.shape == values.shape[2:]
    assert torch.allclose(ours, theirs, rtol=1e-9)


def test_chains_that_differ_are_worth_little():
    values = autoregression(0.0, (4, 500))
    assert chain_effective_sample_size(values) > 1000
    apart = values + 3 * torch.arange(4)[:, None]
    assert chain_effective_sample_size(apart) < 10


@pytest.mark.parametrize("rho", [0.5, 0.95])
def test_known_autocorrelation(rho):
    """An AR(1) chain keeps (1 - rho) / (1 + rho) of its draws.

    At 40 columns of 20,000 draws the mean is within 5 % with a wide margin (the columns vary
    by about 6 % at rho = .95, so the mean by 1 %: five standard errors, rate 6e-7).
    """
    found = chain_effective_sample_size(autoregression(rho, (1, 20_000, 40))).mean()
    assert found.item() == pytest.approx(20_000 * (1 - rho) / (1 + rho), rel=0.05)


def test_long_chains_fit_in_memory():
    values = torch.randn(1, 300_000, generator=torch.Generator().manual_seed(0))
    assert 0.9 < chain_effective_sample_size(values).item() / 300_000 < 1.1


def test_antithetic_chains_are_capped():
    values = torch.tensor([1.0, -1.0]).repeat(500)[None]
    assert chain_effective_sample_size(values).item() == pytest.approx(1000 * 3)


def test_constants_and_short_chains():
    assert chain_effective_sample_size(torch.ones(2, 10)).isnan()
    with pytest.raises(ValueError, match="n >= 4"):
        chain_effective_sample_size(torch.ones(2, 3))
