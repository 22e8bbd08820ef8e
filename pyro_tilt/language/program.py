# SPDX-License-Identifier: Apache-2.0
"""Tables of next-token laws as Pyro programs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_tilt.language.protocols import Decoding
from pyro_tilt.poutine.scan import scan

__all__ = ["language_program"]


class NextToken(Protocol):
    """Gives log probabilities ``(..., V)`` after tokens ``(..., t)``, or after None."""

    vocabulary_size: int
    stop_token: int | None

    def next_log_probs(self, tokens: Tensor | None) -> Tensor: ...

    def finished(self, sequences: Tensor) -> Tensor: ...


def language_program(
    model: NextToken, prompt: Tensor, length: int, name: str
) -> Callable[[], Tensor]:
    """
    A program that writes sequences of ``length`` tokens after a prompt.

    :param model: the law of the next token.
    :param prompt: first tokens, shape (p,).
    :param length: of the sequence, prompt included.
    :param name: of the sites.
    """
    start, size = (prompt if len(prompt) else None), model.vocabulary_size

    def step(carry: Decoding, t: int) -> Decoding:
        before = start if carry.tokens is None else carry.tokens
        law = dist.Categorical(logits=model.next_log_probs(before))
        token = pyro.sample(f"{name}_{t}", law)
        if before is None:
            return Decoding(token.unsqueeze(-1), None, size)
        before = before.expand(*token.shape, before.shape[-1])
        return Decoding(torch.cat([before, token.unsqueeze(-1)], -1), None, size)

    def language() -> Tensor:
        # The first carry belongs to no particle: it holds no tensor.
        last = scan(f"{name}_scan", step, Decoding(None), range(len(prompt), length))
        assert last.tokens is not None
        if model.stop_token is not None:
            pyro.deterministic(f"{name}s_finished", model.finished(last.tokens))
        # Samplers over steps hand on the sites outside steps, and so the whole sequence.
        return pyro.deterministic(f"{name}s", last.tokens, event_dim=1)

    return language
