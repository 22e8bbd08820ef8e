# SPDX-License-Identifier: Apache-2.0
"""Sums, scalings, casts and pickles of rewards over random shapes and dtypes."""

import pickle

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_tilt.rewards import (
    BlackBox,
    Bounded,
    Constraint,
    Linear,
    LinearIn,
    LowDim,
    MaxAffine,
    Quadratic,
    Scaled,
    evaluate,
)

PROPERTY = settings(deadline=None, derandomize=True, max_examples=60)
DTYPES = st.sampled_from([torch.float32, torch.float64])
KINDS = (Linear, LinearIn, Quadratic, MaxAffine, LowDim, BlackBox, Bounded, Constraint)
STRUCTURED = (Linear, LinearIn, Quadratic, MaxAffine, LowDim)
# What the sum of two structured rewards is; other pairs make a generic sum.
MERGED = {
    (Linear, Linear): Linear,
    (Linear, LinearIn): LinearIn,
    (LinearIn, LinearIn): LinearIn,
    (Linear, Quadratic): Quadratic,
    (Quadratic, Quadratic): Quadratic,
    (Linear, MaxAffine): MaxAffine,
}


def waves(x):
    return x.sum(-1).sin()


def rising(x):
    return x[..., 0] > -0.5


def broadcastable(draw, batch):
    """A shape that broadcasts to batch: some dims are one, some leading ones left out."""
    sizes = [size if draw(st.booleans()) else 1 for size in batch]
    return tuple(sizes[draw(st.integers(0, len(sizes))) :])


def numbers(draw, shape, dtype):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def make(draw, kind, batch, size, dtype):
    """A reward of vectors of the given size, with parameters batched at random."""

    def parameter(*event):
        return numbers(draw, broadcastable(draw, batch) + event, dtype)

    if kind is Linear:
        return Linear(parameter(size), event_dim=1, offset=parameter())
    if kind is LinearIn:
        return LinearIn(1, x=parameter(size), cos=parameter(size), offset=parameter())
    if kind is Quadratic:
        return Quadratic(parameter(size, size), parameter(size), parameter())
    if kind is MaxAffine:
        pieces = draw(st.integers(1, 3))
        return MaxAffine(parameter(pieces, size), parameter(pieces))
    if kind is LowDim:
        return LowDim(waves, parameter(draw(st.integers(1, 3)), size))
    if kind is BlackBox:
        return BlackBox(waves, 1)
    return Bounded(waves, -1.0, 1.0, 1) if kind is Bounded else Constraint(rising, 1)


@st.composite
def cases(draw, kinds=KINDS, count=2):
    batch = tuple(draw(st.lists(st.integers(0, 3), max_size=3)))
    size, dtype = draw(st.integers(1, 3)), draw(DTYPES)
    rewards = [make(draw, draw(st.sampled_from(kinds)), batch, size, dtype) for _ in range(count)]
    scale = numbers(draw, broadcastable(draw, batch), dtype)
    return rewards, scale, numbers(draw, (*batch, size), dtype), batch, dtype


def close(actual, expected, dtype):
    tolerance = 2e-4 if dtype == torch.float32 else 1e-11
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@PROPERTY
@given(cases())
def test_sum_agrees_with_pointwise_arithmetic(case):
    (left, right), _, x, batch, dtype = case
    total = left + right
    result = evaluate(total, x, shape=batch)
    assert result.dtype == dtype
    close(result, left(x) + right(x), dtype)
    kinds = (type(left), type(right))
    merged = MERGED.get(kinds) or MERGED.get(kinds[::-1])
    assert merged is None or type(total) is merged


@PROPERTY
@given(cases(STRUCTURED))
def test_scaled_difference_agrees_with_pointwise_arithmetic(case):
    (left, right), scale, x, batch, dtype = case
    result = evaluate((left - 0.5 * right) * scale + 2.0, x, shape=batch)
    assert result.dtype == dtype
    close(result, (left(x) - 0.5 * right(x)) * scale + 2.0, dtype)


