# SPDX-License-Identifier: Apache-2.0
"""Single rows of what belongs to particles: puts them back, and draws them from a kept law."""

from __future__ import annotations

import copy
import dataclasses
import numbers
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from pyro_tilt.ops.reindex import reindex

__all__ = ["draw_rows", "fork", "is_shared", "put_rows", "spread"]


def fork(carry: Any, index: Tensor, size: int) -> Any:
    """
    Some particles of a carry, in memory of their own, so that a step may change it in place.

    :param carry: see :func:`~pyro_tilt.ops.reindex`, which would itself reorder a cache in place.
    :param index: which particles, shape (M,).
    :param size: number of particles in ``carry``.
    """
    if is_shared(carry, size):
        return copy.deepcopy(carry)
    return reindex(copy.deepcopy(carry) if _reorders(carry) else carry, index, size=size)


def is_shared(carry: Any, size: int) -> bool:
    """Whether a carry is the same for all particles, as a first one may be."""
    tensors: list[Tensor] = []

    def note(leaf: Tensor) -> Tensor:
        tensors.append(leaf)
        return leaf

    _map_tensors(note, carry)
    return bool(tensors) and not any(each.shape[:1] == (size,) for each in tensors)


def spread(carry: Any, size: int) -> Any:
    """A carry for functions of single particles, who all see the same where it is shared."""
    if not is_shared(carry, size):
        return carry
    return _map_tensors(lambda leaf: leaf.expand(size, *leaf.shape), carry)


def _map_tensors(fn: Callable[[Tensor], Tensor], state: Any) -> Any:
    def leaf(each: Any) -> Any:
        if isinstance(each, Tensor):
            return fn(each)
        # To tree_map a dataclass is a leaf.
        if dataclasses.is_dataclass(each) and not isinstance(each, type):
            fields = {f.name: getattr(each, f.name) for f in dataclasses.fields(each) if f.init}
            mapped = {name: _map_tensors(fn, value) for name, value in fields.items()}
            return dataclasses.replace(each, **mapped)
        return each

    return tree_map(leaf, state)


def _reorders(state: Any) -> bool:
    if isinstance(state, Tensor):
        return False
    if isinstance(state, Mapping):
        return any(_reorders(each) for each in state.values())
    if isinstance(state, list | tuple):
        return any(_reorders(each) for each in state)
    if dataclasses.is_dataclass(state):
        fields = dataclasses.fields(state)
        return any(_reorders(getattr(state, field.name)) for field in fields)
    return hasattr(state, "reorder_cache")


