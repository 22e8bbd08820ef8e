# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from pyro_tilt.ops.log_mgf import log_mgf

inf = math.inf


def test_against_plain_sums():
    A = torch.randn(3, 200, dtype=torch.float64)
    s = torch.tensor([-1.0, 0.0, 0.5, 2.0], dtype=torch.float64)
    found = log_mgf(A, s)
    terms = (s[:, None] * A[:, None]).exp()
    torch.testing.assert_close(found.value, terms.mean(-1).log(), rtol=1e-12, atol=1e-12)
    ess = terms.sum(-1) ** 2 / terms.square().sum(-1)
    torch.testing.assert_close(found.effective_sample_size, ess, rtol=1e-11, atol=0)
    assert torch.equal(found.trusted(50.0), ess >= 50.0)
    assert log_mgf(A, 2.0).value.shape == (3, 1)


def test_weighted_draws_equal_repeated_draws():
    A = torch.tensor([0.3, -1.2, 2.0], dtype=torch.float64)
    weights = torch.tensor([1.0, 4.0, 2.0], dtype=torch.float64)
    s = torch.tensor([1.0, 3.0])
    repeated = log_mgf(A.repeat_interleave(weights.long()), s).value
    found = log_mgf(A, s, log_weights=weights.log() + 10.0)
    torch.testing.assert_close(found.value, repeated, rtol=1e-12, atol=1e-12)
    raw = log_mgf(A, s, log_weights=weights.log() - math.log(7 / 3), normalize=False)
    torch.testing.assert_close(raw.value, repeated, rtol=1e-12, atol=1e-12)


def test_gate_marks_the_biased_estimates():
    # A thousand N(0,1) draws: at s = 1 fine, at s = 4 the plug-in value lies about 1 below s^2/2.
    A = torch.randn(200, 1000, dtype=torch.float64)
    found = log_mgf(A, torch.tensor([1.0, 4.0]))
    bias = found.value.mean(0) - torch.tensor([0.5, 8.0])
    assert abs(bias[0]) < 0.05 and -1.3 < bias[1] < -0.7
    assert found.trusted()[:, 0].all() and not found.trusted()[:, 1].any()


def test_large_grids_and_exponents():
    A = torch.randn(10_000, dtype=torch.float64)
    grid = torch.linspace(0.0, 2.0, 501, dtype=torch.float64)
    one = log_mgf(A, grid[300]).value[0]
    assert log_mgf(A, grid).value[300] == pytest.approx(one.item(), abs=1e-12)
    assert log_mgf(A, 1e6).value.item() == pytest.approx(1e6 * A.max().item() - math.log(1e4))


def test_minus_inf():
    A = torch.tensor([0.0, -inf])
    found = log_mgf(A, torch.tensor([0.0, 1.0]))
    assert found.value.tolist() == [0.0, math.log(0.5)]
    with pytest.raises(ValueError, match="s < 0"):
        log_mgf(A, -1.0)
    with pytest.raises(ValueError, match="nan or"):
        log_mgf(torch.tensor([0.0, math.nan]), 1.0)
