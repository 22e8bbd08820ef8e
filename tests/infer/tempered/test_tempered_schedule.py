# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from pyro_tilt.infer.tempered import Schedule, Stage, TemperedSMC, Tuning
from pyro_tilt.infer.tempered.schedule import check_schedule, next_temperature, scaled
from pyro_tilt.ops.importance import effective_sample_size


def _weights(seed=0, count=500):
    generator = torch.Generator().manual_seed(seed)
    carried, log_weights = torch.randn(2, count, dtype=torch.float64, generator=generator)
    return carried, 8.0 * log_weights.exp()


@pytest.mark.parametrize("threshold", [0.2, 0.3])
@pytest.mark.parametrize("beta", [0.0, 0.05])
def test_the_cumulative_size_falls_to_the_threshold(threshold, beta):
    carried, log_weights = _weights()
    target = next_temperature(carried, log_weights, beta, threshold)
    assert beta < target < 1.0
    size = effective_sample_size(carried + (target - beta) * log_weights)
    assert float(size) == pytest.approx(500 * threshold, rel=1e-5)
    # Weights that forget what they carried leave quite another size.
    forgotten = next_temperature(torch.zeros(500), log_weights, beta, threshold)
    wrong = effective_sample_size(carried + (forgotten - beta) * log_weights)
    assert abs(float(wrong) / (500 * threshold) - 1.0) > 0.1


def test_the_last_temperature_is_one():
    carried, log_weights = _weights()
    assert next_temperature(carried * 0.0, 1e-3 * log_weights, 0.0, 0.5) == 1.0
    assert next_temperature(carried * 0.0, log_weights, 1.0 - 1e-9, 0.5) == 1.0
    beta, stages = 0.0, 0
    while beta < 1.0:
        beta, previous = next_temperature(carried * 0.0, log_weights, beta, 0.5), beta
        assert previous < beta <= 1.0
        stages += 1
    assert beta == 1.0 and stages > 3


def test_weights_of_zero_do_not_stop_the_path():
    log_weights = torch.full((100,), -math.inf, dtype=torch.float64)
    log_weights[:7] = 0.0
    assert next_temperature(torch.zeros(100), log_weights, 0.0, 0.5) == 1.0
    log_weights[:7] = torch.arange(7.0, dtype=torch.float64)
    beta = next_temperature(torch.zeros(100), log_weights, 0.0, 0.5)
    assert float(effective_sample_size(scaled(log_weights, beta))) == pytest.approx(3.5, rel=1e-5)


def test_scales_of_any_size():
    carried, log_weights = _weights()
    for size in (1e-3, 1.0, 1e6, 1e12):
        beta = next_temperature(0.0 * carried, size * log_weights, 0.0, 0.5)
        ess = float(effective_sample_size(beta * size * log_weights))
        assert beta == 1.0 or ess == pytest.approx(250.0, rel=1e-4)


def test_scaling_keeps_zero_weights_zero():
    values = torch.tensor([1.0, -math.inf], dtype=torch.float64)
    assert scaled(values, 0.0).tolist() == [0.0, 0.0]
    assert scaled(values, 1e-300)[1] == -math.inf


def test_temperatures_are_checked():
    assert check_schedule([0.0, 0.5, 1]) == [0.5, 1.0]
    for bad in ([], [0.0], [0.5], [0.5, 0.5, 1.0], [-0.1, 1.0], [0.5, math.nan, 1.0]):
        with pytest.raises(ValueError, match="schedule"):
            check_schedule(bad)


def test_a_schedule_fits_its_kernel():
    schedule = Schedule((Stage(1.0, 1, Tuning(0.5)),), "pcn")
    with pytest.raises(ValueError, match="tuned for kernel='pcn'"):
        TemperedSMC(lambda: None, kernel="rwm", schedule=schedule)
    short = Schedule((Stage(0.5, 1, Tuning(0.5)),), "rwm")
    with pytest.raises(ValueError, match="does not end"):
        TemperedSMC(lambda: None, schedule=short)
