# SPDX-License-Identifier: Apache-2.0
"""What a network reads of a carry."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["carry_features", "count_particles", "holds_particles"]


def carry_features(carry: Any) -> Tensor:
    """
    All tensors of a carry, flattened and side by side.

    A part of the carry that has a method ``features()`` gives its own, of shape (N, d), in place of
    its tensors: that of a language program counts its tokens and tells which were the last
    (:meth:`pyro_tilt.language.Decoding.features`). Other integers become numbers; where they are
    labels, a function of one's own that gives one-hot vectors will do better.

    :param carry: any nesting of tensors of shape (N, ...) in tuples, lists, dicts and dataclasses.
    :returns: shape (N, d), at least float32.
    :raises TypeError: if the carry holds no tensor.

    >>> carry_features((torch.zeros(5, 2), {"count": torch.ones(5, dtype=torch.long)})).shape
    torch.Size([5, 3])
    """
    found = [part for part in _tensors(carry, own=True) if part.dim()]
    if not found:
        raise TypeError(
            f"features: the carry ({type(carry).__name__}) holds no tensor with a particle axis; "
            "give features=, a function of the carry to a tensor of shape (N, d)"
        )
    parts = [part.reshape(part.shape[0], -1) for part in found]
    dtype = torch.float32
    for part in parts:
        if part.is_floating_point():
            dtype = torch.promote_types(dtype, part.dtype)
    return torch.cat([part.to(dtype) for part in parts], -1)


def count_particles(carry: Any) -> int:
    """
    The number of particles in a carry, read off its first tensor.

    :param carry: any nesting of tensors with the particles leftmost.
    :raises TypeError: if it holds no tensor with an axis.

    >>> count_particles({"x": torch.zeros(5, 2)})
    5
    """
    for part in _tensors(carry):
        if part.dim():
            return part.shape[0]
    raise TypeError(f"the carry ({type(carry).__name__}) holds no tensor with a particle axis")


def holds_particles(carry: Any) -> bool:
    """
    Whether a carry holds any tensor with an axis, and so tells particles apart.

    :param carry: any nesting of tensors with the particles leftmost.

    >>> holds_particles((None, 3)), holds_particles((None, torch.zeros(3)))
    (False, True)
    """
    return any(part.dim() for part in _tensors(carry))


def _tensors(carry: Any, *, own: bool = False) -> Iterator[Tensor]:
    if isinstance(carry, Tensor):
        yield carry
    elif own and callable(getattr(carry, "features", None)):
        yield carry.features()
    elif isinstance(carry, Mapping):
        for value in carry.values():
            yield from _tensors(value, own=own)
    elif isinstance(carry, list | tuple):
        for value in carry:
            yield from _tensors(value, own=own)
    elif dataclasses.is_dataclass(carry):
        for field in dataclasses.fields(carry):
            yield from _tensors(getattr(carry, field.name), own=own)
