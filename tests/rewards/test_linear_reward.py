# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from pyro_tilt.rewards import Linear, LinearIn, Quadratic


def test_scalar_slope_takes_event_dim_zero():
    reward = Linear(torch.tensor(1.5))
    assert reward.event_dim == 0
    value = torch.tensor([[1.0, -2.0], [0.5, 4.0]])
    torch.testing.assert_close(reward(value), 1.5 * value)


def test_event_dims_are_summed_and_batch_dims_kept():
    theta = torch.tensor([[1.0, -2.0, 0.5], [3.0, 0.0, 1.0]])
    value = torch.arange(24.0).reshape(4, 2, 3)
    assert Linear(theta)(value).shape == (4,)
    torch.testing.assert_close(Linear(theta)(value), (theta * value).sum((-1, -2)))
    rows = Linear(theta, event_dim=1)
    assert rows.batch_shape == (2,) and rows.event_shape == (3,)
    torch.testing.assert_close(rows(value), (theta * value).sum(-1))
    torch.testing.assert_close(Linear(theta, event_dim=0)(value), theta * value)


def test_batched_parameters_widen_the_batch_of_a_value():
    theta = torch.tensor([[1.0, 2.0], [3.0, -1.0], [0.0, 1.0]])
    reward = Linear(theta, event_dim=1)
    torch.testing.assert_close(reward(torch.tensor([1.0, 10.0])), torch.tensor([21.0, -7.0, 10.0]))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.bool])
def test_values_of_integer_dtype_are_cast(dtype):
    value = torch.tensor([1, 0, 1]).to(dtype)
    result = Linear(torch.tensor(0.3, dtype=torch.float64))(value)
    assert result.dtype == torch.float64
    torch.testing.assert_close(result, torch.tensor([0.3, 0.0, 0.3], dtype=torch.float64))


def test_value_of_another_event_shape_is_refused():
    # A size of one would broadcast silently.
    with pytest.raises(ValueError, match=r"event shape \(3,\), got a value of shape \(5, 1\)"):
        Linear(torch.ones(3))(torch.ones(5, 1))
    with pytest.raises(ValueError, match=r"event shape \(3,\)"):
        Linear(torch.ones(3))(torch.tensor(1.0))


def test_value_that_is_no_tensor_is_refused():
    with pytest.raises(TypeError, match="Linear takes a tensor, got dict"):
        Linear(torch.tensor(1.0))({"x": torch.tensor(1.0)})


@pytest.mark.parametrize("event_dim", [-1, 2])
def test_event_dim_beyond_theta_is_refused(event_dim):
    with pytest.raises(ValueError, match="event_dim"):
        Linear(torch.ones(3), event_dim=event_dim)


def test_parameters_must_be_finite_real_numbers():
    with pytest.raises(ValueError, match="theta must be finite"):
        Linear(torch.tensor([1.0, math.nan]))
    with pytest.raises(TypeError, match="theta must be real"):
        Linear(torch.tensor(1j))
    with pytest.raises(TypeError, match="theta must be a tensor or number, got object"):
        Linear(object())


def test_offset_is_kept_by_sums_and_scalings():
    reward = 2.0 * (Linear(torch.tensor([1.0, -1.0])) + 3.0) - 1.0
    assert isinstance(reward, Linear)
    torch.testing.assert_close(reward.offset, torch.tensor(5.0))
    torch.testing.assert_close(reward(torch.tensor([4.0, 1.0])), torch.tensor(11.0))


def test_sum_of_linear_rewards_is_linear():
    total = Linear(torch.tensor([1.0, 2.0])) + Linear(torch.tensor([0.5, -3.0]))
    assert isinstance(total, Linear)
    torch.testing.assert_close(total.theta, torch.tensor([1.5, -1.0]))


def test_linear_rewards_of_different_events_do_not_add():
    with pytest.raises(ValueError, match="one event_dim, got 0 and 1"):
        Linear(torch.tensor(1.0)) + Linear(torch.ones(2))
    with pytest.raises(ValueError, match=r"one event shape, got \(2,\) and \(1,\)"):
        Linear(torch.ones(2)) + Linear(torch.ones(1))


def test_scale_of_batch_shape_never_meets_event_dims():
    # Batch and event have one size, so that a scale along the event would not fail.
    theta = torch.tensor([1.0, 10.0])
    reward = Linear(theta) * torch.tensor([2.0, 3.0])
    assert reward.batch_shape == (2,)
    torch.testing.assert_close(reward(torch.tensor([1.0, 1.0])), torch.tensor([22.0, 33.0]))


def test_zero_dim_scale_of_double_precision_keeps_the_dtype():
    scale = torch.tensor(2.0, dtype=torch.float64)
    for theta in (torch.tensor(1.0), torch.ones(2)):
        reward = Linear(theta) * scale
        assert reward.theta.dtype == reward.offset.dtype == torch.float32


def test_gradients_flow_to_slope_scale_and_offset():
    theta = torch.tensor([1.0, -2.0], requires_grad=True)
    scale = torch.tensor(3.0, requires_grad=True)
    offset = torch.tensor(0.5, requires_grad=True)
    value = torch.tensor([2.0, 5.0])
    ((Linear(theta) + offset) * scale)(value).backward()
    torch.testing.assert_close(theta.grad, 3.0 * value)
    torch.testing.assert_close(scale.grad, torch.tensor(-7.5))
    torch.testing.assert_close(offset.grad, torch.tensor(3.0))


