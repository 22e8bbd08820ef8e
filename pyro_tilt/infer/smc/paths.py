# SPDX-License-Identifier: Apache-2.0
"""Whole paths of particles, kept for living lineages only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pyro_tilt.infer.smc.records import gathered

__all__ = ["Paths"]


@dataclass
class _Level:
    """One step: values of ``size`` nodes, and the node of the level before that each comes from."""

    size: int
    values: dict[str, Tensor]
    parents: Tensor | None = None


@dataclass
class PathStore:
    """
    The tree of paths while it grows.

    A resampling leaves nodes without descendants; they are cut off at once, level by level
    backwards until one has none to lose. What is left is of order :math:`T + N \\log N` nodes
    where resampling is frequent (Jacob, Murray and Rubenthaler 2015, arXiv 1307.3180).

    :ivar size: number of particles.
    """

    size: int
    levels: list[_Level] = field(default_factory=list)
    heads: Tensor | None = None

    def append(self, values: dict[str, Tensor]) -> None:
        """Adds a step, before its resampling."""
        self.levels.append(_Level(self.size, values, self.heads))
        self.heads = None

    def move(self, index: Tensor) -> None:
        """Follows a resampling and cuts off what died of it."""
        self.heads = index
        for k in range(len(self.levels) - 1, -1, -1):
            level = self.levels[k]
            above = self.heads if k + 1 == len(self.levels) else self.levels[k + 1].parents
            # A level that lost nodes has parents written out, and only below one does this go on.
            assert above is not None
            alive = torch.zeros(level.size, dtype=torch.bool, device=above.device)
            alive[above] = True
            kept = alive.nonzero().squeeze(-1)
            if len(kept) == level.size:
                return
            number = alive.long().cumsum(0) - 1
            renumbered = number[above]
            if k + 1 == len(self.levels):
                self.heads = renumbered
            else:
                self.levels[k + 1].parents = renumbered
            self._cut(level, kept)

    def _cut(self, level: _Level, kept: Tensor) -> None:
        for name, value in level.values.items():
            level.values[name] = gathered(value, kept)
        if level.parents is not None:
            level.parents = level.parents[kept]
        else:
            level.parents = kept
        level.size = len(kept)

    @property
    def nodes(self) -> int:
        """How many nodes are stored."""
        return sum(level.size for level in self.levels)


class Paths(Mapping[str, Tensor]):
    """
    The path of every final particle: site name to ``(N,)`` + site shape.

    A site is put together when it is asked for, from the living lineages, which are all that is
    stored; asking for every site of every particle takes the memory of whole paths.

    :param parts: the stored trees of the runs, each with the number of its particles.

    >>> store = PathStore(2)
    >>> store.append({"x_0": torch.tensor([1.0, 2.0])})
    >>> store.move(torch.tensor([1, 1]))
    >>> store.append({"x_1": torch.tensor([3.0, 4.0])})
    >>> Paths([store])["x_0"].tolist(), store.nodes
    ([2.0, 2.0], 3)
    """

    def __init__(self, parts: Sequence[PathStore]) -> None:
        self.parts = list(parts)
        self._levels = [
            {name: k for k, level in enumerate(part.levels) for name in level.values}
            for part in parts
        ]

    @classmethod
    def joined(cls, several: Sequence[Paths]) -> Paths:
        """The paths of several runs of one program."""
        return cls([part for paths in several for part in paths.parts])

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._levels[0]:
            raise KeyError(f"no site {name!r} in any step")
        return self.trace([name])[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._levels[0])

    def __len__(self) -> int:
        return len(self._levels[0])

    def trace(
        self, names: Sequence[str] | None = None, index: Tensor | None = None
    ) -> dict[str, Tensor]:
        """
        The paths of some particles.

        :param names: sites; all by default.
        :param index: particles, numbers in ``range(N)``; all by default, one run only otherwise.
        :returns: site name to ``(len(index), ...)``.
        :raises ValueError: for an index into several runs.
        """
        if index is not None and len(self.parts) > 1:
            raise ValueError("index picks particles of one run; these paths are of several")
        wanted = list(self) if names is None else list(names)
        found = [self._trace(part, set(wanted), index) for part in self.parts]
        return {name: torch.cat([each[name] for each in found]) for name in wanted}

    def ancestors(self) -> list[Tensor]:
        """For each step, which stored node each final particle of the first run descends from."""
        return self._nodes(self.parts[0], None)

    @staticmethod
    def _nodes(part: PathStore, index: Tensor | None) -> list[Tensor]:
        node = torch.arange(part.size) if index is None else index
        if part.heads is not None:
            node = part.heads[node.to(part.heads.device)]
        nodes: list[Tensor] = []
        for level in reversed(part.levels):
            nodes.append(node)
            if level.parents is not None:
                node = level.parents[node.to(level.parents.device)]
        return nodes[::-1]

    def _trace(self, part: PathStore, wanted: set[str], index: Tensor | None) -> dict[str, Tensor]:
        out = {}
        for level, node in zip(part.levels, self._nodes(part, index)):
            for name in wanted & level.values.keys():
                out[name] = gathered(level.values[name], node)
        return out