@PROPERTY
@given(cases(count=1), st.sampled_from([0.0, 0.5, 3.0]))
def test_nonnegative_scale_agrees_with_pointwise_arithmetic(case, factor):
    (reward,), _, x, batch, dtype = case
    scaled = reward * factor
    expected = torch.zeros(batch, dtype=dtype) if factor == 0 else reward(x) * factor
    close(evaluate(scaled, x, shape=batch), expected, dtype)
    keeps = type(reward) is not BlackBox and (factor > 0 or type(reward) is not Constraint)
    assert type(scaled) is (type(reward) if keeps else Scaled)


@PROPERTY
@given(cases(count=3))
def test_bounds_of_combinations_hold(case):
    (first, second, third), scale, x, _, _ = case
    reward = first + 2.0 * second + third * scale.abs()
    values = reward(x).double()
    assert bool((values >= reward.lower_bound - 1e-3).all())
    assert bool((values <= reward.upper_bound + 1e-3).all())


@PROPERTY
@given(cases(STRUCTURED, count=1))
def test_convexity_flags_hold_on_chords(case):
    (reward,), scale, x, _, dtype = case
    scaled = reward * scale
    y = 1.0 - 2.0 * x.flip(-1)
    gap = scaled((x + y) / 2) - (scaled(x) + scaled(y)) / 2
    slack = 1e-3 if dtype == torch.float32 else 1e-9
    assert not scaled.convex or bool((gap <= slack).all())
    assert not scaled.concave or bool((gap >= -slack).all())


@PROPERTY
@given(cases(), DTYPES)
def test_cast_and_back(case, other):
    (left, right), _, x, batch, dtype = case
    reward = 2.0 * left + right
    cast = reward.to(other)
    assert evaluate(cast, x.to(other), shape=batch).dtype == other
    close(cast.to(dtype)(x), reward(x), torch.float32 if other != dtype else dtype)
    close(cast(x.to(other)).to(dtype), reward(x), torch.float32 if other != dtype else dtype)


@PROPERTY
@given(cases())
def test_pickle_and_back(case):
    (left, right), scale, x, _, _ = case
    reward = left * scale.abs() + right
    again = pickle.loads(pickle.dumps(reward))
    assert type(again) is type(reward) and repr(again) == repr(reward)
    assert torch.equal(again(x), reward(x))


@PROPERTY
@given(st.data())
def test_linear_sums_any_event(data):
    batch = tuple(data.draw(st.lists(st.integers(0, 3), max_size=2)))
    event = tuple(data.draw(st.lists(st.integers(1, 3), max_size=3)))
    dtype = data.draw(DTYPES)
    slopes = [numbers(data.draw, broadcastable(data.draw, batch) + event, dtype) for _ in range(2)]
    scale = numbers(data.draw, broadcastable(data.draw, batch), dtype)
    x = numbers(data.draw, batch + event, dtype)
    dims = tuple(range(-len(event), 0))
    reward = scale * (Linear(slopes[0], len(event)) - Linear(slopes[1], len(event)))
    assert type(reward) is Linear and reward.event_shape == event
    expected = (slopes[0] - slopes[1]) * x
    expected = scale * (expected.sum(dims) if dims else expected)
    result = evaluate(reward, x, shape=batch)
    assert result.dtype == dtype
    close(result, expected, dtype)


@PROPERTY
@given(st.data())
def test_scalar_rewards_are_elementwise(data):
    batch = tuple(data.draw(st.lists(st.integers(0, 3), max_size=2)))
    dtype = data.draw(DTYPES)
    A, b, c, theta = (numbers(data.draw, broadcastable(data.draw, batch), dtype) for _ in range(4))
    x = numbers(data.draw, batch, dtype)
    reward = Quadratic(A, b, c, event_dim=0) + Linear(theta, event_dim=0)
    assert type(reward) is Quadratic
    close(evaluate(reward, x, shape=batch), A * x**2 + (b + theta) * x + c, dtype)
    whole = (3 * x).to(torch.int64)
    close(reward(whole), reward(whole.to(dtype)), dtype)
