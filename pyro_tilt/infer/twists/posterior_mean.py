# SPDX-License-Identifier: Apache-2.0
"""The reward of the denoised estimate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from pyro_tilt.infer.twists.twist import Twist
from pyro_tilt.poutine.tilt_factor import check_beta
from pyro_tilt.rewards import as_reward, evaluate, log_tilt

__all__ = ["PosteriorMeanTwist"]


class PosteriorMeanTwist(Twist):
    r"""
    The reward of the expected outcome in place of the outcome.

    .. math:: \log\psi_t(x_t) = \beta\, r(\hat x_0(x_t)), \qquad \hat x_0(x_t) = E[x_0 \mid x_t]

    One call of the denoiser per particle and step (Chung, Kim, McCann, Klasky and Ye 2023,
    arXiv 2209.14687; Wu, Trippe, Naesseth, Blei and Cunningham 2023, arXiv 2306.17775). Where the
    reward is linear and the spread of :math:`x_0` does not depend on :math:`x_t`, it is exact up
    to a constant of the step; in general it is the exact value at the end alone.

    :param denoise: a function of the carry and the element of ``xs`` of its step to what the
        reward reads, one per particle.
    :param reward: a reward or a plain callable.
    :param beta: multiplies the reward.

    >>> import torch
    >>> twist = PosteriorMeanTwist(lambda x, t: 0.5**t * x, lambda x: -(x - 1.0).abs(), beta=2.0)
    >>> twist(torch.tensor([1.0, 2.0]), 1)
    tensor([-1., -0.])
    """

    def __init__(
        self, denoise: Callable[[Any, Any], Any], reward: Any, beta: float | Tensor = 1.0
    ) -> None:
        super().__init__()
        if not callable(denoise):
            raise TypeError(
                f"PosteriorMeanTwist: denoise must be callable, got {type(denoise).__name__}"
            )
        self.denoise = denoise
        self.reward = as_reward(reward)
        self.beta = check_beta(beta)

    def log_psi(self, carry: Any, x: Any) -> Tensor:
        """See :meth:`Twist.log_psi`."""
        estimate = self.denoise(carry, x)
        return log_tilt(evaluate(self.reward, estimate, name=self._name(x)), self.beta)
