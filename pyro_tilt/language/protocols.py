# SPDX-License-Identifier: Apache-2.0
"""What the package asks of a language model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

__all__ = ["Decoding", "LanguageModel"]


@dataclass(frozen=True)
class Decoding:
    """
    The carry of a language program: the tokens so far and what the model keeps beside them.

    :ivar tokens: shape ``(..., t)``, particles in front; None before the first token.
    :ivar state: any nesting of tensors with the particles in front, such as a cache; None where
        the tokens are all that the model needs.
    """

    tokens: Tensor | None
    state: Any = None


@runtime_checkable
class LanguageModel(Protocol):
    """
    A law of token sequences that is a Pyro program.

    :ivar vocabulary_size: number of tokens; two models work together only where theirs agree.
    :ivar stop_token: the token after which a sequence is filled with it; None without one.
    """

    vocabulary_size: int
    stop_token: int | None

    def log_prob(self, sequences: Tensor) -> Tensor:
        """Log probability of sequences under the law that is sampled, ``(..., T)`` to ``(...)``."""
        ...

    def program(self, *args: Any, **kwargs: Any) -> Callable[..., Tensor]:
        """A program of one categorical site per token inside a scan; it returns the sequence."""
        ...
