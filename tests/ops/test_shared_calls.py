# SPDX-License-Identifier: Apache-2.0
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch

from pyro_tilt.ops.shared_calls import SharedCall, join, shared_call, take_calls

MODULE = torch.nn.Identity()


class Pair(NamedTuple):
    first: Any
    second: Any


@dataclass(frozen=True)
class Cache:
    keys: Any
    length: int


def call(fn, *args, key="fn", **options):
    return SharedCall(fn, args, options, key, MODULE)


def nested(n, seed, length=3):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 2, 5, generator=generator)
    return {"pair": Pair(x, [x[:, 0]]), "cache": Cache(x.transpose(1, 2), length), "none": None}


def grow(tokens, state):
    pair, cache = state["pair"], state["cache"]
    made = Cache(2 * cache.keys, cache.length + 1)
    return tokens + 1, {"pair": Pair(pair.first - 1, pair.second), "cache": made, "none": None}


def flat(state):
    tokens, rest = state
    return [tokens, *rest["pair"][:1], *rest["pair"].second, rest["cache"].keys]


@pytest.mark.parametrize("sizes", [(1, 3, 2), (2, 2), (4,)])
def test_parts_are_those_of_single_calls(sizes):
    calls = [call(grow, torch.arange(n) * 7, nested(n, n)) for n in sizes]
    assert len({each.kind() for each in calls}) == 1
    for each, part in zip(calls, join(calls)):
        alone = each.alone()
        assert part[1]["cache"].length == 4 and type(part[1]["pair"]) is Pair
        for ours, theirs in zip(flat(part), flat(alone)):
            assert torch.equal(ours, theirs)


def test_parts_that_lie_together_are_not_copied():
    seen = []

    def note(x):
        seen.append(x)
        return x

    whole = torch.randn(6, 4, 3).transpose(1, 2)
    parts = whole.split([1, 3, 2])
    join([call(note, part) for part in parts])
    assert seen[0].data_ptr() == whole.data_ptr() and torch.equal(seen[0], whole)
    for order in ([1, 0, 2], [0, 2], [0, 1, 1]):
        join([call(note, parts[i]) for i in order])
        assert torch.equal(seen[-1], torch.cat([parts[i] for i in order]))
    # The rows of another tensor of the same memory.
    join([call(note, whole[:1, :, :2]), call(note, whole[1:2, :, 1:3])])
    assert torch.equal(seen[-1], torch.cat([whole[:1, :, :2], whole[1:2, :, 1:3]]))


@pytest.mark.parametrize(
    "other",
    [
        call(grow, torch.arange(2), nested(2, 0, length=4)),
        call(grow, torch.arange(2), nested(2, 0), key="another"),
        call(grow, torch.arange(2).int(), nested(2, 0)),
        call(grow, torch.zeros(2, 1).long(), nested(2, 0)),
        call(grow, torch.arange(2), {**nested(2, 0), "none": 0}),
        call(grow, torch.arange(2), list(nested(2, 0).values())),
        call(grow, torch.arange(2), {**nested(2, 0), "none": torch.zeros(3)}),
        call(grow, torch.arange(2), {**nested(2, 0), "none": object()}),
    ],
)
def test_calls_of_another_kind(other):
    assert call(grow, torch.arange(3), nested(3, 1)).kind() != other.kind()


def test_states_whose_rows_cannot_be_told_are_like_no_other():
    odd = {"odd": object()}
    assert call(grow, torch.arange(2), odd).kind() != call(grow, torch.arange(2), odd).kind()


def test_a_result_without_the_rows_is_refused():
    calls = [call(lambda x: x.sum(0, keepdim=True), torch.ones(n, 2)) for n in (1, 2)]
    with pytest.raises(ValueError, match=r"shape \(1, 2\) for 3 rows"):
        join(calls)


def test_calls_are_plain_where_nobody_takes_them():
    def double(x, *, consume=False):
        return 2 * x if not consume else -x

    x = torch.ones(2)
    options = {"key": "double", "module": MODULE}
    assert shared_call(double, x, consume=True, **options).tolist() == [-1.0, -1.0]
    with take_calls(lambda made: (made.rows, made.alone().tolist())):
        assert shared_call(double, x, **options) == (2, [2.0, 2.0])
        with take_calls(None):
            assert shared_call(double, x, **options).tolist() == [2.0, 2.0]
    # What one caller gives up, another may keep.
    assert [part.tolist() for part in join([call(double, x, consume=True)])] == [[2.0, 2.0]]
