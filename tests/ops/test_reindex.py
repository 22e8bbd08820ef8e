# SPDX-License-Identifier: Apache-2.0
"""One function moves everything that belongs to a particle."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from pyro_tilt.ops import register_reindex, reindex

INDEX = torch.tensor([2, 0, 0])
X = torch.tensor([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]])
Pair = namedtuple("Pair", ["left", "right"])


@dataclass(frozen=True)
class State:
    x: torch.Tensor
    time: int = 0
    cache: list = field(default_factory=list, init=False)


def test_every_nesting_moves_and_the_original_stays():
    frozen = State(X)
    frozen.cache.append(X[:, 0])
    state = {
        "tuple": (X, 3, None, "name"),
        "named": Pair(X, [X[:, 1]]),
        "ordered": OrderedDict(b=X, a=1.5),
        "frozen": frozen,
        "array": np.array([1, 2, 3]),
        "empty": (),
        "flag": True,
    }
    moved = reindex(state, INDEX)
    expected = X[INDEX]
    assert torch.equal(moved["tuple"][0], expected)
    assert moved["tuple"][1:] == (3, None, "name")
    assert isinstance(moved["named"], Pair)
    assert torch.equal(moved["named"].right[0], expected[:, 1])
    assert isinstance(moved["ordered"], OrderedDict)
    assert list(moved["ordered"]) == ["b", "a"]
    assert torch.equal(moved["frozen"].cache[0], expected[:, 0])
    assert moved["frozen"].time == 0
    assert moved["array"].tolist() == [3, 1, 1]
    assert moved["flag"] is True
    assert torch.equal(state["tuple"][0], X)
    assert torch.equal(frozen.cache[0], X[:, 0])


def test_another_number_of_particles():
    moved = reindex([X], torch.tensor([1]), size=3)
    assert torch.equal(moved[0], X[1:2])


@pytest.mark.parametrize(
    ("state", "path"),
    [
        ({"a": [X, (torch.tensor(1.0),)]}, r"carry\['a'\]\[1\]\[0\]"),
        (Pair(X, torch.zeros(2, 3)), r"carry\.right"),
        (State(torch.zeros(4)), r"carry\.x"),
        ((np.zeros(2),), r"carry\[0\]"),
    ],
)
def test_a_leaf_without_the_axis_is_named(state, path):
    with pytest.raises(ValueError, match=path):
        reindex(state, INDEX, path="carry")


def test_an_unknown_object_is_named():
    with pytest.raises(TypeError, match=r"state\[0\].*register_reindex"):
        reindex([object()], INDEX)


def test_a_container_is_taught_with_its_subclasses():
    class Cache:
        def __init__(self, keys):
            self.keys = keys

    class Deeper(Cache):
        pass

    @register_reindex(Cache)
    def move(cache, index):
        return type(cache)(cache.keys[index])

    assert torch.equal(reindex(Deeper(X), INDEX).keys, X[INDEX])


def test_caches_of_transformers_reorder_themselves():
    transformers = pytest.importorskip("transformers")
    cache = transformers.DynamicCache()
    keys = torch.arange(3.0).reshape(3, 1, 1, 1).expand(3, 2, 4, 5).clone()
    cache.update(keys, keys + 1.0, 0)
    moved = reindex({"cache": cache, "x": X}, INDEX)
    again, _ = moved["cache"].update(keys[..., :1, :], keys[..., :1, :], 0)
    assert again[:, 0, 0, 0].tolist() == [2.0, 0.0, 0.0]
