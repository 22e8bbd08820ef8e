# SPDX-License-Identifier: Apache-2.0
"""The law that tokens are drawn from, made from the logits of a network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_tilt.language.checks import whole_number

__all__ = ["TokenChoice"]


@dataclass(frozen=True)
class TokenChoice:
    r"""
    How logits become the law of the next token: what is scored is what is sampled.

    In this order: ``suppress_tokens`` get probability zero, the logits are divided by
    ``temperature``, the ``top_k`` largest stay (with all that tie with the k-th), and of the rest
    the fewest most probable whose mass reaches ``top_p``, those of equal mass in the order of the
    vocabulary. The law is renormalised at last.

    :param temperature: divides the logits; positive.
    :param top_k: how many tokens stay; None for all.
    :param top_p: the mass that stays, in (0, 1]; None for all.
    :param suppress_tokens: tokens that are never written.
    :raises ValueError: for values outside of these ranges.

    >>> logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    >>> TokenChoice(top_p=0.6).log_probs(logits).exp().tolist()
    [0.5714285969734192, 0.4285714328289032, 0.0, 0.0]
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    suppress_tokens: Sequence[int] = ()

    def __post_init__(self) -> None:
        if not 0.0 < self.temperature < math.inf:
            raise ValueError(f"temperature must be positive and finite, got {self.temperature}")
        if self.top_k is not None:
            whole_number("top_k", self.top_k, at_least=1)
        for token in self.suppress_tokens:
            whole_number("suppress_tokens", token)
        if self.top_p is not None and not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p must lie in (0, 1], got {self.top_p}")

    def log_probs(self, logits: Tensor) -> Tensor:
        """
        Log probabilities of the next token.

        :param logits: shape ``(..., V)``; half precision is taken to single.
        :returns: shape ``(..., V)``, ``-inf`` for tokens that are not drawn.
        """
        if torch.finfo(logits.dtype).bits < 32:
            logits = logits.float()
        if len(self.suppress_tokens):
            index = torch.tensor(list(self.suppress_tokens), device=logits.device)
            logits = logits.index_fill(-1, index, -math.inf)
        if self.temperature != 1.0:
            logits = logits / self.temperature
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            least = logits.topk(self.top_k, dim=-1).values[..., -1:]
            logits = logits.masked_fill(logits < least, -math.inf)
        law = logits.log_softmax(-1)
        if self.top_p is None or self.top_p == 1.0:
            return law
        ordered, order = law.sort(dim=-1, descending=True, stable=True)
        mass = ordered.exp()
        before = mass.cumsum(-1) - mass
        # The first token stays whatever rounding makes of the mass before it.
        out = before >= self.top_p
        out[..., 0] = False
        out = torch.zeros_like(out).scatter(-1, order, out)
        return law.masked_fill(out, -math.inf).log_softmax(-1)
