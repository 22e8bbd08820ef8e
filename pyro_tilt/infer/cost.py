# SPDX-License-Identifier: Apache-2.0
"""What a run cost, in rows of work rather than calls."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _PYRO_STACK

Module = TypeVar("Module", bound=torch.nn.Module)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """
    The work of a run, counted in rows: a call on a batch of ``n`` counts ``n``.

    Costs add. ``network_rows`` is None where no module wrapped by :func:`counted` ran, so that
    None plus a number is that number, and None plus None stays None.

    :param base_draws: particles drawn from the base program.
    :param reward_calls: values that the reward was evaluated at.
    :param value_calls: states that a value function or a twist was evaluated at.
    :param network_rows: rows through counted modules, or None where none ran.
    :param seconds: wall time.
    :raises ValueError: for a negative entry.

    >>> Cost(base_draws=100, seconds=1.0) + Cost(base_draws=20, network_rows=7, seconds=0.5)
    Cost(base_draws=120, reward_calls=0, value_calls=0, network_rows=7, seconds=1.5)
    """

    base_draws: int = 0
    reward_calls: int = 0
    value_calls: int = 0
    network_rows: int | None = None
    seconds: float = 0.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None and value < 0:
                raise ValueError(f"{field.name} counts work and cannot be negative; got {value}")

    def __add__(self, other: Cost) -> Cost:
        if not isinstance(other, Cost):
            return NotImplemented
        rows = [c.network_rows for c in (self, other) if c.network_rows is not None]
        return Cost(
            base_draws=self.base_draws + other.base_draws,
            reward_calls=self.reward_calls + other.reward_calls,
            value_calls=self.value_calls + other.value_calls,
            network_rows=sum(rows) if rows else None,
            seconds=self.seconds + other.seconds,
        )

    def __radd__(self, other: int | Cost) -> Cost:
        # sum() starts from the integer 0.
        return self if other == 0 else NotImplemented

    def to_dict(self) -> dict[str, Any]:
        """
        The entries as plain numbers, for JSON.

        >>> Cost(base_draws=3).to_dict()["base_draws"]
        3
        """
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Cost:
        """
        Rebuilds a cost from :meth:`to_dict`.

        :param fields: the entries by name.
        :raises ValueError: for a name that is no entry.

        >>> Cost.from_dict({"base_draws": 3}).base_draws
        3
        """
        unknown = sorted(set(fields) - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise ValueError(f"no entries of a cost: {', '.join(unknown)}")
        return cls(**fields)


class CountRows(Messenger):
    """
    Gathers the rows that pass through modules wrapped by :func:`counted`.

    The count goes on over repeated entries. It sees through ``poutine.block``: a cost is paid
    whether or not a site is hidden.

    >>> net = counted(torch.nn.Linear(2, 1))
    >>> with CountRows() as count:
    ...     _ = net(torch.zeros(5, 2))
    >>> count.rows
    5
    """

    def __init__(self) -> None:
        super().__init__()
        self.rows: int | None = None
        # How many counted modules are running, one inside the other.
        self._depth = 0

    def add(self, rows: int) -> None:
        """
        Adds to the count.

        :param rows: the rows of one call.

        >>> count = CountRows()
        >>> count.add(3)
        >>> count.rows
        3
        """
        self.rows = rows + (self.rows or 0)

    def _process_message(self, msg: Any) -> None:
        # Wrapped modules speak to it directly, so that no site needs to be looked at.
        return

    def _postprocess_message(self, msg: Any) -> None:
        return


def counted(module: Module) -> Module:
    """
    Makes a module count its rows: the leading dimension of the first tensor of every call.

    The same module comes back with a forward hook, so its class, attributes, parameters and
    state dict stay as they are, and it moves and pickles as before. Doing it twice counts once,
    and so does a row that a counted module hands to a counted module inside it: the outermost
    counts. A call that raises counts too. Where no sampler (that is, no :class:`CountRows`)
    listens, nothing happens.

    :param module: any module whose call is worth counting, such as a denoiser.
    :raises TypeError: for something that is no module.

    >>> net = counted(torch.nn.Linear(2, 1))
    >>> net(torch.zeros(5, 2)).shape
    torch.Size([5, 1])
    """
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"counted wraps a torch.nn.Module; got {type(module).__name__}")
    if not any(hook is _enter for hook in module._forward_pre_hooks.values()):
        module.register_forward_pre_hook(_enter)
        module.register_forward_hook(_leave, with_kwargs=True, always_call=True)
    return module


def _enter(module: torch.nn.Module, args: tuple[Any, ...]) -> None:
    for counter in _counters():
        counter._depth += 1


def _leave(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
) -> None:
    for counter in _counters():
        # A counter that was entered while the module ran has not seen it start.
        counter._depth = max(counter._depth - 1, 0)
        if not counter._depth:
            first = next(_tensors((*args, *kwargs.values())), None)
            counter.add(1 if first is None or first.dim() == 0 else first.shape[0])


def _counters() -> Iterator[CountRows]:
    return (frame for frame in _PYRO_STACK if isinstance(frame, CountRows))


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    if isinstance(values, torch.Tensor):
        yield values
    elif isinstance(values, Mapping):
        for value in values.values():
            yield from _tensors(value)
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _tensors(value)
