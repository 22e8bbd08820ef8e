# SPDX-License-Identifier: Apache-2.0
"""Moves everything that belongs to a particle, whatever it is kept in."""

from __future__ import annotations

import copy
import dataclasses
import numbers
from collections.abc import Callable
from functools import singledispatch
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["register_reindex", "reindex"]

Handler = Callable[[Any, Tensor], Any]


def reindex(state: Any, index: Tensor, *, size: int | None = None, path: str = "state") -> Any:
    r"""
    Gathers particles: element :math:`i` of the result is element ``index[i]`` of ``state``.

    ``state`` is any nesting of tensors and numpy arrays in tuples, named tuples, lists, dicts and
    dataclasses. Every tensor has the particles in front. Numbers, strings and None belong to no
    particle and stay. Other containers are taught by :func:`register_reindex`; those with a method
    ``reorder_cache``, as the caches of transformers have, are reordered by it in place.

    :param state: what is to be gathered.
    :param index: which particles, an integer tensor of shape ``(M,)``.
    :param size: number of particles in ``state``; by default that of ``index``.
    :param path: what an error calls ``state``.
    :returns: the same nesting, each tensor of shape ``(M, ...)``.
    :raises ValueError: for a tensor without the particle axis, naming its path.
    :raises TypeError: for an object of unknown type, naming its path.

    >>> moved = reindex({"x": torch.tensor([1.0, 2.0]), "t": 3}, torch.tensor([1, 1]))
    >>> moved["x"].tolist(), moved["t"]
    ([2.0, 2.0], 3)
    """
    count = len(index) if size is None else size
    if type(state) is Tensor:
        return _tensor(state, index, count, path)
    return _reindex(state, index, count, path)


def register_reindex(kind: type) -> Callable[[Handler], Handler]:
    """
    Teaches :func:`reindex` a container.

    :param kind: the type of the container; its subclasses follow.
    :returns: a decorator for a function of the container and the index that gives the gathered one.

    >>> class Cache:
    ...     def __init__(self, keys):
    ...         self.keys = keys
    >>> @register_reindex(Cache)
    ... def _(cache, index):
    ...     return Cache(cache.keys[index])
    >>> reindex([Cache(torch.tensor([5, 6]))], torch.tensor([1, 0]))[0].keys.tolist()
    [6, 5]
    """

    def decorate(function: Handler) -> Handler:
        def handler(state: Any, index: Tensor, size: int, path: str) -> Any:
            return function(state, index)

        _reindex.register(kind)(handler)
        return function

    return decorate


@singledispatch
def _reindex(state: Any, index: Tensor, size: int, path: str) -> Any:
    if dataclasses.is_dataclass(state) and not isinstance(state, type):
        # A copy keeps fields that __init__ does not take, and does not run __post_init__ again.
        moved = copy.copy(state)
        for field in dataclasses.fields(state):
            value = getattr(state, field.name)
            each = reindex(value, index, size=size, path=f"{path}.{field.name}")
            object.__setattr__(moved, field.name, each)
        return moved
    if hasattr(state, "reorder_cache"):
        state.reorder_cache(index)
        return state
    raise TypeError(
        f"{path}: cannot tell what belongs to a particle in {type(state).__name__}; keep it out of "
        "the state, or teach it to pyro_tilt.ops.reindex by register_reindex"
    )


@_reindex.register(Tensor)
def _tensor(state: Tensor, index: Tensor, size: int, path: str) -> Tensor:
    if state.dim() == 0 or state.shape[0] != size:
        raise ValueError(
            f"{path}: a tensor of shape {tuple(state.shape)} lacks the leftmost axis of the {size} "
            "particles; keep what particles share out of the state, or expand it"
        )
    if index.device != state.device:
        index = index.to(state.device)
    return state.index_select(0, index)


@_reindex.register(np.ndarray)
def _array(state: np.ndarray, index: Tensor, size: int, path: str) -> np.ndarray:
    if state.ndim == 0 or state.shape[0] != size:
        raise ValueError(
            f"{path}: an array of shape {state.shape} lacks the leading axis of {size} particles"
        )
    return state[index.cpu().numpy()]


@_reindex.register(tuple)
def _tuple(state: tuple, index: Tensor, size: int, path: str) -> tuple:
    if hasattr(state, "_fields"):
        moved = [
            reindex(value, index, size=size, path=f"{path}.{name}")
            for name, value in zip(state._fields, state)
        ]
        return type(state)(*moved)
    return tuple(_items(state, index, size, path))


@_reindex.register(list)
def _list(state: list, index: Tensor, size: int, path: str) -> list:
    return _items(state, index, size, path)


def _items(state: tuple | list, index: Tensor, size: int, path: str) -> list:
    return [reindex(value, index, size=size, path=f"{path}[{i}]") for i, value in enumerate(state)]


@_reindex.register(dict)
def _dict(state: dict, index: Tensor, size: int, path: str) -> dict:
    moved = copy.copy(state)
    for key, value in state.items():
        moved[key] = reindex(value, index, size=size, path=f"{path}[{key!r}]")
    return moved


@_reindex.register(numbers.Number)
@_reindex.register(str)
@_reindex.register(bytes)
@_reindex.register(type(None))
@_reindex.register(torch.dtype)
@_reindex.register(torch.device)
@_reindex.register(torch.Size)
def _shared(state: Any, index: Tensor, size: int, path: str) -> Any:
    return state
