# SPDX-License-Identifier: Apache-2.0
import functools
import math
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from pyro_tilt.rewards import (
    BlackBox,
    Bounded,
    Concave,
    Constraint,
    Linear,
    LinearIn,
    LowDim,
    MaxAffine,
    Quadratic,
    Scaled,
    Sum,
)


def total(x):
    return x.sum(-1)


def positive(x):
    return (x > 0).all(-1)


def scored(x, weights):
    return x @ weights


def every_kind():
    slopes = torch.tensor([[1.0, 0.0], [-1.0, 2.0]])
    return [
        Linear(torch.tensor([1.0, -2.0])),
        LinearIn(1, cos=torch.tensor([1.0, 0.5]), offset=0.5),
        Quadratic(torch.tensor([[1.0, 0.5], [0.5, -1.0]]), torch.tensor([0.0, 1.0])),
        MaxAffine(slopes, torch.tensor([0.0, 1.0])),
        LowDim(total, slopes),
        BlackBox(total, 1),
        Concave(total),
        Bounded(total, -100.0, 100.0),
        Constraint(positive),
        -2.0 * BlackBox(total),
        BlackBox(total) + Constraint(positive) + 1.5,
    ]


@pytest.mark.parametrize("reward", every_kind(), ids=lambda reward: type(reward).__name__)
def test_pickle_round_trip(reward):
    x = torch.tensor([[1.0, 2.0], [-1.0, 0.5]])
    again = pickle.loads(pickle.dumps(reward))
    assert type(again) is type(reward) and repr(again) == repr(reward)
    assert torch.equal(again(x), reward(x))


@pytest.mark.parametrize("reward", every_kind(), ids=lambda reward: type(reward).__name__)
def test_repr_is_one_short_line(reward):
    text = repr(reward)
    assert "\n" not in text and len(text) < 130 and "0x" not in text


@pytest.mark.parametrize("left", every_kind(), ids=lambda reward: type(reward).__name__)
@pytest.mark.parametrize("right", every_kind(), ids=lambda reward: type(reward).__name__)
def test_sums_and_scalings_agree_with_arithmetic(left, right):
    x = torch.tensor([[1.0, 2.0], [3.0, 0.5], [0.25, 4.0]])
    torch.testing.assert_close((left + right)(x), left(x) + right(x))
    torch.testing.assert_close((left - 0.5 * right)(x), left(x) - 0.5 * right(x))
    scale = torch.tensor([2.0, 0.0, 0.5])
    torch.testing.assert_close(((left + right) * scale)(x), (left(x) + right(x)) * scale)
    combined = 2.0 * left + right
    assert combined.lower_bound <= float(combined(x).min())
    assert combined.upper_bound >= float(combined(x).max())


def test_structured_terms_merge_inside_a_sum():
    black_box = BlackBox(total)
    reward = Linear(torch.tensor([1.0, 0.0])) + black_box + Linear(torch.tensor([0.0, 2.0]))
    assert isinstance(reward, Sum) and len(reward.terms) == 2
    torch.testing.assert_close(reward.terms[0].theta, torch.tensor([1.0, 2.0]))
    both = reward + (black_box + Quadratic(torch.eye(2)) + 3.0)
    assert [type(term) for term in both.terms] == [Quadratic, BlackBox, BlackBox]
    x = torch.tensor([1.0, -3.0])
    torch.testing.assert_close(both(x), torch.tensor(1.0 - 6.0 - 4.0 + 10.0 + 3.0))


def test_sum_scales_its_terms_and_keeps_their_structure():
    reward = -2.0 * (Linear(torch.tensor([1.0, 0.0])) + BlackBox(total) + 1.0)
    assert isinstance(reward.terms[0], Linear) and isinstance(reward.terms[1], Scaled)
    torch.testing.assert_close(reward(torch.tensor([1.0, 4.0])), torch.tensor(-14.0))


def test_bounds_of_a_sum_add():
    first, second = Bounded(total, -1.0, 2.0), Bounded(total, -3.0, 0.5)
    reward = first - 2.0 * second + torch.tensor([0.0, 1.0])
    assert (reward.lower_bound, reward.upper_bound) == (-2.0, 9.0)
    half = Constraint(positive) + first
    assert (half.lower_bound, half.upper_bound) == (-math.inf, 2.0)
    assert (first + BlackBox(total)).upper_bound == math.inf


def test_terms_of_different_events_are_refused():
    with pytest.raises(ValueError, match="one event_dim, got 1 of Linear"):
        Linear(torch.ones(2)) + BlackBox(total, event_dim=2)


