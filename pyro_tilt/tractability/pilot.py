# SPDX-License-Identifier: Apache-2.0
"""A few draws of the base, from which acceptance rates are predicted."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_tilt.ops import effective_sample_size, khat_threshold, pareto_smooth

__all__ = ["Pilot"]


@dataclass(frozen=True, eq=False)
class Pilot:
    r"""
    Log weights :math:`\log w = \beta r` plus log factors of independent base draws.

    :ivar log_weights: shape (n,), float64.
    :ivar log_bound: an upper bound on all log weights, inf where none is known.

    >>> pilot = Pilot(torch.tensor([0.5, 1.0], dtype=torch.float64).log(), 0.0)
    >>> acceptance, error = pilot.acceptance(0.0)
    >>> acceptance, round(error, 3)
    (0.75, 0.25)
    """

    log_weights: Tensor
    log_bound: float

    def __len__(self) -> int:
        return len(self.log_weights)

    def acceptance(self, log_bound: float) -> tuple[float, float]:
        r"""
        Mean of :math:`\min(1, e^{\log w - B})` and its standard error.

        :param log_bound: :math:`B`.
        """
        odds = (self.log_weights - log_bound).clamp(max=0.0).exp()
        n = len(odds)
        error = float(odds.std()) / math.sqrt(n) if n > 1 else math.nan
        return float(odds.mean()), error

    @property
    def effective_share(self) -> float:
        """Share of effective draws, at least one of the pilot's; zero if every weight is zero."""
        if not bool((self.log_weights > -math.inf).any()):
            return 0.0
        return float(effective_sample_size(self.log_weights)) / len(self)

    @property
    def doubt(self) -> str:
        """Why :attr:`effective_share` is not to be trusted, as a clause; empty where it is.

        A sample that has not met the heaviest weights overstates its effective size. The shape of
        the tail tells; where no tail can be fitted, ten effective draws are asked for.
        """
        counted = self.effective_share * len(self)
        if counted < 10.0:
            return f"only {counted:.1f} of them count, so that the true share may be far lower"
        shape, limit = float(pareto_smooth(self.log_weights)[1]), khat_threshold(len(self))
        if math.isfinite(shape) and shape > limit:
            return f"but the weights are too heavy to tell (pareto_k {shape:.2f} > {limit:.2f})"
        return ""

    @property
    def effective_share_error(self) -> float:
        """Standard error of :attr:`effective_share`, by the jackknife."""
        n = len(self)
        if n < 3 or self.effective_share == 0.0:
            return math.nan
        w = (self.log_weights - self.log_weights.amax()).exp()
        first, second = w.sum() - w, w.square().sum() - w.square()
        left_out = first.square() / second.clamp(min=1e-300) / (n - 1)
        spread = (left_out - left_out.mean()).square().sum() * (n - 1) / n
        return float(torch.sqrt(spread))
