# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from pyro_tilt.rewards import (
    BlackBox,
    Bounded,
    Concave,
    Constraint,
    Linear,
    LowDim,
    MaxAffine,
    Scaled,
    Sum,
    as_reward,
)


def norm(x):
    return x.norm(dim=-1)


def test_callable_becomes_a_black_box_and_a_reward_stays():
    linear = Linear(1.0)
    assert as_reward(linear) is linear
    assert isinstance(as_reward(norm), BlackBox)
    with pytest.raises(TypeError, match=r"got Tensor; a tensor of slopes is written Linear"):
        as_reward(torch.tensor(1.0))


@pytest.mark.parametrize("result", [1.0, None, [1.0]])
def test_black_box_must_return_a_tensor(result):
    def broken(value):
        return result

    with pytest.raises(TypeError, match="the reward broken must return a tensor"):
        BlackBox(broken)(torch.ones(3))


def test_black_box_casts_counts_and_refuses_complex_numbers():
    assert BlackBox(lambda x: (x > 0).sum(-1))(torch.ones(2, 3)).dtype == torch.float32
    with pytest.raises(TypeError, match="real numbers"):
        BlackBox(lambda x: x * 1j)(torch.ones(2))


def test_values_of_any_type_are_handed_on_untouched():
    value = {"a": torch.tensor([1.0, -2.0]), "b": torch.tensor([3.0, 4.0])}
    seen = []

    def fn(got):
        seen.append(got)
        return got["a"] * got["b"]

    bounded = Bounded(fn, -10.0, 10.0)
    constraint = Constraint(lambda got: got["a"] > 0)
    total = BlackBox(fn) + 2.0 * bounded + constraint
    torch.testing.assert_close(total(value), torch.tensor([9.0, -math.inf]))
    assert all(got is value for got in seen) and len(seen) == 2


def test_bounded_reports_the_worst_value():
    reward = Bounded(lambda x: x, 0.0, 1.0)
    value = torch.tensor([0.5, 1.5, -2.0, 1.0])
    with pytest.raises(ValueError, match=r"is -2 outside its bounds \[0, 1\] \(2 of 4"):
        reward(value)
    torch.testing.assert_close(reward(torch.tensor([0.0, 1.0])), torch.tensor([0.0, 1.0]))


def test_bounded_forgives_rounding_alone():
    reward = Bounded(lambda x: x, -2e3, -1e3)
    inside = torch.tensor([-1e3 + 5e-4, -2e3 - 1e-3], dtype=torch.float64)
    torch.testing.assert_close(reward(inside), inside)
    with pytest.raises(ValueError, match="outside"):
        reward(torch.tensor(-1e3 + 1e-2, dtype=torch.float64))
    Bounded(lambda x: x, -math.inf, 0.0)(torch.tensor([-math.inf, 1e-7]))
    with pytest.raises(ValueError, match="outside"):
        Bounded(lambda x: x, -math.inf, 0.0)(torch.tensor([-1.0, 1e-5]))


def test_bounded_refuses_minus_infinity_below_a_finite_bound():
    with pytest.raises(ValueError, match="-inf outside"):
        Bounded(lambda x: x, -1.0, 1.0)(torch.tensor([0.0, -math.inf]))


@pytest.mark.parametrize("low, high", [(1.0, 0.0), (math.nan, 1.0), (math.inf, math.inf)])
def test_bounds_must_be_in_order(low, high):
    with pytest.raises(ValueError, match="low <= high"):
        Bounded(norm, low, high)


def test_scaled_bounds_swap_and_shift():
    reward = Bounded(lambda x: x, -1.0, 3.0)
    value = torch.tensor([-1.0, 2.5])
    for scale, low, high in ((2.0, -2.0, 6.0), (-2.0, -6.0, 2.0), (0.0, 0.0, 0.0)):
        scaled = reward * scale
        assert isinstance(scaled, Bounded)
        assert (scaled.lower_bound, scaled.upper_bound) == (low, high)
        torch.testing.assert_close(scaled(value), value * scale)
    shifted = 1.0 - 2.0 * reward
    assert isinstance(shifted, Bounded)
    assert (shifted.lower_bound, shifted.upper_bound) == (-5.0, 3.0)
    mixed = reward * torch.tensor([2.0, -1.0])
    assert (mixed.lower_bound, mixed.upper_bound) == (-3.0, 6.0)
    torch.testing.assert_close(mixed(value), torch.tensor([-2.0, -2.5]))
    with pytest.raises(ValueError, match="outside its bounds"):
        shifted(torch.tensor([3.5]))


def test_scaled_half_line_bounds():
    reward = -1.0 * Bounded(lambda x: x, -math.inf, 0.5)
    assert (reward.lower_bound, reward.upper_bound) == (-0.5, math.inf)


def test_constraint_is_zero_or_minus_infinity():
    reward = Constraint(lambda x: (x > 0).all(-1), event_dim=1)
    value = torch.tensor([[1.0, 2.0], [1.0, -2.0]], dtype=torch.float64)
    result = reward(value)
    assert result.dtype == torch.float64
    torch.testing.assert_close(result, torch.tensor([0.0, -math.inf], dtype=torch.float64))
    assert reward.upper_bound == 0.0 and reward.lower_bound == -math.inf
    assert reward(value.long()).dtype == torch.float32


