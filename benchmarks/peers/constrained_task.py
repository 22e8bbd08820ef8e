# SPDX-License-Identifier: Apache-2.0
"""Writing under a constraint: the tasks, as every library in the comparison is given them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

BEGIN, STOP = 0, 1
MARKS = ("<begin>", "<stop>")
PARTICLES = (32, 200)
THRESHOLD = 0.5
RESAMPLING = "systematic"


@dataclass(frozen=True)
class Task:
    """
    Sequences of ``length`` tokens that a finite automaton reads without rejecting one.

    After a stop token only further ones follow. Every state has a move, so that what is written
    so far can always be gone on with.

    :param name: what is asked for, in words.
    :param length: number of tokens.
    :param moves: next state by state and token, -1 where there is none; the first state starts.
    """

    name: str
    length: int
    moves: tuple[tuple[int, ...], ...]

    @property
    def stops(self) -> bool:
        """Whether sequences may end by a stop token before they are cut."""
        return any(row[STOP] >= 0 for row in self.moves)

    @cached_property
    def allowed(self) -> list[list[int]]:
        """The tokens that may follow, by state."""
        return [[v for v, to in enumerate(row) if to >= 0] for row in self.moves]

    def state(self, tokens: list[int]) -> int:
        """Where the automaton is after some tokens, -1 if it has rejected them."""
        state = 0
        for token in tokens:
            state = self.moves[state][token]
            if state < 0:
                break
        return state

    def beginnings(self) -> list[tuple[list[int], int]]:
        """All but the last token of every sequence, each with the state after it."""
        found: list[tuple[list[int], int]] = [([], 0)]
        for _ in range(self.length - 1):
            found = [
                ([*tokens, v], self.moves[state][v])
                for tokens, state in found
                for v in self.allowed[state]
            ]
        return found


def without(characters: str, forbidden: str, length: int) -> Task:
    """Exactly ``length`` characters, none of them ``forbidden``."""
    row = [-1] * len(MARKS) + [-1 if c == forbidden else 0 for c in characters]
    name = f"{length} characters, never {forbidden!r}"
    return Task(name, length, (tuple(row),))


def chain(characters: str, length: int) -> Task:
    """Molecules ``C([ON]?C)*`` with the stop after them, or their first ``length`` tokens."""
    number = {c: len(MARKS) + i for i, c in enumerate(characters)}
    size = len(MARKS) + len(characters)
    start, carbon, other, done = range(4)

    def row(moves: dict[int, int]) -> tuple[int, ...]:
        return tuple(moves.get(v, -1) for v in range(size))

    after = {number["C"]: carbon, number["O"]: other, number["N"]: other, STOP: done}
    only = {number["C"]: carbon}
    moves = (row(only), row(after), row(only), row({STOP: done}))
    return Task(f"a molecule C([ON]?C)*, cut after {length} tokens", length, moves)


def tasks(characters: str) -> list[Task]:
    """The tasks of the benchmark over a vocabulary of the two marks and these characters."""
    return [without(characters, "C", 3), chain(characters, 12)]
