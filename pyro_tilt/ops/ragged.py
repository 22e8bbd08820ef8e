# SPDX-License-Identifier: Apache-2.0
"""Calls whose rows differ in length, and whether padding them to one is worth it."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Protocol

__all__ = ["Ragged", "padding_is_small"]

# Numbers of padding that cost next to nothing beside the call itself.
LITTLE = 2**22


class Ragged(Protocol):
    """
    How calls become one whose rows differ in length, as by padding.

    :ivar width: about how many numbers a row holds for each unit of its length.
    :ivar checked: kinds of which a joined call has been compared with a single one.
    """

    width: int
    checked: set[Hashable]

    def kind(self, *args: Any) -> Hashable | None:
        """Calls of one kind can be joined; None for a call that is not to be padded."""
        ...

    def length(self, *args: Any) -> int:
        """The length of all rows of a call."""
        ...

    def join(self, parts: Sequence[tuple[Any, ...]]) -> list[Any]:
        """The results of calls of one kind, by their arguments."""
        ...


def padding_is_small(held: int, padded: int, width: int) -> bool:
    """
    Whether joined rows hold no more padding than contents, or next to nothing.

    :param held: the lengths of all rows together.
    :param padded: the same after padding.
    :param width: see :class:`Ragged`.

    >>> padding_is_small(30, 60, width=10**9), padding_is_small(30, 61, width=10**9)
    (True, False)
    """
    return padded - held <= max(held, LITTLE // width)
