# SPDX-License-Identifier: Apache-2.0
"""Single rows of what belongs to particles: puts them back, and draws them from a kept law."""

from __future__ import annotations

import copy
import dataclasses
import numbers
from collections.abc import Callable, Mapping
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

__all__ = ["draw_rows", "put_rows"]


def put_rows(state: Any, rows: Tensor, new: Any, *, path: str = "carry") -> Any:
    """
    The state with some particles replaced; the counterpart of :func:`~pyro_tilt.ops.reindex`.

    :param state: any nesting of tensors in tuples, named tuples, lists, dicts and dataclasses.
    :param rows: which particles, shape (M,).
    :param new: the same nesting, each tensor of shape (M, ...).
    :param path: what an error calls ``state``.
    :raises TypeError: for a container of another kind, naming its path.

    >>> put_rows({"x": torch.zeros(3)}, torch.tensor([2]), {"x": torch.ones(1)})["x"].tolist()
    [0.0, 0.0, 1.0]
    """
    if isinstance(state, Tensor):
        return state.index_copy(0, rows.to(state.device), new.to(state.dtype))
    if isinstance(state, Mapping):
        moved: Any = copy.copy(state)
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
    raise TypeError(
        f"{path}: a step that is drawn again for some chains cannot put their rows back into "
        f"{type(state).__name__}; carry tensors in tuples, lists, dicts or dataclasses"
    )


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