def test_bounds_and_flags():
    assert Linear(torch.tensor(0.1)).upper_bound == math.inf
    assert Linear(torch.tensor(0.1)).lower_bound == -math.inf
    flat = Linear(torch.zeros(2), offset=torch.tensor([1.0, -2.0, 0.0]))
    assert (flat.lower_bound, flat.upper_bound) == (-2.0, 1.0)
    assert flat.convex and flat.concave


def test_repr_is_short():
    assert (
        repr(Linear(torch.tensor([1.5, -1.0]))) == "Linear(theta=tensor([1.5, -1.0]), event_dim=1)"
    )
    assert repr(Linear(torch.ones(64, 64))) == "Linear(theta=tensor(shape=(64, 64)), event_dim=2)"
    assert repr(Linear(0.1) + 2.0) == "Linear(theta=tensor(0.1), event_dim=0, offset=tensor(2.0))"


def test_statistics_are_what_their_names_say():
    x = torch.tensor([0.2, 0.7], dtype=torch.float64)
    laws = {
        "x": x,
        "log": x.log(),
        "log1m": (1 - x).log(),
        "reciprocal": 1 / x,
        "cos": x.cos(),
        "sin": x.sin(),
    }
    for name, expected in laws.items():
        coefficient = torch.tensor(1.7, dtype=torch.float64)
        torch.testing.assert_close(LinearIn(**{name: coefficient})(x), 1.7 * expected)
    total = LinearIn(event_dim=1, log=torch.ones(2), sin=torch.tensor([0.0, 2.0]), offset=1.0)
    torch.testing.assert_close(total(x), x.log().sum() + 2 * x[1].sin() + 1.0)


def test_zero_coefficient_leaves_a_singular_statistic_out():
    x = torch.tensor([0.0, 0.5], requires_grad=True)
    coefficient = torch.tensor([0.0, 2.0], requires_grad=True)
    result = LinearIn(event_dim=1, log=coefficient, x=torch.tensor([3.0, 0.0]))(x)
    torch.testing.assert_close(result, torch.tensor(2 * math.log(0.5)))
    result.backward()
    torch.testing.assert_close(x.grad, torch.tensor([3.0, 4.0]))
    torch.testing.assert_close(coefficient.grad, torch.tensor([0.0, math.log(0.5)]))


def test_zero_coefficient_has_the_statistic_for_its_gradient():
    coefficient = torch.tensor(0.0, requires_grad=True)
    LinearIn(log=coefficient)(torch.tensor(0.5)).backward()
    torch.testing.assert_close(coefficient.grad, torch.tensor(math.log(0.5)))


def test_boundary_with_a_positive_coefficient_has_reward_minus_infinity():
    assert LinearIn(log=2.0)(torch.tensor(0.0)) == -math.inf
    assert LinearIn(log1m=2.0)(torch.tensor(1.0)) == -math.inf


def test_sums_with_statistics_stay_linear_in_statistics():
    x = torch.tensor([0.3, 1.9])
    for total in (LinearIn(log=2.0) + Linear(1.5), Linear(1.5) + LinearIn(log=2.0)):
        assert isinstance(total, LinearIn)
        torch.testing.assert_close(total(x), 2 * x.log() + 1.5 * x)
    both = LinearIn(x=1.0, log=2.0) + LinearIn(log=-0.5, reciprocal=3.0) - 4.0
    assert isinstance(both, LinearIn) and set(both.coefficients) == {"x", "log", "reciprocal"}
    torch.testing.assert_close(both(x), x + 1.5 * x.log() + 3 / x - 4.0)
    with pytest.raises(ValueError, match="one event_dim"):
        LinearIn(log=1.0) + Linear(torch.ones(2))


def test_waves_are_bounded_by_their_amplitude():
    waves = LinearIn(cos=torch.tensor([3.0, 0.0]), sin=torch.tensor([-4.0, 1.0]), offset=0.5)
    assert waves.upper_bound == pytest.approx(5.5)
    assert waves.lower_bound == pytest.approx(-4.5)
    grid = torch.linspace(-math.pi, math.pi, 10_001)
    assert float(waves(grid[:, None]).max()) == pytest.approx(5.5, abs=1e-5)
    summed = LinearIn(event_dim=1, cos=torch.tensor([3.0, 0.0]), sin=torch.tensor([-4.0, 1.0]))
    assert summed.upper_bound == pytest.approx(6.0)
    assert LinearIn(cos=1.0, log=0.1).upper_bound == math.inf


def test_unknown_or_misfit_coefficients_are_refused():
    with pytest.raises(ValueError, match="got tan"):
        LinearIn(tan=1.0)
    with pytest.raises(ValueError, match="got none"):
        LinearIn()
    with pytest.raises(ValueError, match=r"got \(2,\) and \(3,\)"):
        LinearIn(event_dim=1, x=torch.ones(2), log=torch.ones(3))
    with pytest.raises(ValueError, match=r"event_dim=1 with log of shape \(\)"):
        LinearIn(event_dim=1, x=torch.ones(2), log=1.0)


def test_difference_of_a_quadratic_and_a_linear_reward_subtracts():
    x = torch.tensor([2.0, -1.0])
    difference = Linear(torch.tensor([1.0, 2.0])) - Quadratic(torch.eye(2), c=1.0)
    assert isinstance(difference, Quadratic)
    torch.testing.assert_close(difference(x), torch.tensor(-6.0))
