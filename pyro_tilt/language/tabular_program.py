# SPDX-License-Identifier: Apache-2.0
"""A table of next-token laws as a Pyro program."""

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
    from pyro_tilt.language.tabular import TabularLM

__all__ = ["TabularProgram"]


class TabularProgram(LanguageProgram):
    """
    A program of one categorical site per token; made by :meth:`TabularLM.program`.

    :ivar model: the :class:`~pyro_tilt.language.TabularLM`.
    """

    model: TabularLM

    def __call__(self) -> Tensor:
        steps = range(len(self.prompt), self.model.length)
        # The first carry belongs to no particle: it holds no tensor.
        last = scan(f"{self.name}_scan", self._step, Decoding(None), steps)
        return self._hand_on(last, slice(None), stops=self.model.stop_token is not None)

    def _step(self, carry: Decoding, t: int) -> Decoding:
        start = self.prompt if len(self.prompt) else None
        before, size = start if carry.tokens is None else carry.tokens, self.model.vocabulary_size
        law = dist.Categorical(logits=self.model.next_log_probs(before))
        token = pyro.sample(f"{self.name}_{t}", law)
        if before is None:
            return Decoding(token.unsqueeze(-1), None, size)
        before = before.expand(*token.shape, before.shape[-1])
        return Decoding(torch.cat([before, token.unsqueeze(-1)], -1), None, size)
