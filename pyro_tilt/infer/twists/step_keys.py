# SPDX-License-Identifier: Apache-2.0
"""Tells which step an element of ``xs`` belongs to."""

from __future__ import annotations

import hashlib
import numbers
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["StepKeys"]

# Larger tensors are known by a digest of their bytes.
_LONGEST = 16


class StepKeys:
    """
    The position of each element of ``xs``, which must differ from each other.

    Numbers, strings, None, tensors and arrays, and tuples or lists of them are compared by value.

    :param xs: what a scan goes over.
    :raises ValueError: if two elements are equal.
    :raises TypeError: for elements of other types.

    >>> keys = StepKeys(torch.tensor([0.9, 0.4, 0.1]))
    >>> len(keys), keys(torch.tensor(0.4))
    (3, 1)
    """

    def __init__(self, xs: Iterable[Any]) -> None:
        self._places: dict[Any, int] = {}
        for place, x in enumerate(xs):
            first = self._places.setdefault(_key(x), place)
            if first != place:
                raise ValueError(
                    f"steps {first} and {place} of the scan have equal elements of xs, so that a "
                    "twist cannot tell them apart; let xs count them, as in list(enumerate(xs))"
                )
        if not self._places:
            raise ValueError("the scan has no steps, so there is nothing to twist")

    def __len__(self) -> int:
        return len(self._places)

    def __call__(self, x: Any) -> int:
        """
        The position of an element.

        :param x: an element of ``xs``.
        :raises ValueError: if it is none.
        """
        try:
            return self._places[_key(x)]
        except KeyError:
            raise ValueError(
                f"{x!r} is none of the {len(self)} steps that the twist was made for; make it for "
                "a scan over the same xs"
            ) from None

    def to_list(self) -> list[Any]:
        """The keys in order, made of plain numbers, strings and lists."""
        return [_plain(key) for key in self._places]

    @classmethod
    def from_list(cls, keys: Iterable[Any]) -> StepKeys:
        """
        Rebuilds the keys from :meth:`to_list`.

        :param keys: the list.
        """
        made = cls.__new__(cls)
        made._places = {_frozen(key): place for place, key in enumerate(keys)}
        return made


def _key(x: Any) -> Any:
    if x is None or isinstance(x, str):
        return x
    if isinstance(x, Tensor | np.ndarray | np.generic):
        array = x.detach().cpu().to(torch.float64).numpy() if isinstance(x, Tensor) else x
        array = np.ascontiguousarray(array, dtype=np.float64)
        if not np.ndim(x):
            return float(array.reshape(()))
        if array.size > _LONGEST:
            return "array", *array.shape, hashlib.sha256(array.tobytes()).hexdigest()
        return "array", *array.shape, *array.ravel().tolist()
    if isinstance(x, numbers.Real):
        return float(x)
    if isinstance(x, tuple | list):
        return tuple(_key(item) for item in x)
    raise TypeError(
        f"an element of xs is a {type(x).__name__}, by which a twist cannot tell the step; use "
        "numbers, strings, tensors or tuples of them"
    )


def _plain(key: Any) -> Any:
    return [_plain(item) for item in key] if isinstance(key, tuple) else key


def _frozen(key: Any) -> Any:
    return tuple(_frozen(item) for item in key) if isinstance(key, list) else key
