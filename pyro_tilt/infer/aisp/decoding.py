# SPDX-License-Identifier: Apache-2.0
"""Runs a program over perturbed inputs of one of its modules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

__all__ = ["PerturbedDecoding"]


class PerturbedDecoding(Messenger):
    """
    Adds a perturbation to what a module reads before each token, and decodes greedily if asked.

    While it is active, a hook on the module adds row i of the perturbation of the token that comes
    next to the last position of row i of the module's first input. Tokens are the program's latent
    sites, in order; from the horizon on nothing is added.

    :param module: maps hidden states to logits.
    :param perturbations: V, shape ``(rows, tau, d)``; None only notes the width of the states.
    :param greedy: whether a token is the most probable one (the first of equals), not a draw.
    :param stop_tokens: after which a row may be left out of the module's calls.
    :ivar calls: calls of the module.
    :ivar like: a hidden state, for width, dtype and device.
    """

    def __init__(
        self,
        module: nn.Module,
        perturbations: Tensor | None,
        *,
        greedy: bool,
        stop_tokens: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.module, self.perturbations, self.greedy = module, perturbations, greedy
        self.stop_tokens = tuple(stop_tokens)
        self._ended: Tensor | None = None
        self.calls = self.place = 0
        self.like: Tensor | None = None
        self._hook: Any = None

    def __enter__(self) -> PerturbedDecoding:
        self.place, self._ended = 0, None
        self._hook = self.module.register_forward_pre_hook(self._perturb)
        return super().__enter__()

    def __exit__(self, *args: Any) -> None:
        self._hook.remove()
        super().__exit__(*args)

    def _perturb(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        self.calls += 1
        if not args or not isinstance(args[0], Tensor) or not args[0].is_floating_point():
            raise ValueError(
                f"module= {type(module).__name__} must read hidden states, floating point, as its "
                "first argument"
            )
        hidden, *rest = args
        self.like = hidden
        if self.perturbations is None or self.place >= self.perturbations.shape[1]:
            return None
        added = self.perturbations[:, self.place].to(hidden)
        if hidden.dim() > 1 and self._ended is not None and len(hidden) < len(added):
            live = (~self._ended).nonzero().squeeze(-1)
            # Where all rows have ended, what is read counts for nothing.
            added = added[live if len(live) else live.new_zeros(1)]
        return (self._shifted(hidden, added), *rest)

    def _shifted(self, hidden: Tensor, added: Tensor) -> Tensor:
        """The states with the perturbation on their last position."""
        rows, width = added.shape
        if hidden.shape[-1] != width:
            raise ValueError(
                f"module= reads states of width {hidden.shape[-1]} here and {width} before"
            )
        if hidden.dim() == 1 or (hidden.dim() == 2 and hidden.shape[0] in (1, rows)):
            return hidden + added
        if hidden.dim() == 3 and hidden.shape[0] in (1, rows):
            # Of several positions the last one speaks of the next token.
            front = hidden[:, :-1].expand(rows, -1, -1)
            return torch.cat([front, hidden[:, -1:] + added.unsqueeze(1)], 1)
        raise ValueError(
            f"module= reads states of shape {tuple(hidden.shape)} for {rows} particles; expected "
            "(particles, d) or (particles, positions, d). If the model leaves out rows that have "
            "ended, name its stop_tokens="
        )

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or msg["done"] or type(msg["fn"]).__name__ == "_Subsample":
            return
        logits = getattr(msg["fn"], "logits", None)
        if not isinstance(msg["fn"], torch.distributions.Categorical) or logits is None:
            raise ValueError(
                f"site '{msg['name']}' is no categorical token; AISP decodes programs of "
                "categorical sites"
            )
        if self.greedy:
            msg["value"], msg["done"] = logits.argmax(-1), True

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["is_observed"] or type(msg["fn"]).__name__ == "_Subsample":
            return
        self.place += 1
        for token in self.stop_tokens:
            ended = msg["value"].reshape(-1) == token
            self._ended = ended if self._ended is None else self._ended | ended