def put_rows(state: Any, rows: Tensor, new: Any, *, path: str = "carry") -> Any:
    """
    The state with some particles replaced; the counterpart of :func:`~pyro_tilt.ops.reindex`.

    :param state: any nesting of tensors in tuples, named tuples, lists, dicts and dataclasses, and
        of objects with a ``__dict__`` such as caches, whose attributes are walked alike.
    :param rows: which particles, shape (M,).
    :param new: the same nesting, each tensor of shape (M, ...).
    :param path: what an error calls ``state``.
    :raises TypeError: for a container of another kind, naming its path.

    >>> put_rows({"x": torch.zeros(3)}, torch.tensor([2]), {"x": torch.ones(1)})["x"].tolist()
    [0.0, 0.0, 1.0]
    """
    if isinstance(state, Tensor):
        if state.shape[1:] != new.shape[1:] or len(new) != len(rows):
            raise ValueError(
                f"{path}: {len(rows)} particles brought back a tensor of shape "
                f"{tuple(new.shape)} where all hold {tuple(state.shape)}"
            )
        return state.index_copy(0, rows.to(state.device), new.to(state.dtype))
    moved: Any
    if isinstance(state, np.ndarray):
        moved = state.copy()
        moved[rows.cpu().numpy()] = new
        return moved
    if isinstance(state, Mapping):
        moved = copy.copy(state)
        for key in state:
            moved[key] = put_rows(state[key], rows, new[key], path=f"{path}[{key!r}]")
        return moved
    if isinstance(state, list | tuple):
        items = [
            put_rows(old, rows, each, path=f"{path}[{i}]")
            for i, (old, each) in enumerate(zip(state, new, strict=True))
        ]
        return type(state)(*items) if hasattr(state, "_fields") else type(state)(items)
    if dataclasses.is_dataclass(state) and not isinstance(state, type):
        moved = copy.copy(state)
        for field in dataclasses.fields(state):
            old, each = getattr(state, field.name), getattr(new, field.name)
            value = put_rows(old, rows, each, path=f"{path}.{field.name}")
            object.__setattr__(moved, field.name, value)
        return moved
    if state is None or isinstance(state, numbers.Number | str | bytes):
        # What particles share is the new step's, as a counter of steps is.
        return new
    if hasattr(state, "__dict__") and type(state) is type(new):
        moved = copy.copy(state)
        for name, old in vars(state).items():
            each = getattr(new, name)
            kept = _is_shared(old, each, rows)
            moved.__dict__[name] = (
                each if kept else put_rows(old, rows, each, path=f"{path}.{name}")
            )
        return moved
    if type(state) is type(new) and isinstance(state, torch.dtype | torch.device | torch.Size):
        return new
    raise TypeError(
        f"{path}: a step that is drawn again for some chains cannot put their rows back into "
        f"{type(state).__name__}; carry tensors in tuples, lists, dicts or dataclasses"
    )


def _is_shared(old: Any, new: Any, rows: Tensor) -> bool:
    """Whether an attribute of an object of unknown kind belongs to no particle."""
    if callable(old) or isinstance(old, torch.dtype | torch.device | torch.Size):
        return True
    if not isinstance(old, Tensor):
        return False
    # A row axis follows the number of rows; what keeps its shape is common to all.
    return not old.dim() or (old.shape == new.shape and len(new) != len(rows))


_PARAMETERS: dict[type, tuple[str, ...]] = {
    dist.Normal: ("loc", "scale"),
    dist.Laplace: ("loc", "scale"),
    dist.MultivariateNormal: ("loc", "scale_tril"),
}
_PROBABILITIES = (dist.Categorical, dist.OneHotCategorical, dist.Bernoulli)


def draw_rows(law: Any, rows: Tensor, repeats: int) -> Tensor:
    """
    Fresh values of some particles, each ``repeats`` times in a row.

    Laws of known kinds are cut to their rows; any other is drawn from for all particles.

    :param law: a distribution whose leftmost batch axis is that of the particles.
    :param rows: which particles, shape (M,).
    :param repeats: draws of each.
    :returns: shape (M * repeats, ...).

    >>> law = dist.Normal(torch.tensor([0.0, 100.0]), 1e-3)
    >>> draw_rows(law, torch.tensor([1]), 2).round().tolist()
    [100.0, 100.0]
    """
    if len(rows) == law.batch_shape[0]:
        if repeats == 1:
            return law.sample()
        return law.sample((repeats,)).transpose(0, 1).flatten(0, 1)
    index = rows.repeat_interleave(repeats)
    cut = _cut(law, lambda value: value[index.to(value.device)])
    if cut is not None:
        return cut.sample()
    place = torch.arange(repeats).repeat(len(rows))
    full = law.sample((repeats,))
    return full[place.to(full.device), index.to(full.device)]


def _cut(law: Any, take: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(law, dist.Independent):
        inner = _cut(law.base_dist, take)
        return None if inner is None else inner.to_event(law.reinterpreted_batch_ndims)
    if type(law) in _PARAMETERS:
        values = {name: take(getattr(law, name)) for name in _PARAMETERS[type(law)]}
        return type(law)(**values, validate_args=False)
    if type(law) in _PROBABILITIES:
        inner = getattr(law, "_categorical", law)
        name = "probs" if "probs" in inner.__dict__ else "logits"
        return type(law)(**{name: take(getattr(inner, name))}, validate_args=False)
    return None
