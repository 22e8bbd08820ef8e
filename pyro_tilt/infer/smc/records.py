# SPDX-License-Identifier: Apache-2.0
"""Values that wait, unmoved, for the ancestors of the last particles."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class Group:
    """
    Sites recorded between two steps.

    Their values are not moved at a resampling; one index is, which serves them all at the end.

    :ivar names: the sites.
    :ivar index: which recorded row each particle of now comes from; None for its own.
    """

    names: list[str]
    index: Tensor | None = None

    def move(self, index: Tensor) -> None:
        """Follows a resampling."""
        self.index = index if self.index is None else self.index.index_select(0, index)


def gathered(value: Tensor, index: Tensor | None) -> Tensor:
    """The rows of ``value`` that ``index`` names; all of them where it is None."""
    return value if index is None else value.index_select(0, index.to(value.device))
