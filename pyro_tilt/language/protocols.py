# SPDX-License-Identifier: Apache-2.0
"""What the package asks of a language model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from pyro_tilt.language.token_features import token_features

__all__ = ["Decoding", "LanguageModel"]


@dataclass(frozen=True)
class Decoding:
    """
    The carry of a language program: the tokens so far and what the model keeps beside them.

    :ivar tokens: shape ``(..., t)``, particles in front; None before the first token.
    :ivar state: any nesting of tensors with the particles in front, such as a cache; None where
        the tokens are all that the model needs.
    :ivar vocabulary_size: number of tokens that there are; None where nobody said.
    """

    tokens: Tensor | None
    state: Any = None
    vocabulary_size: int | None = None

    def features(self) -> Tensor:
        """
        What learned twists read by default: counts and last tokens, without the state.

        The state is left out because it may grow with every token. For that of a recurrent network
        give the twist a function of one's own.

        :returns: shape ``(N, d)``: up to 64 tokens their counts, then indicators of the last token,
            the one before it and so on, in 512 columns at most; of larger vocabularies the binary
            digits of the last tokens instead.
        :raises ValueError: before the first token, or without ``vocabulary_size``.

        >>> import torch
        >>> Decoding(torch.tensor([[1], [0]]), vocabulary_size=2).features()
        tensor([[0., 1., 0., 1.],
                [1., 0., 1., 0.]])
        """
        if self.tokens is None or self.vocabulary_size is None:
            missing = "tokens" if self.tokens is None else "vocabulary_size"
            raise ValueError(
                f"features: this Decoding has no {missing}; give features=, a function of the "
                "carry to a tensor of shape (N, d)"
            )
        return token_features(self.tokens, self.vocabulary_size)


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
