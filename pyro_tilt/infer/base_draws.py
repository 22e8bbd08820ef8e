# SPDX-License-Identifier: Apache-2.0
"""Proposals from the base program that a result keeps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class BaseDraws:
    """
    What the proposals from the base program looked like, for pictures of before and after.

    :param reward: rewards of base draws, shape ``(M,)``.
    :param log_factors: log weights towards the base program with its observations, ``(M,)``.
    :raises ValueError: where the two differ in shape.

    >>> import torch
    >>> BaseDraws(reward=torch.zeros(3), log_factors=torch.zeros(3)).reward.shape
    torch.Size([3])
    """

    reward: Tensor
    log_factors: Tensor

    def __post_init__(self) -> None:
        if self.reward.dim() != 1 or self.reward.shape != self.log_factors.shape:
            raise ValueError(
                "base reward and log_factors need one shape (M,); got "
                f"{tuple(self.reward.shape)} and {tuple(self.log_factors.shape)}"
            )

    def to(self, device: torch.device | str) -> BaseDraws:
        """
        A copy on another device.

        :param device: where to.
        """
        return BaseDraws(reward=self.reward.to(device), log_factors=self.log_factors.to(device))
