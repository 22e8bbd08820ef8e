# SPDX-License-Identifier: Apache-2.0
"""Writes sequences without the machinery of a sampler."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_tilt.language.neural_reader import Reader
from pyro_tilt.ops.reindex import reindex

__all__ = ["Generation", "write"]


@dataclass(frozen=True)
class Generation:
    """
    What :meth:`NeuralLM.generate` wrote.

    :ivar tokens: shape ``(n, p + max_tokens)``, prompt included, filled with the stop token.
    :ivar log_prob: of what follows the prompt, under the law that it was drawn from, ``(n,)``.
    :ivar finished: whether a stop token came within the limit, ``(n,)``; the others were cut.
    """

    tokens: Tensor
    log_prob: Tensor
    finished: Tensor


def write(
    reader: Reader, prompts: Tensor, n: int, max_tokens: int, generator: torch.Generator | None
) -> list[Generation]:
    """
    Writes ``n`` sequences after each of several prompts of one length.

    :param reader: gives the law of the next token.
    :param prompts: shape ``(m, p)``.
    :param n: how many for each.
    :param max_tokens: how many tokens to write.
    :param generator: where randomness comes from; None for the global state.
    :returns: one result per prompt.
    """
    law, state = reader.start(prompts)
    copies = torch.arange(len(prompts), device=reader.device).repeat_interleave(n)
    tokens, law = prompts[copies], law[copies]
    state = reindex(state, copies, size=len(prompts))
    total = law.new_zeros(len(tokens))
    for t in range(max_tokens):
        if t:
            law, state = reader.advance(tokens, state, consume=True)
        token = torch.multinomial(law.exp(), 1, generator=generator)
        total = total + law.gather(-1, token).squeeze(-1)
        tokens = torch.cat([tokens, token], -1)
        if reader.stop_tokens and bool(reader.ended(tokens).all()):
            filler = tokens.new_full((len(tokens), max_tokens - 1 - t), reader.stop_tokens[0])
            tokens = torch.cat([tokens, filler], -1)
            break
    finished = reader.ended(tokens) if reader.stop_tokens else torch.ones_like(tokens[:, 0]) > 0
    parts = zip(tokens.split(n), total.split(n), finished.split(n))
    return [Generation(*part) for part in parts]
