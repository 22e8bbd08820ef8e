# SPDX-License-Identifier: Apache-2.0
"""What a proximal step returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["ProximalStep", "UnboundedProximal"]


class UnboundedProximal(ValueError):
    """
    The proximal problem has no maximum: the penalty is not above the growth of the reward.

    :param penalty: the penalty that was asked for.
    :param bound: what it must exceed.

    >>> str(UnboundedProximal(1.0, 2.0))
    'penalty = 1 must exceed 2, the rate at which the reward grows against the cost: below it \
points would move to infinity. Raise the penalty, or bound the mean cost by radius='
    """

    def __init__(self, penalty: float, bound: float) -> None:
        super().__init__(
            f"penalty = {penalty:.6g} must exceed {bound:.6g}, the rate at which the reward grows "
            "against the cost: below it points would move to infinity. Raise the penalty, or bound "
            "the mean cost by radius="
        )
        self.penalty, self.bound = penalty, bound


@dataclass(frozen=True, eq=False)
class ProximalStep:
    r"""
    Points that maximise :math:`r(y) - \lambda c(x, y)`, and what is known of the maximum.

    :ivar points: the :math:`y`, shape (n, d).
    :ivar reward: :math:`r(y)`, shape (n,).
    :ivar cost: :math:`c(x, y)`, shape (n,).
    :ivar slack: an upper bound on what the maximum exceeds the value by, (n,); zero for a closed
        form, ``inf`` where no bound is known.
    :ivar calls: rows at which the reward was evaluated.

    >>> zeros = torch.zeros(3)
    >>> step = ProximalStep(torch.zeros(3, 2), zeros + 1.0, zeros, zeros)
    >>> len(ProximalStep.cat([step, step]).reward)
    6
    """

    points: Tensor
    reward: Tensor
    cost: Tensor
    slack: Tensor
    calls: int = 0

    def value(self, penalty: float) -> Tensor:
        """
        The objective of each point.

        :param penalty: :math:`\\lambda`.
        """
        return self.reward - penalty * self.cost

    @staticmethod
    def cat(parts: Sequence[ProximalStep]) -> ProximalStep:
        """
        The rows of all parts, in order.

        :param parts: at least one.
        """
        if len(parts) == 1:
            return parts[0]
        points, reward, cost, slack = (
            torch.cat([getattr(part, name) for part in parts])
            for name in ("points", "reward", "cost", "slack")
        )
        return ProximalStep(points, reward, cost, slack, sum(part.calls for part in parts))
