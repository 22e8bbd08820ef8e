# SPDX-License-Identifier: Apache-2.0
"""Calls on rows that do not depend on one another, which may be run together with other such calls.

A call is made where a program needs a network. By itself it is the plain call; where several
programs run side by side, whoever runs them takes the calls, joins their rows and hands out the
parts of the result.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pyro_tilt.ops.ragged import Ragged

__all__ = ["SharedCall", "check_ragged", "join", "join_ragged", "shared_call", "take_calls"]

Taker = Callable[["SharedCall"], Any]
_TAKER: ContextVar[Taker | None] = ContextVar("taker of shared calls", default=None)


@dataclass
class SharedCall:
    """
    A call whose result has the rows of its arguments, one by one.

    :ivar fn: what is called.
    :ivar args: any nesting of tensors with the rows in front, and of numbers that rows share.
    :ivar options: keyword arguments that change no result and are left out of joined calls.
    :ivar key: calls of one key give the same rows the same results.
    :ivar module: whose forward pass ``fn`` is.
    :ivar most: the most rows of one call; None for any number.
    :ivar ragged: joins it to calls whose rows have another length; None where nothing can.
    :ivar rows: the rows of this one.
    """

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    options: dict[str, Any]
    key: Hashable
    module: nn.Module
    most: int | None = None
    ragged: Ragged | None = None
    rows: int = field(init=False)

    def __post_init__(self) -> None:
        self.rows = len(next(iter(_leaves(self.args))))

    def alone(self) -> Any:
        """The result of the plain call."""
        return self.fn(*self.args, **self.options)

    def kind(self) -> Hashable:
        """Calls of one kind can be joined: the same key, and tensors that differ in rows alone."""
        return self.key, _shape(self.args, self.rows)

    def ragged_kind(self) -> Hashable | None:
        """Calls of one such kind can be joined whatever their lengths; None for no others."""
        kind = None if self.ragged is None else self.ragged.kind(*self.args)
        return None if kind is None else (self.key, kind)

    def length(self) -> int:
        """Of its rows, where they may be padded; else 0."""
        return 0 if self.ragged is None else self.ragged.length(*self.args)


def shared_call(
    fn: Callable[..., Any],
    *args: Any,
    key: Hashable,
    module: nn.Module,
    most: int | None = None,
    ragged: Ragged | None = None,
    **options: Any,
) -> Any:
    """
    Calls ``fn``, together with others where somebody takes calls.

    :param fn: see :class:`SharedCall`, as are the others.
    """
    taker = _TAKER.get()
    if taker is None:
        return fn(*args, **options)
    return taker(SharedCall(fn, args, options, key, module, most, ragged))


@contextmanager
def take_calls(taker: Taker | None) -> Iterator[None]:
    """
    Hands the calls that this thread makes in the block to ``taker``.

    :param taker: a function of a :class:`SharedCall` to its result; None for plain calls.
    """
    token = _TAKER.set(taker)
    try:
        yield
    finally:
        _TAKER.reset(token)


def join(calls: Sequence[SharedCall]) -> list[Any]:
    """
    Runs calls of one kind as one.

    :param calls: at least one, of one kind.
    :returns: the result of each.
    :raises ValueError: where the result lacks the rows of the arguments.

    >>> def double(x):
    ...     return 2 * x
    >>> module = torch.nn.Identity()
    >>> calls = [SharedCall(double, (torch.ones(n),), {}, "x2", module) for n in (1, 3)]
    >>> [part.tolist() for part in join(calls)]
    [[2.0], [2.0, 2.0, 2.0]]
    """
    sizes = [call.rows for call in calls]
    columns = zip(*(_leaves(call.args) for call in calls))
    args = _rebuilt(calls[0].args, iter([_concatenated(column) for column in columns]))
    # Without the options: what one caller gives up another may keep, and parts may share memory.
    result = calls[0].fn(*args)
    found = list(_leaves(result))
    for leaf in found:
        if leaf.dim() == 0 or len(leaf) != sum(sizes):
            raise ValueError(f"a result of shape {tuple(leaf.shape)} for {sum(sizes)} rows")
    parts = zip(*(leaf.split(sizes) for leaf in found))
    return [_rebuilt(result, iter(part)) for part in parts]


def join_ragged(calls: Sequence[SharedCall]) -> list[Any]:
    """
    Runs calls of one ragged kind as one.

    :param calls: at least one.
    :returns: the result of each.
    """
    ragged = calls[0].ragged
    assert ragged is not None
    return ragged.join([call.args for call in calls])


def check_ragged(calls: Sequence[SharedCall], results: Sequence[Any]) -> None:
    """
    Compares what was joined with the call that was padded most, the first time for each kind.

    :param calls: of one ragged kind.
    :param results: of :func:`join_ragged`.
    :raises ValueError: where they differ by more than rounding.
    """
    call, found = min(zip(calls, results), key=lambda pair: pair[0].length())
    ragged, kind = call.ragged, call.ragged_kind()
    assert ragged is not None
    if kind in ragged.checked:
        return
    for ours, theirs in zip(_leaves(found), _leaves(call.fn(*call.args)), strict=True):
        largest = float(theirs[theirs.isfinite()].abs().max())
        slack = torch.finfo(theirs.dtype).eps ** 0.5 * largest
        same = ours.shape == theirs.shape and ours.dtype == theirs.dtype
        if not same or not torch.allclose(ours, theirs, rtol=0.0, atol=slack):
            raise ValueError("padded rows are not those of a single call")
    ragged.checked.add(kind)


def _concatenated(parts: Sequence[Tensor]) -> Tensor:
    """The rows of all; without a copy where they still lie one after the other, as they came."""
    first = parts[0]
    if first.is_complex() or first.layout is not torch.strided:
        return torch.cat(list(parts))
    stride, place = first.stride(), first.storage_offset()
    storage = first.untyped_storage().data_ptr()
    for part in parts:
        if (
            part.stride() != stride
            or part.storage_offset() != place
            or part.untyped_storage().data_ptr() != storage
        ):
            return torch.cat(list(parts))
        place += len(part) * stride[0]
    shape = (sum(map(len, parts)), *first.shape[1:])
    return first.as_strided(shape, stride, first.storage_offset())


def _leaves(state: Any) -> Iterator[Tensor]:
    if isinstance(state, Tensor):
        yield state
    else:
        for _, value in _children(state):
            yield from _leaves(value)


def _shape(state: Any, rows: int) -> Hashable:
    """Equal for states that differ in rows alone; equal to nothing where rows cannot be told."""
    if type(state) is Tensor:
        shape = state.shape
        if not shape or shape[0] != rows:
            return object()
        return shape[1:], state.dtype, state.device
    if isinstance(state, int | float | str | None):
        return type(state), state
    if isinstance(state, tuple | list | dict) or dataclasses.is_dataclass(state):
        return type(state), tuple((name, _shape(v, rows)) for name, v in _children(state))
    return object()


def _children(state: Any) -> list[tuple[Any, Any]]:
    if isinstance(state, tuple | list):
        return list(enumerate(state))
    if isinstance(state, dict):
        return list(state.items())
    if dataclasses.is_dataclass(state) and not isinstance(state, type):
        return [(each.name, getattr(state, each.name)) for each in dataclasses.fields(state)]
    return []


def _rebuilt(state: Any, leaves: Iterator[Tensor]) -> Any:
    """The same nesting with other tensors, in the order of :func:`_leaves`."""
    if isinstance(state, Tensor):
        return next(leaves)
    values = [(name, _rebuilt(value, leaves)) for name, value in _children(state)]
    if isinstance(state, tuple | list):
        plain = [value for _, value in values]
        return type(state)(*plain) if hasattr(state, "_fields") else type(state)(plain)
    if isinstance(state, dict):
        made = copy.copy(state)
        made.update(values)
        return made
    if values:
        made = copy.copy(state)
        for name, value in values:
            object.__setattr__(made, name, value)
        return made
    return state
