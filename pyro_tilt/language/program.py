# SPDX-License-Identifier: Apache-2.0
"""What the programs of language models share."""

from __future__ import annotations

from typing import Protocol

import pyro
from torch import Tensor

from pyro_tilt.language.protocols import Decoding

__all__ = ["LanguageProgram"]


class Writer(Protocol):
    """A language model, as its program knows it."""

    def decode(self, tokens: Tensor) -> list[str]: ...

    def finished(self, sequences: Tensor) -> Tensor: ...


class LanguageProgram:
    """
    A program of one categorical site per token, and at its end of the whole sequence.

    :ivar model: the language model.
    :ivar prompt: the first tokens, shape (p,).
    :ivar site: name of the site that holds the whole sequence.
    """

    model: Writer

    def __init__(self, model: Writer, prompt: Tensor, name: str) -> None:
        self.model = model
        self.prompt = prompt
        self.name = name
        self.site = f"{name}s"

    def __repr__(self) -> str:
        return f"{self.model!r}.program({self.prompt.tolist()})"

    def decode(self, tokens: Tensor) -> list[str]:
        """
        The texts of sequences; see the model's ``decode``.

        :param tokens: shape ``(n, length)``.
        """
        return self.model.decode(tokens)

    def _hand_on(self, last: Decoding, written: slice, *, stops: bool) -> Tensor:
        """
        Records the sequences and, where the model can stop, whether they did.

        Samplers over steps hand on the sites outside steps alone.

        :param last: the last carry.
        :param written: what of a sequence may hold the stop.
        """
        assert last.tokens is not None
        if stops:
            ended = self.model.finished(last.tokens[..., written])
            pyro.deterministic(f"{self.site}_finished", ended)
        return pyro.deterministic(self.site, last.tokens, event_dim=1)
