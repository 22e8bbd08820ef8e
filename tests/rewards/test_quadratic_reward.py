# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from pyro_tilt.rewards import Linear, Quadratic, Sum


def test_only_the_symmetric_part_counts_and_is_kept():
    A = torch.tensor([[1.0, 4.0], [0.0, -2.0]])
    b, c = torch.tensor([0.5, -1.0]), torch.tensor(3.0)
    reward = Quadratic(A, b, c)
    torch.testing.assert_close(reward.A, torch.tensor([[1.0, 2.0], [2.0, -2.0]]))
    x = torch.tensor([[1.0, 2.0], [-3.0, 0.5]])
    expected = torch.stack([x_ @ A @ x_ + b @ x_ + c for x_ in x])
    torch.testing.assert_close(reward(x), expected)


def test_hessian_is_twice_the_matrix():
    Q = torch.tensor([[2.0, 1.0], [1.0, -4.0]])
    x = torch.tensor([1.0, 3.0], requires_grad=True)
    reward = Quadratic.from_hessian(Q, torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(torch.autograd.functional.hessian(reward, x), Q)
    torch.testing.assert_close(reward(x), 0.5 * x @ Q @ x + x[0])


def test_zero_dim_matrix_stands_for_scalar_values():
    reward = Quadratic(torch.tensor(-0.5), torch.tensor(2.0), torch.tensor(1.0))
    assert reward.event_dim == 0
    x = torch.tensor([0.0, 1.0, 3.0])
    torch.testing.assert_close(reward(x), -0.5 * x**2 + 2 * x + 1)
    torch.testing.assert_close(reward(torch.tensor([0, 1, 3])), -0.5 * x**2 + 2 * x + 1)


def test_batched_scalars_and_batched_matrices_are_told_apart():
    A = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    x = torch.tensor([[1.0, -1.0], [2.0, 0.5]])
    assert Quadratic(A)(x).shape == (2,)
    elementwise = Quadratic(A, event_dim=0)
    assert elementwise.batch_shape == (2, 2)
    torch.testing.assert_close(elementwise(x), A * x**2)


def test_batch_dims_broadcast_against_the_batch_of_a_value():
    torch.manual_seed(0)
    A, b, c = torch.randn(3, 1, 2, 2), torch.randn(4, 2), torch.randn(3, 1)
    reward = Quadratic(A, b, c)
    assert reward.batch_shape == (3, 4) and reward.event_shape == (2,)
    x = torch.randn(5, 3, 4, 2)
    expected = torch.einsum("...i,...ij,...j->...", x, A.expand(3, 4, 2, 2), x)
    expected = expected + (b * x).sum(-1) + c
    assert reward(x).shape == (5, 3, 4)
    torch.testing.assert_close(reward(x), expected, rtol=1e-5, atol=1e-5)


def test_sums_and_scalings_stay_quadratic():
    quadratic = Quadratic(torch.tensor([[1.0, 0.5], [0.5, -2.0]]), torch.tensor([1.0, 0.0]), 2.0)
    linear = Linear(torch.tensor([3.0, -1.0]), offset=0.25)
    x = torch.tensor([[1.0, 2.0], [-1.0, 0.5]])
    for total in (quadratic + linear, linear + quadratic):
        assert isinstance(total, Quadratic)
        torch.testing.assert_close(total(x), quadratic(x) + linear(x))
    combined = 3.0 - (quadratic + quadratic) * 0.5
    assert isinstance(combined, Quadratic)
    torch.testing.assert_close(combined(x), 3.0 - quadratic(x))
    torch.testing.assert_close(combined.c, torch.tensor(1.0))
    scalar = Quadratic(-1.0) + Linear(2.0)
    assert isinstance(scalar, Quadratic) and scalar.event_dim == 0


def test_sum_of_different_events_is_refused():
    with pytest.raises(ValueError, match="one event_dim, got 1 and 0"):
        Linear(torch.tensor(1.0)) + Quadratic(torch.eye(2))
    with pytest.raises(ValueError, match=r"one event shape, got \(2,\) and \(3,\)"):
        Quadratic(torch.eye(2)) + Quadratic(torch.eye(3))


def test_scale_of_batch_shape_never_meets_event_dims():
    quadratic = Quadratic(torch.tensor([[1.0, 0.0], [0.0, 5.0]]), torch.tensor([0.0, 1.0]))
    scaled = quadratic * torch.tensor([2.0, -1.0])
    x = torch.tensor([1.0, 2.0])
    torch.testing.assert_close(scaled(x), quadratic(x) * torch.tensor([2.0, -1.0]))


def test_maximum_of_a_negative_definite_matrix():
    A = torch.tensor([[-2.0, 0.5], [0.5, -1.0]], dtype=torch.float64)
    b = torch.tensor([1.0, -3.0], dtype=torch.float64)
    reward = Quadratic(A, b, 0.7)
    peak = torch.linalg.solve(-2 * A, b)
    assert reward.upper_bound == pytest.approx(float(reward(peak)), rel=1e-12)
    assert reward.upper_bound == pytest.approx(0.7 - float(b @ torch.linalg.solve(A, b)) / 4)
    assert reward.lower_bound == -math.inf
    assert (-reward).lower_bound == pytest.approx(-reward.upper_bound)
    assert (-reward).upper_bound == math.inf
    assert reward.concave and not reward.convex


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_semidefinite_matrix_is_bounded_where_the_slope_lies_in_its_range(dtype):
    v = torch.tensor([1.0, 2.0, -0.3], dtype=dtype)
    A = -torch.outer(v, v)
    bounded = Quadratic(A, 3.0 * v)
    # -(v.x)^2 + 3 v.x is at most 9/4.
    assert bounded.upper_bound == pytest.approx(2.25, rel=1e-4)
    assert bounded.concave
    tilted = Quadratic(A, 3.0 * v + torch.tensor([0.01, 0.0, 0.0], dtype=dtype))
    assert tilted.upper_bound == math.inf


def test_indefinite_matrix_is_unbounded_and_neither_convex_nor_concave():
    reward = Quadratic(torch.tensor([[1.0, 0.0], [0.0, -1.0]]))
    assert (reward.lower_bound, reward.upper_bound) == (-math.inf, math.inf)
    assert not reward.convex and not reward.concave


def test_bounds_hold_for_the_whole_batch():
    reward = Quadratic(torch.tensor([-1.0, -0.5]), torch.tensor([2.0, 3.0]), event_dim=0)
    # c + b^2 / (4 |A|) is 1 and 4.5.
    assert reward.upper_bound == pytest.approx(4.5)
    mixed = Quadratic(torch.tensor([-1.0, 0.5]), event_dim=0)
    assert mixed.upper_bound == math.inf and mixed.lower_bound == -math.inf
    constant = Quadratic(0.0, 0.0, torch.tensor([3.0, -1.0]))
    assert (constant.lower_bound, constant.upper_bound) == (-1.0, 3.0)


def test_gradients_flow_to_all_parameters():
    A = torch.tensor([[1.0, 2.0], [0.0, 3.0]], requires_grad=True)
    b = torch.tensor([1.0, -1.0], requires_grad=True)
    c = torch.tensor(0.0, requires_grad=True)
    x = torch.tensor([2.0, 5.0])
    (Quadratic(A, b, c) * 2.0)(x).backward()
    torch.testing.assert_close(A.grad, 2 * torch.outer(x, x))
    torch.testing.assert_close(b.grad, 2 * x)
    torch.testing.assert_close(c.grad, torch.tensor(2.0))


@pytest.mark.parametrize(
    "parts, message",
    [
        ((torch.ones(2, 3),), "A must be square"),
        ((torch.eye(2), torch.ones(3)), r"b must be of shape batch \+ \(2,\)"),
        ((torch.eye(2), torch.tensor(1.0)), r"b must be of shape batch \+ \(2,\)"),
        ((torch.tensor(math.inf),), "A must be finite"),
    ],
)
def test_misfit_parameters_are_refused(parts, message):
    with pytest.raises(ValueError, match=message):
        Quadratic(*parts)


def test_event_dim_must_be_zero_or_one():
    with pytest.raises(ValueError, match="0 or 1"):
        Quadratic(torch.eye(2), event_dim=2)


def test_quadratic_and_black_box_stay_a_sum():
    total = Quadratic(torch.eye(2)) + torch.nn.Flatten(0)
    assert isinstance(total, Sum) and total.event_dim == 1