def test_constraint_survives_positive_scales_alone():
    reward = Constraint(lambda x: x > 0)
    value = torch.tensor([1.0, -1.0])
    assert (2.0 * reward) is reward and (torch.tensor(2.0) * reward) is reward
    for zero in (0.0 * reward, torch.tensor(0.0) * reward):
        assert isinstance(zero, Scaled)
        assert torch.equal(zero(value), torch.zeros(2))
        assert (zero.lower_bound, zero.upper_bound) == (0.0, 0.0)
    assert (-reward)(value)[1] == math.inf
    batched = reward * torch.tensor([[1.0], [0.0]])
    expected = torch.tensor([[0.0, -math.inf], [0.0, 0.0]])
    assert torch.equal(batched(value), expected)


def test_predicate_must_return_truth_values():
    with pytest.raises(TypeError, match="boolean tensor, got torch.float32"):
        Constraint(norm)(torch.ones(2, 2))


def test_concave_flag_turns_with_the_sign():
    reward = Concave(lambda x: -norm(x))
    assert reward.concave and reward.convex is None
    assert (-reward).convex and (-reward).concave is None
    assert (2.0 * reward + Linear(torch.ones(2))).concave
    assert (reward + BlackBox(norm)).concave is None
    assert (reward * torch.tensor([1.0, -1.0])).concave is None
    assert (reward * 0.0).convex and (reward * 0.0).concave


def test_max_affine_takes_the_largest_piece():
    slopes = torch.tensor([[1.0, 0.0], [-1.0, 2.0], [0.0, 0.0]])
    intercepts = torch.tensor([0.0, -1.0, 0.5])
    reward = MaxAffine(slopes, intercepts)
    x = torch.tensor([[3.0, 0.0], [0.0, 4.0], [-9.0, -9.0]])
    torch.testing.assert_close(reward(x), torch.tensor([3.0, 7.0, 0.5]))
    assert reward.convex and reward.concave is None
    assert (reward.lower_bound, reward.upper_bound) == (0.5, math.inf)


def test_max_affine_keeps_its_class_where_it_can():
    reward = MaxAffine(torch.tensor([[1.0, 0.0], [-1.0, 2.0]]), torch.tensor([0.0, -1.0]))
    x = torch.tensor([[3.0, 0.5], [-1.0, 4.0]])
    linear = Linear(torch.tensor([0.5, -2.0]), offset=0.25)
    total = 2.0 * (linear + reward) - 1.0
    assert isinstance(total, MaxAffine)
    torch.testing.assert_close(total(x), 2 * (reward(x) + linear(x)) - 1)
    negative = -reward
    assert isinstance(negative, Scaled) and negative.concave and negative.convex is None
    torch.testing.assert_close(negative(x), -reward(x))
    batched = reward * torch.tensor([2.0, 0.5])
    assert isinstance(batched, MaxAffine) and batched.batch_shape == (2,)
    torch.testing.assert_close(batched(x), reward(x) * torch.tensor([2.0, 0.5]))
    assert isinstance(reward + reward, Sum) and (reward + reward).convex


def test_max_affine_of_scalars():
    reward = MaxAffine(torch.tensor([1.0, -2.0]), torch.tensor([0.0, 1.0]))
    assert reward.event_dim == 0
    x = torch.tensor([[2.0, -1.0], [0.0, 5.0]])
    torch.testing.assert_close(reward(x), torch.maximum(x, 1 - 2 * x))
    total = reward + Linear(torch.tensor([1.0, 3.0]), event_dim=0)
    assert isinstance(total, MaxAffine) and total.batch_shape == (2,)
    torch.testing.assert_close(total(x), reward(x) + x * torch.tensor([1.0, 3.0]))


def test_max_affine_needs_matching_pieces():
    with pytest.raises(ValueError, match=r"slopes of shape \(2, 3\) and intercepts"):
        MaxAffine(torch.ones(2, 3), torch.ones(3))


def test_low_dim_is_a_function_of_the_features():
    A = torch.tensor([[1.0, -1.0, 0.0], [0.0, 2.0, 1.0]])
    reward = LowDim(norm, A, convex=True, lipschitz=1.0)
    x = torch.tensor([[1.0, 2.0, 3.0], [0.0, -1.0, 1.0]])
    torch.testing.assert_close(reward(x), norm(x @ A.T))
    scaled = -3.0 * reward + 1.0
    assert isinstance(scaled, LowDim)
    assert scaled.lipschitz == 3.0 and scaled.concave and scaled.convex is None
    torch.testing.assert_close(scaled(x), 1 - 3 * norm(x @ A.T))
    batched = LowDim(norm, torch.stack([A, 2 * A]))
    torch.testing.assert_close(batched(x), norm(x @ A.T) * torch.tensor([1.0, 2.0]))


def test_low_dim_passes_on_what_is_known_of_its_function():
    reward = LowDim(Bounded(lambda u: u.cos().prod(-1), -1.0, 1.0), torch.eye(2))
    assert ((2.0 * reward).lower_bound, (2.0 * reward).upper_bound) == (-2.0, 2.0)
    with pytest.raises(ValueError, match=r"a\[None\]"):
        LowDim(norm, torch.ones(3))
    with pytest.raises(ValueError, match="lipschitz"):
        LowDim(norm, torch.eye(2), lipschitz=-1.0)
