# SPDX-License-Identifier: Apache-2.0
"""Reads sequences with a network and says what may come next."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_tilt.language.neural_choice import TokenChoice
from pyro_tilt.language.neural_networks import Network
from pyro_tilt.ops.reindex import reindex
from pyro_tilt.ops.shared_calls import shared_call

__all__ = ["Reader"]

# Logits held at once while sequences are scored.
MAX_LOGITS = 2**26


@dataclass(frozen=True)
class Reader:
    """
    The law of the next token, with the state of the network that it needs.

    :param network: gives logits.
    :param choice: makes them a law.
    :param stop_tokens: after one of them the first follows for certain.
    :param begin_token: read before everything else; None for nothing.
    :param device: of the network.
    """

    network: Network
    choice: TokenChoice
    stop_tokens: tuple[int, ...]
    begin_token: int | None
    device: torch.device

    def start(self, prompts: Tensor) -> tuple[Tensor, Any]:
        """
        The law after each of several sequences, and what the network keeps of them.

        :param prompts: shape ``(n, p)``.
        :returns: log probabilities ``(n, V)`` and the state, whose tensors have n rows.
        :raises ValueError: for sequences of no token where there is no ``begin_token``.
        """
        tokens = self._with_begin(prompts.to(self.device))
        if not tokens.shape[-1]:
            raise ValueError(
                "the network has nothing to read before the first token; give a prompt to the "
                "program, or begin_token to the model"
            )
        logits, state = self._network("read", tokens, None)
        return self._law(logits, prompts), state

    def advance(self, tokens: Tensor, state: Any, *, consume: bool = False) -> tuple[Tensor, Any]:
        """
        Reads the last token of each sequence.

        :param tokens: the sequences so far, shape ``(..., t)``.
        :param state: of the network after all but the last token, one row per sequence.
        :param consume: whether the state may be used up, because nobody goes on from it again.
        :returns: log probabilities of the next token, ``(..., V)``, and the new state.
        """
        rows = tokens.reshape(-1, tokens.shape[-1])
        live = None
        if self.stop_tokens:
            live = (~self.ended(rows)).nonzero()[:, 0]
        if live is None or len(live) == len(rows):
            logits, state = self._read(rows, state, consume)
        else:
            logits, state = self._read_some(rows, state, live)
        return self._law(logits, rows).reshape(*tokens.shape[:-1], -1), state

    def spread(self, state: Any, n: int) -> Any:
        """
        A state of one row as that of ``n`` sequences.

        :param state: what the network keeps.
        :param n: how many.
        """
        return reindex(state, torch.zeros(n, dtype=torch.long, device=self.device), size=1)

    def ended(self, sequences: Tensor) -> Tensor:
        """
        Whether sequences hold a stop token, shape ``(...)``.

        :param sequences: shape ``(..., t)``.
        """
        return self._is_stop(sequences).any(-1)

    def score(self, sequences: Tensor, prompt_length: int, vocabulary_size: int) -> Tensor:
        """
        Log probability of what follows the prompt.

        :param sequences: shape ``(n, t)``, prompt included.
        :param prompt_length: how many first tokens are given.
        :param vocabulary_size: number of tokens.
        """
        size = max(1, MAX_LOGITS // max(1, sequences.shape[-1] * vocabulary_size))
        parts = sequences.split(size)
        return torch.cat([self._score(part, prompt_length, size) for part in parts])

    def _score(self, rows: Tensor, first: int, most: int) -> Tensor:
        logits = self._network("score", self._with_begin(rows)[:, :-1], most=most)
        follow = rows[:, first:]
        law = self.choice.log_probs(logits[:, logits.shape[1] - follow.shape[1] :])
        each = law.gather(-1, follow.unsqueeze(-1)).squeeze(-1)
        if self.stop_tokens:
            stops = self._is_stop(rows).cumsum(-1)[:, first:] - self._is_stop(follow).long()
            filler = torch.where(follow == self.stop_tokens[0], 0.0, -math.inf).to(each)
            each = torch.where(stops > 0, filler, each)
        return each.sum(-1)

    def _read(self, rows: Tensor, state: Any, consume: bool) -> tuple[Tensor, Any]:
        fresh = self.network.unread(self._with_begin(rows))
        return self._network("read", fresh, state, consume=consume)

    def _network(self, name: str, *args: Any, **options: Any) -> Any:
        """A call of the network, which runs that go side by side make together."""
        network = self.network
        key = (*network.key, name)
        if name == "read":
            options["ragged"] = network.ragged
        return shared_call(getattr(network, name), *args, key=key, module=network.model, **options)

    def _read_some(self, rows: Tensor, state: Any, live: Tensor) -> tuple[Tensor, Any]:
        # Where all have ended one row is read for the sake of the state's shape.
        live = live if len(live) else live.new_zeros(1)
        logits, state = self._read(rows[live], reindex(state, live, size=len(rows)), True)
        # What stands in the rows of ended sequences is never read again.
        back = live.new_zeros(len(rows)).index_copy(0, live, torch.arange(len(live)).to(live))
        return logits[back], reindex(state, back, size=len(live))

    def _law(self, logits: Tensor, rows: Tensor) -> Tensor:
        law = self.choice.log_probs(logits)
        if not self.stop_tokens or not rows.shape[-1]:
            return law
        stop = torch.full_like(law[0], -math.inf)
        stop[self.stop_tokens[0]] = 0.0
        return torch.where(self.ended(rows).unsqueeze(-1), stop, law)

    def _is_stop(self, tokens: Tensor) -> Tensor:
        found = tokens == (self.stop_tokens[0] if self.stop_tokens else -1)
        for other in self.stop_tokens[1:]:
            found = found | (tokens == other)
        return found

    def _with_begin(self, rows: Tensor) -> Tensor:
        if self.begin_token is None:
            return rows
        return torch.cat([rows.new_full((len(rows), 1), self.begin_token), rows], -1)
