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
    Sequences of ``length`` tokens that a finite automaton reads to an accepting state.

    :param name: what is asked for, in words.
    :param length: number of tokens; after a stop token only further ones follow.
    :param moves: next state by state and token, -1 where there is none; the first state starts.
    :param accepting: states in which a sequence may end.
    :param stops: whether sequences end by a stop token of their own.
    """

    name: str
    length: int
    moves: tuple[tuple[int, ...], ...]
    accepting: frozenset[int]
    stops: bool

    @cached_property
    def allowed(self) -> list[list[list[int]]]:
        """By step and state the tokens from which an accepted sequence can still be reached."""
        alive = set(self.accepting)
        steps: list[list[list[int]]] = []
        for _ in range(self.length):
            rows = [[v for v, to in enumerate(row) if to in alive] for row in self.moves]
            alive = {state for state, row in enumerate(rows) if row}
            steps.insert(0, rows)
        return steps

    def state(self, tokens: list[int]) -> int:
        """Where the automaton is after some tokens, -1 if it has rejected them."""
        state = 0
        for token in tokens:
            state = self.moves[state][token]
            if state < 0:
                break
        return state

    def beginnings(self) -> list[tuple[list[int], list[int]]]:
        """All but the last token of every accepted sequence, each with the last ones allowed."""
        found: list[tuple[list[int], int]] = [([], 0)]
        for rows in self.allowed[:-1]:
            found = [
                ([*tokens, v], self.moves[state][v]) for tokens, state in found for v in rows[state]
            ]
        return [(tokens, self.allowed[-1][state]) for tokens, state in found]


def without(characters: str, forbidden: str, length: int) -> Task:
    """Exactly ``length`` characters, none of them ``forbidden``."""
    row = [-1] * len(MARKS) + [-1 if c == forbidden else 0 for c in characters]
    name = f"{length} characters, never {forbidden!r}"
    return Task(name, length, (tuple(row),), frozenset({0}), stops=False)


def chain(characters: str, length: int) -> Task:
    """Whole molecules ``C([ON]?C)*`` whose stop comes within ``length`` tokens."""
    number = {c: len(MARKS) + i for i, c in enumerate(characters)}
    size = len(MARKS) + len(characters)
    start, carbon, other, done = range(4)

    def row(moves: dict[int, int]) -> tuple[int, ...]:
        return tuple(moves.get(v, -1) for v in range(size))

    after = {number["C"]: carbon, number["O"]: other, number["N"]: other, STOP: done}
    only = {number["C"]: carbon}
    moves = (row(only), row(after), row(only), row({STOP: done}))
    name = f"a molecule C([ON]?C)*, stop within {length} tokens"
    return Task(name, length, moves, frozenset({done}), stops=True)


def tasks(characters: str) -> list[Task]:
    """The tasks of the benchmark over a vocabulary of the two marks and these characters."""
    return [without(characters, "C", 3), chain(characters, 12)]
