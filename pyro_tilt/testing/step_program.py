# SPDX-License-Identifier: Apache-2.0
"""What exactly solved programs with steps have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from pyro_tilt.testing.exact_programs import ExactProgram

__all__ = ["StepProgram", "Twist"]

Twist = Callable[[Any, Any], Tensor]
"""Maps a state (or a batch of states) and the step that made it to the log of a potential."""


@dataclass(frozen=True)
class StepProgram(ExactProgram):
    r"""
    A program with steps whose aligned law is known.

    The state made at step ``t`` is the value of site ``{state}_{t}``; diffusions count ``t`` down
    to 0, state-space models count it up. Optimal twists are log soft values,

    .. math::

        v_t(x_t) = \log E\bigl[e^{\text{later factors and observations}} \mid x_t\bigr],

    and a step drawn from the optimal kernels, which ``guide`` does, makes all weights equal.

    :ivar num_steps: the number of steps that the scan takes.
    :ivar initial_step: the index of the initial state.
    :ivar log_soft_value: the exact :math:`v_t`, a function of states and ``t``.
    :ivar wrong_twist: a finite function of states and ``t`` that has nothing to do with the reward.
    :ivar guide: the program with optimal kernels (same sites), None where they are not a Pyro
        distribution.
    """

    num_steps: int
    initial_step: int
    log_soft_value: Callable[[Tensor, int], Tensor]
    wrong_twist: Callable[[Tensor, int], Tensor]
    guide: Callable[..., Any] | None

    def twist(self, kind: Literal["exact", "half", "wrong"] = "exact") -> Twist:
        """
        A twist to hand to a sampler.

        :param kind: ``"exact"`` is the log soft value, ``"half"`` half of it, ``"wrong"``
            a function unrelated to the reward; all of them leave the target as it is.
        :returns: a function of states and of the entry of ``xs`` that made them, None standing
            for the initial state.
        :raises ValueError: if ``kind`` is none of the three.
        """
        if kind not in ("exact", "half", "wrong"):
            raise ValueError(f"kind must be 'exact', 'half' or 'wrong', got {kind!r}")
        potential = self.wrong_twist if kind == "wrong" else self.log_soft_value
        scale = 0.5 if kind == "half" else 1.0

        def twist(state: Tensor, step: Any = None) -> Tensor:
            return scale * potential(state, self.initial_step if step is None else int(step))

        return twist
