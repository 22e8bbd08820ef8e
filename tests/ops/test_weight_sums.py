# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from pyro_tilt.ops.importance import (
    effective_sample_size,
    log_evidence,
    log_mean_exp,
    normalize,
    summarize,
)

inf = math.inf


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(7,), (3, 11), (2, 3, 5)])
def test_sums_against_plain_arithmetic(shape, dtype):
    log_weights = torch.randn(shape, dtype=dtype) * 2 - 1
    log_weights[..., 0] = -inf
    weights = log_weights.double().exp()
    num = shape[-1]
    value, error = log_evidence(log_weights)
    ess = effective_sample_size(log_weights)
    assert value.dtype == error.dtype == ess.dtype == torch.float64
    assert value.shape == shape[:-1]
    torch.testing.assert_close(value, weights.mean(-1).log(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(log_mean_exp(log_weights), value, rtol=1e-12, atol=1e-12)
    expected = weights.std(-1) / weights.mean(-1) / math.sqrt(num)
    torch.testing.assert_close(error, expected, rtol=1e-11, atol=0)
    kish = weights.sum(-1) ** 2 / weights.square().sum(-1)
    torch.testing.assert_close(ess, kish, rtol=1e-11, atol=0)
    expected = weights / weights.sum(-1, keepdim=True)
    torch.testing.assert_close(normalize(log_weights), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("shift", [-1e6, 1e6])
def test_huge_weights_neither_overflow_nor_vanish(shift):
    log_weights = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    value, error, ess = summarize(log_weights + shift)
    expected = summarize(log_weights)
    assert value.item() == pytest.approx(shift + expected.log_evidence.item(), abs=1e-9)
    assert error.item() == pytest.approx(expected.error.item(), rel=1e-9)
    assert ess.item() == pytest.approx(expected.effective_sample_size.item(), rel=1e-9)
    assert normalize(log_weights + shift).sum().item() == pytest.approx(1.0, rel=1e-12)


def test_the_input_is_not_changed():
    log_weights = torch.randn(10, dtype=torch.float64)
    before = log_weights.clone()
    summarize(log_weights), normalize(log_weights), log_mean_exp(log_weights)
    assert torch.equal(log_weights, before)


def test_all_weights_zero():
    log_weights = torch.tensor([[-inf, -inf], [0.0, -inf]])
    value, error = log_evidence(log_weights)
    assert value.tolist() == [-inf, math.log(0.5)]
    assert error.isnan().tolist() == [True, False]
    assert effective_sample_size(log_weights).tolist() == [0.0, 1.0]
    assert log_mean_exp(log_weights)[0] == -inf
    assert normalize(log_weights).tolist() == [[0.0, 0.0], [1.0, 0.0]]


def test_empty_and_single():
    assert log_evidence(torch.zeros(0))[0].isnan() and log_mean_exp(torch.zeros(0)).isnan()
    assert effective_sample_size(torch.zeros(0)) == 0 and normalize(torch.zeros(0)).shape == (0,)
    value, error = log_evidence(torch.tensor([3.0]))
    assert value == 3 and error.isnan()


def test_equal_weights_have_no_error():
    value, error = log_evidence(torch.full((1000,), 0.1))
    assert error == 0 and effective_sample_size(torch.full((1000,), 0.1)) == 1000
    assert value.item() == torch.tensor(0.1).double().item()


def test_standard_error_is_that_of_the_log_evidence():
    # 2,000 runs of 400 log-normal weights: the ratio of spread to error has sd about 0.02, so
    # the gate of 0.1 is five of them (false alarm below 1e-6).
    log_weights = 0.5 * torch.randn(2000, 400, dtype=torch.float64)
    value, error = log_evidence(log_weights)
    assert value.mean().item() == pytest.approx(0.125, abs=5e-3)
    assert (value.std() / error.mean()).item() == pytest.approx(1.0, abs=0.1)
