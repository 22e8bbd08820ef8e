# SPDX-License-Identifier: Apache-2.0
"""The state of particles as plain tensors, numbers and lists, which no code is needed to read."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

_PLAIN = (type(None), bool, int, float, complex, str, torch.dtype, torch.device, torch.Size)


def pack(state: Any, path: str = "state") -> Any:
    """
    A nesting of containers as lists and dicts of strings, which ``torch.load`` reads as weights.

    :param state: tensors, numpy arrays and numbers in tuples, named tuples, lists, dicts and
        dataclasses.
    :param path: what an error calls ``state``.
    :raises TypeError: for an object of another type, naming its path.

    >>> unpack(pack({"x": (1, torch.tensor([2.0]))}), ())
    {'x': (1, tensor([2.]))}
    """
    if isinstance(state, Tensor):
        return state.detach()
    if type(state) in _PLAIN:
        return state
    if isinstance(state, np.ndarray | np.generic):
        kind = "array" if isinstance(state, np.ndarray) else "scalar"
        return {"kind": kind, "value": torch.from_numpy(np.array(state))}
    made: dict[str, Any] = {"kind": _kind(state), "type": _name(type(state))}
    if made["kind"] == "fields":
        names = [field.name for field in dataclasses.fields(state)]
        parts = {name: (getattr(state, name), f"{path}.{name}") for name in names}
        made["items"] = {name: pack(*part) for name, part in parts.items()}
    elif made["kind"] == "dict":
        made["keys"] = [pack(key, path) for key in state]
        made["items"] = [pack(value, f"{path}[{key!r}]") for key, value in state.items()]
    elif made["kind"] == "":
        raise TypeError(
            f"{path}: a {type(state).__name__} cannot be saved as plain tensors; keep the state in "
            "tensors, tuples, lists, dicts or dataclasses, or run without save_to"
        )
    else:
        made["items"] = [pack(value, f"{path}[{i}]") for i, value in enumerate(state)]
    return made


def unpack(packed: Any, like: Any) -> Any:
    """
    What :func:`pack` was given.

    :param packed: what it returned.
    :param like: any nesting that holds an object of each named tuple, dataclass and special dict.
    :raises TypeError: for a type of which ``like`` holds none.
    """
    return _unpack(packed, {_name(type(each)): each for each in _containers(like)})


def _unpack(packed: Any, known: Mapping[str, Any]) -> Any:
    if not isinstance(packed, dict):
        return packed
    kind = packed["kind"]
    if kind in ("array", "scalar"):
        value = packed["value"].numpy()
        return value if kind == "array" else value[()]
    name, items = packed["type"], packed["items"]
    if kind == "fields":
        made = copy.copy(_example(known, name))
        for field, value in items.items():
            object.__setattr__(made, field, _unpack(value, known))
        return made
    values = [_unpack(value, known) for value in items]
    if kind == "named":
        return type(_example(known, name))(*values)
    if kind == "dict":
        table = {} if name == _name(dict) else copy.copy(_example(known, name))
        table.clear()
        table.update(zip([_unpack(key, known) for key in packed["keys"]], values))
        return table
    return tuple(values) if kind == "tuple" else values


def _kind(state: Any) -> str:
    if isinstance(state, tuple):
        return "named" if hasattr(state, "_fields") else "tuple"
    if dataclasses.is_dataclass(state) and not isinstance(state, type):
        return "fields"
    return "list" if type(state) is list else "dict" if isinstance(state, dict) else ""


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _example(known: Mapping[str, Any], name: str) -> Any:
    if name not in known:
        raise TypeError(
            f"the saved state holds a {name}, and the state of the program after its first step "
            "holds none to learn from"
        )
    return known[name]


def _containers(state: Any) -> Iterator[Any]:
    kind = "" if isinstance(state, Tensor) else _kind(state)
    if not kind:
        return
    yield state
    if kind == "fields":
        inner = [getattr(state, field.name) for field in dataclasses.fields(state)]
    else:
        inner = list(state.values()) if kind == "dict" else list(state)
    for value in inner:
        yield from _containers(value)


def leaves(state: Any) -> Iterator[Any]:
    """Tensors, arrays and plain values of a nesting, in order; other objects are passed over."""
    if isinstance(state, np.ndarray | np.generic):
        yield torch.from_numpy(np.array(state))
    elif isinstance(state, Tensor) or type(state) in _PLAIN:
        yield state
    elif _kind(state) == "fields":
        for field in dataclasses.fields(state):
            yield from leaves(getattr(state, field.name))
    elif _kind(state):
        for value in state.values() if isinstance(state, dict) else state:
            yield from leaves(value)


def digest(state: Any, *, tensors_only: bool = False) -> str:
    """A checksum of the leaves of a nesting."""
    total = hashlib.sha256()
    for leaf in leaves(state):
        if isinstance(leaf, Tensor):
            value = leaf.detach().cpu().contiguous()
            total.update(f"{value.dtype}{tuple(value.shape)}".encode())
            total.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
        elif not tensors_only:
            total.update(repr(leaf).encode())
    return total.hexdigest()


def moments(state: Any) -> list[float]:
    """Mean and mean square of each tensor, which say whether two runs drew the same."""
    found: list[float] = []
    for leaf in leaves(state):
        if isinstance(leaf, Tensor) and leaf.numel() and not leaf.is_complex():
            value = leaf.detach().double().cpu().nan_to_num(nan=0.0, posinf=1e6, neginf=-1e6)
            found += [float(value.mean()), float(value.square().mean())]
    return found


def random_states(generator: torch.Generator | None) -> dict[str, Any]:
    """The random states of torch, numpy and random, and that of ``generator``."""
    name, keys, *rest = tuple(np.random.get_state())
    states = {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [name, torch.from_numpy(np.asarray(keys, np.int64)), *rest],
        "python": random.getstate(),
    }
    if generator is not None:
        states["generator"] = generator.get_state()
    return states


def set_random_states(states: Mapping[str, Any], generator: torch.Generator | None) -> None:
    """Puts back what :func:`random_states` gave."""
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available() and states["cuda"]:
        torch.cuda.set_rng_state_all(states["cuda"])
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    random.setstate(states["python"])
    if generator is not None and "generator" in states:
        generator.set_state(states["generator"])
