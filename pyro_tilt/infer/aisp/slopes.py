# SPDX-License-Identifier: Apache-2.0
"""How much noise in hidden states moves what is decoded from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyro_tilt.infer.aisp.decoding import PerturbedDecoding
from pyro_tilt.ops.importance import as_double

__all__ = ["LogitSlopes"]

# Of the size of the states; for a linear module any step gives the same slope.
_STEP = 1e-2


class LogitSlopes(PerturbedDecoding):
    r"""
    Sums up, over tokens and particles of plain draws, how steep the law of the next token is.

    .. math:: \operatorname{tr}(J^\top (\operatorname{diag} p - p p^\top) J)
        = E_\varepsilon \operatorname{Var}_{y \sim p} (J \varepsilon)_y,
        \qquad \varepsilon \sim N(0, I)

    with J the slope of the module's logits in its input and p their softmax; one
    :math:`\varepsilon` per state, and a difference quotient for J.

    :param module: maps hidden states to logits.
    :param tau: tokens to count.
    :param size: number of particles.
    :param stop_tokens: after which a particle no longer counts.
    :ivar total: the sum.
    """

    def __init__(
        self, module: nn.Module, tau: int, size: int, *, stop_tokens: Sequence[int] = ()
    ) -> None:
        super().__init__(module, None, greedy=False, stop_tokens=stop_tokens)
        self.tau, self.size = tau, size
        self.total = 0.0

    def _perturb(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        super()._perturb(module, args)
        if self.place < self.tau:
            hidden, *rest = args
            states = hidden[:, -1] if hidden.dim() == 3 else hidden.reshape(-1, hidden.shape[-1])
            live = self.size
            if self._ended is not None:
                live -= int(self._ended.sum())
                if len(states) == self.size:
                    states = states[~self._ended]
            if live:
                # A first token is one state for all, who are given noise of their own.
                states = states.expand(live, -1) if len(states) == 1 else states
                self.total += live * float(self._steepness(states, rest).mean())
        return None

    def _steepness(self, states: Tensor, rest: list[Any]) -> Tensor:
        size = float(states.square().mean().sqrt())
        step = _STEP * (size if size > 0.0 else 1.0)
        # The hooks of the module, this one among them, take no part.
        here = self.module.forward(states, *rest)
        there = self.module.forward(states + step * torch.randn_like(states), *rest)
        law = as_double(here).softmax(-1)
        slope = (as_double(there) - as_double(here)) / step
        centred = slope - (law * slope).sum(-1, keepdim=True)
        return (law * centred.square()).sum(-1)
