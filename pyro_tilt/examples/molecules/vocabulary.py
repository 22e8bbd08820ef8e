# SPDX-License-Identifier: Apache-2.0
"""Characters of SMILES strings as tokens."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Vocabulary:
    """
    One token per character, and two marks: token 0 begins a string, token 1 stops it.

    :param characters: the characters in the order of their tokens, from token 2 on.

    >>> vocabulary = Vocabulary("CNO")
    >>> vocabulary.encode(["CO", "N"])
    tensor([[2, 4, 1],
            [3, 1, 1]])
    >>> vocabulary.decode(vocabulary.encode(["CO", "N"]))
    ['CO', 'N']
    """

    characters: str

    begin = 0
    stop = 1

    def __len__(self) -> int:
        return 2 + len(self.characters)

    def encode(self, strings: Sequence[str]) -> Tensor:
        """
        Tokens of the strings, each followed by stops up to the longest and one more.

        :param strings: strings of known characters.
        :returns: shape ``(len(strings), longest + 1)``.
        :raises ValueError: for a character that is not in the vocabulary.
        """
        unknown = sorted(set("".join(strings)) - set(self.characters))
        if unknown:
            raise ValueError(f"characters {unknown} are not in the vocabulary")
        number = {character: 2 + i for i, character in enumerate(self.characters)}
        width = max(map(len, strings), default=0) + 1
        rows = [[number[c] for c in s] + [self.stop] * (width - len(s)) for s in strings]
        return torch.tensor(rows, dtype=torch.long).reshape(len(strings), width)

    def decode(self, tokens: Tensor) -> list[str]:
        """
        The strings before the first stop of each row.

        :param tokens: shape ``(n, length)``, without the begin mark.
        """
        strings = []
        for row in tokens.tolist():
            end = row.index(self.stop) if self.stop in row else len(row)
            strings.append("".join(self.characters[token - 2] for token in row[:end] if token > 1))
        return strings


def vocabulary_of(strings: Iterable[str]) -> Vocabulary:
    """
    The vocabulary of all characters that occur, in alphabetical order.

    >>> vocabulary_of(["CO", "N"]).characters
    'CNO'
    """
    return Vocabulary("".join(sorted(set().union(*strings))))
