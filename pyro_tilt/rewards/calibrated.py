# SPDX-License-Identifier: Apache-2.0
"""Rewards as ranks among those of the base law."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pyro_tilt.rewards.base import Reward
from pyro_tilt.rewards.black_box import as_reward

__all__ = ["Calibrated"]

TRANSFORMS = ("identity", "exponential", "log")


class Calibrated(Reward):
    r"""
    A reward replaced by a function of its rank among rewards of base draws.

    .. math:: C(x) = P_{\text{base}}(r < r(x)) + \tfrac12 P_{\text{base}}(r = r(x)),

    estimated from ``base_rewards``, so that ties count by half. C lies in [0, 1], whatever the
    scale of the reward, and is uniform over the base where there are no ties; a beta then means
    the same for every reward and prompt, and a largest reward is known. It does not change under
    increasing maps of the reward. A reward of ``-inf`` stays ``-inf``.

    With ``transform="exponential"`` the reward is

    .. math:: \frac{e^{t C} - 1}{e^t - 1}

    (:math:`e^{tC}` is the transform of Balashankar et al. 2025, arXiv 2412.19792, for best-of-n);
    the shift changes no tilt, and the scale keeps it within [0, 1]: a beta here is
    :math:`\beta / (e^t - 1)` for :math:`e^{tC}` itself. ``"identity"`` is C and ``"log"`` its
    logarithm, where C is kept above half the mass of one base draw.

    The base rewards are one sample for all prompts at hand; of several prompts, each needs its own.

    :param reward: a reward or a callable.
    :param base_rewards: rewards of draws of the base law, (M,), ``-inf`` allowed.
    :param transform: ``"exponential"``, ``"identity"`` or ``"log"``.
    :param t: of the exponential transform, above 0.
    :raises ValueError: for no base rewards, NaN or ``+inf`` among them, an unknown transform, a t
        that is not positive.

    >>> reward = Calibrated(lambda x: x, torch.tensor([1.0, 2.0, 2.0, 5.0]), transform="identity")
    >>> reward(torch.tensor([0.0, 1.0, 2.0, 3.0, 5.0])).tolist()
    [0.0, 0.125, 0.5, 0.75, 0.875]
    """

    def __init__(
        self,
        reward: Any,
        base_rewards: Tensor,
        *,
        transform: str = "exponential",
        t: float = 10.0,
    ) -> None:
        self.reward = as_reward(reward)
        base = torch.as_tensor(base_rewards).detach()
        if base.dim() != 1 or not len(base):
            raise ValueError(
                f"base_rewards must be (M,), at least one reward of a base draw; got shape "
                f"{tuple(base.shape)}"
            )
        if not base.is_floating_point():
            base = base.to(torch.get_default_dtype())
        if not float(base.amax()) < math.inf:
            raise ValueError("base_rewards hold NaN or +inf; a reward must be a number or -inf")
        if transform not in TRANSFORMS:
            raise ValueError(f"transform must be one of {', '.join(TRANSFORMS)}; got {transform!r}")
        if not 0.0 < t < math.inf:
            raise ValueError(f"t must be positive and finite, got {t!r}")
        self.base_rewards = base.sort().values
        self.transform, self.t = transform, float(t)
        self.event_dim = self.reward.event_dim

    def __repr__(self) -> str:
        t = f", t={self.t:g}" if self.transform == "exponential" else ""
        size = len(self.base_rewards)
        return f"Calibrated({self.reward!r}, {size} base rewards, transform={self.transform!r}{t})"

    def __call__(self, value: Any) -> Tensor:
        reward = self.reward(value)
        if not isinstance(reward, Tensor):
            raise TypeError(f"the reward must return a tensor, got {type(reward).__name__}")
        rank = self.rank(reward)
        if self.transform == "exponential":
            # Both terms would overflow at large t.
            rank = torch.exp(self.t * (rank - 1.0)) * _expm1_ratio(rank, self.t)
        elif self.transform == "log":
            rank = rank.clamp(min=0.5 / len(self.base_rewards)).log()
        # What excludes a value, or is no number, is for the caller to see.
        return torch.where((reward == -math.inf) | (reward != reward), reward.to(rank), rank)

    def rank(self, rewards: Tensor) -> Tensor:
        """
        The calibrated reward C of rewards.

        :param rewards: of any shape.

        >>> Calibrated(lambda x: x, torch.tensor([0.0, 0.0])).rank(torch.tensor(0.0)).item()
        0.5
        """
        kind = rewards.dtype if rewards.is_floating_point() else self.base_rewards.dtype
        common = torch.promote_types(kind, self.base_rewards.dtype)
        base = self.base_rewards.to(rewards.device, common)
        found = rewards.detach().to(common).contiguous()
        below = torch.searchsorted(base, found)
        upto = torch.searchsorted(base, found, right=True)
        return ((below + upto).to(torch.float64) / (2 * len(base))).to(kind)

    @property
    def lower_bound(self) -> float:
        """0 where the reward has a lower bound, so that it is never -inf."""
        if self.reward.lower_bound == -math.inf:
            return -math.inf
        return math.log(0.5 / len(self.base_rewards)) if self.transform == "log" else 0.0

    @property
    def upper_bound(self) -> float:
        """1, or 0 for the logarithm."""
        return 0.0 if self.transform == "log" else 1.0


def _expm1_ratio(rank: Tensor, t: float) -> Tensor:
    """(1 - exp(-t C)) / (1 - exp(-t))."""
    return torch.expm1(-t * rank) / math.expm1(-t)
