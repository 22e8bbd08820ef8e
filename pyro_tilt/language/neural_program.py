# SPDX-License-Identifier: Apache-2.0
"""A network that writes, as a Pyro program."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_tilt.language.program import LanguageProgram
from pyro_tilt.language.protocols import Decoding
from pyro_tilt.poutine.scan import scan

if TYPE_CHECKING:
    from pyro_tilt.language.neural import NeuralLM

__all__ = ["NeuralProgram"]


class NeuralProgram(LanguageProgram):
    """
    A program of one categorical site per token; made by :meth:`NeuralLM.program`.

    :ivar model: the :class:`~pyro_tilt.language.NeuralLM`.
    """

    model: NeuralLM

    def __call__(self) -> Tensor:
        start, length = len(self.prompt), len(self.prompt) + self.model.max_tokens
        # All particles share the prompt, which is therefore read once and kept out of the carry.
        first = self.model.reader.start(self.prompt[None])

        def step(carry: Decoding, t: int) -> Decoding:
            if carry.tokens is None:
                # A handler on the network may give each particle a law of its own.
                law, state = (first[0][0] if len(first[0]) == 1 else first[0]), first[1]
            else:
                law, state = self.model.reader.advance(carry.tokens, carry.state)
            token = pyro.sample(f"{self.name}_{t}", dist.Categorical(logits=law))
            if carry.tokens is None:
                return self._after_first(token, state)
            tokens = torch.cat([carry.tokens, token.unsqueeze(-1)], -1)
            return Decoding(tokens, state, self.model.vocabulary_size)

        last = scan(f"{self.name}_scan", step, Decoding(None), range(start, length))
        return self._hand_on(last, slice(start, None), stops=bool(self.model.stop_tokens))

    def _after_first(self, token: Tensor, state: object) -> Decoding:
        if sum(size > 1 for size in token.shape) > 1:
            raise ValueError(
                f"a language program runs outside of plates, got batch shape {tuple(token.shape)}; "
                "several prompts are several programs"
            )
        prompt = self.prompt.to(token.device).expand(*token.shape, len(self.prompt))
        tokens = torch.cat([prompt, token.unsqueeze(-1)], -1)
        state = self.model.reader.spread(state, token.numel())
        return Decoding(tokens, state, self.model.vocabulary_size)
