# SPDX-License-Identifier: Apache-2.0
"""What a way of steering the digits achieved, in numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyro_tilt.examples.means import mean_by_chain, mean_of
from pyro_tilt.infer import WeightedSamples
from pyro_tilt.rewards import Reward

SHOWN = 36


@dataclass(frozen=True)
class Target:
    """
    What is asked of the digits.

    :ivar name: in words.
    :ivar reward: of a digit.
    :ivar beta: multiplies the reward.
    :ivar confirm: of digits to 1 where the second classifier agrees, and 0 elsewhere.
    :ivar confirms: what it agrees to.
    """

    name: str
    reward: Reward
    beta: float
    confirm: Callable[[Tensor], Tensor]
    confirms: str


@dataclass
class Outcome:
    """
    One row of the comparison.

    :ivar method: its name.
    :ivar target: that of the certificate, and ``law`` its word.
    :ivar draws: how many it gave.
    :ivar reward: mean under the law of the draws, with a standard error.
    :ivar confirmed: share that the second classifier confirms.
    :ivar corrected: mean reward under the residual weights, with a standard error.
    :ivar corrected_ess: their effective sample size.
    :ivar log_z: log evidence, with a standard error.
    :ivar kl: from the base: of the tilt, or for best-of-n the upper bound of its law.
    :ivar ancestors: initial noises that the draws descend from.
    :ivar estimated_tv: that of the certificate.
    :ivar setup_rows: network rows of the training, outside the budget.
    :ivar images: some equally weighted draws.
    """

    method: str
    target: str
    law: str
    draws: int
    reward: tuple[float, float]
    confirmed: float
    corrected: tuple[float, float] | None
    corrected_ess: float | None
    log_z: tuple[float, float] | None
    kl: float | None
    kl_is_bound: bool
    ancestors: int
    estimated_tv: float | None
    proposals_per_step: float | None
    network_rows: int
    value_calls: int
    seconds: float
    setup_rows: int = 0
    setup_seconds: float = 0.0
    images: Tensor = field(default_factory=lambda: torch.zeros(0), repr=False)

    def line(self) -> str:
        """A short line on the way."""
        return (
            f"{self.method:32} reward {self.reward[0]:8.4f}  confirmed {self.confirmed:.3f}  "
            f"{self.ancestors:5d} ancestors  {self.network_rows:6d} rows  {self.seconds:5.1f} s"
        )

    def facts(self) -> dict[str, Any]:
        """Everything but the images, for JSON."""
        facts = asdict(self)
        del facts["images"]
        return facts


@torch.no_grad()
def describe(
    method: str,
    result: WeightedSamples,
    target: Target,
    *,
    setup_rows: int = 0,
    setup_seconds: float = 0.0,
) -> Outcome:
    """
    The row of a result.

    :param method: its name.
    :param result: draws of digits.
    :param target: what was asked for.
    :param setup_rows: see :class:`Outcome`.
    :param setup_seconds: see :class:`Outcome`.
    """
    images = result.samples["x_0"]
    reward = target.reward(images).double()
    corrected, size = None, None
    residual = result.residual_log_weights
    if residual is not None and bool((residual > -math.inf).any()):
        weights = residual.softmax(0)
        corrected, size = mean_of(reward, weights), float(1.0 / weights.square().sum())
    kl, bound = result.info.get("kl_upper_bound"), "kl_upper_bound" in result.info
    tilted = result.certificate.target == "joint tilt" or corrected is not None
    if kl is None and result.beta is not None and tilted:
        kl = _kl(result, reward, residual)
    log_z, error = float(result.log_normalizer), float(result.log_normalizer_error)
    states_evidence = result.beta is not None and math.isfinite(log_z)
    return Outcome(
        method=method,
        target=result.certificate.target,
        law=result.certificate.law,
        draws=len(result),
        reward=mean_by_chain(reward, result),
        confirmed=float((result.normalized_weights * target.confirm(images)).sum()),
        corrected=corrected,
        corrected_ess=size,
        log_z=(log_z, error) if states_evidence else None,
        kl=kl,
        kl_is_bound=bound,
        ancestors=_ancestors(result),
        estimated_tv=result.certificate.estimated_total_variation,
        proposals_per_step=result.info.get("proposals_per_step"),
        network_rows=result.cost.network_rows or 0,
        value_calls=result.cost.value_calls,
        seconds=result.cost.seconds,
        setup_rows=setup_rows,
        setup_seconds=setup_seconds,
        images=result.get_samples(min(SHOWN, len(result)), seed=0)["x_0"],
    )


def _kl(result: WeightedSamples, reward: Tensor, residual: Tensor | None) -> float | None:
    """beta E r - log Z, as the program has no observations and its own evidence is one."""
    weights = result.normalized_weights if residual is None else residual.softmax(0)
    spent = float(result.beta or 0.0) * float((weights * reward).sum())
    found = spent - float(result.log_normalizer)
    return max(found, 0.0) if math.isfinite(found) else None


def _ancestors(result: WeightedSamples) -> int:
    """Distinct initial states among the draws; those without resampling have their own."""
    if "ancestor" not in result.stats:
        return len(result)
    parts = result.stats["ancestor"].split(list(result.chain_sizes))
    return sum(len(part.unique()) for part in parts)