def test_operators_take_callables_numbers_tensors_and_numpy_scalars():
    x = torch.tensor([[1.0, 2.0], [-1.0, 0.5]])
    linear, value = Linear(torch.tensor([1.0, -2.0])), torch.tensor([-3.0, -2.0])
    torch.testing.assert_close((total + linear)(x), total(x) + value)
    torch.testing.assert_close((total - linear)(x), total(x) - value)
    torch.testing.assert_close((linear - total)(x), value - total(x))
    torch.testing.assert_close((torch.tensor(2.0) * linear)(x), 2 * value)
    torch.testing.assert_close((torch.tensor(2.0) - linear)(x), 2 - value)
    torch.testing.assert_close((np.float64(2.0) * linear)(x), 2 * value)
    torch.testing.assert_close((np.float32(2.0) + linear)(x), 2 + value)
    torch.testing.assert_close((linear / 4)(x), value / 4)
    assert isinstance(np.float64(2.0) * linear, Linear)
    torch.testing.assert_close(sum([linear, linear])(x), 2 * value)


def test_other_operands_are_type_errors():
    linear = Linear(1.0)
    with pytest.raises(TypeError):
        linear * linear
    with pytest.raises(TypeError):
        linear + "reward"
    with pytest.raises(TypeError):
        linear * BlackBox(total)


@pytest.mark.parametrize("scale", [math.nan, math.inf, torch.tensor([1.0, math.inf])])
def test_scale_must_be_finite(scale):
    with pytest.raises(ValueError, match="scale of a reward must be finite"):
        Linear(1.0) * scale


def test_zero_scale_of_minus_infinity_has_finite_gradients():
    scale = torch.tensor(0.0, requires_grad=True)
    theta = torch.tensor([1.0, 2.0], requires_grad=True)
    reward = BlackBox(lambda x: torch.where(x[..., 0] > 0, x @ theta, -math.inf))
    (reward * scale)(torch.tensor([[1.0, 1.0], [-1.0, 1.0]])).sum().backward()
    torch.testing.assert_close(scale.grad, torch.tensor(3.0))
    assert torch.equal(theta.grad, torch.zeros(2))


@pytest.mark.parametrize("reward", every_kind(), ids=lambda reward: type(reward).__name__)
def test_to_returns_a_reward_of_the_other_dtype(reward):
    x = torch.tensor([[1.0, 2.0], [-1.0, 0.5]], dtype=torch.float64)
    before = {key: item for key, item in vars(reward).items() if isinstance(item, torch.Tensor)}
    moved = reward.to(torch.float64)
    assert type(moved) is type(reward)
    assert moved(x).dtype == torch.float64
    torch.testing.assert_close(moved(x), reward(x).double(), rtol=1e-6, atol=1e-6)
    assert all(item is vars(reward)[key] for key, item in before.items())
    floats = [item for item in vars(moved).values() if isinstance(item, torch.Tensor)]
    assert all(item.dtype == torch.float64 for item in floats)


class Scorer:
    def __init__(self, net):
        self.net = net
        self.index = torch.tensor([0])

    def __call__(self, x):
        return self.net(x)[..., self.index].squeeze(-1)

    def score(self, x):
        return self(x)


def test_to_moves_modules_wherever_a_callable_keeps_them():
    torch.manual_seed(0)
    net = nn.Linear(2, 1)
    scorer = Scorer(net)
    callables = [
        nn.Sequential(net, nn.Flatten(-1)),
        lambda x: net(x)[..., 0],
        lambda x, net=net: net(x)[..., 0],
        functools.partial(scored, weights=torch.tensor([1.0, -2.0])),
        scorer,
        scorer.score,
    ]
    x = torch.tensor([[1.0, 2.0], [-1.0, 0.5]])
    for fn in callables:
        expected = BlackBox(fn)(x).double().reshape(-1)
        moved = (BlackBox(fn) * 2.0).to(torch.float64)
        torch.testing.assert_close(moved(x.double()).reshape(-1), 2 * expected)
    assert net.weight.dtype == torch.float32, "the module of the caller must stay as it was"
    assert BlackBox(scorer).to(torch.float64).fn.index.dtype == torch.int64


def test_to_leaves_alone_what_does_not_change():
    net = nn.Linear(2, 1)
    assert BlackBox(net).to(torch.float32).fn is net
    assert BlackBox(total).to(torch.float64).fn is total


def test_to_keeps_the_gradient():
    theta = torch.tensor([1.0, 2.0], requires_grad=True)
    Linear(theta).to(torch.float64)(torch.tensor([3.0, 4.0], dtype=torch.float64)).backward()
    torch.testing.assert_close(theta.grad, torch.tensor([3.0, 4.0]))


@pytest.mark.parametrize("reward", every_kind(), ids=lambda reward: type(reward).__name__)
def test_zero_dim_scale_of_double_precision_keeps_the_dtype_of_rewards(reward):
    scale = torch.tensor(2.0, dtype=torch.float64)
    for x in (torch.tensor([1.0, 2.0]), torch.tensor([[1.0, 2.0]])):
        assert (reward * scale)(x).dtype == torch.float32
        assert (reward + scale)(x).dtype == torch.float32


@pytest.mark.parametrize("reward", every_kind(), ids=lambda reward: type(reward).__name__)
def test_scale_with_batch_dims_widens_the_result(reward):
    x = torch.tensor([1.0, 2.0])
    scale = torch.tensor([[1.0], [2.0], [0.5]])
    result = (reward * scale)(x)
    assert result.shape == (3, 1)
    torch.testing.assert_close(result, reward(x) * scale)
