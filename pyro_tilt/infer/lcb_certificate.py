# SPDX-License-Identifier: Apache-2.0
r"""What the accepted draws of a clipped rejection sampler say about its own error.

With :math:`q_b \propto p\,e^{\min(A, b)}` the law of the accepted draws,

.. math:: \mathbb E_{q_b}\bigl[e^{(A - b)_+} - 1\bigr] = \frac{\kappa}{1 - \kappa},

so that the clipped mass :math:`\kappa \ge \mathrm{TV}(q_b, q)` is estimated without bias from draws
that are already there, with no further proposal and without the normaliser.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy import stats
from torch import Tensor

from pyro_tilt.infer.certificate import Certificate
from pyro_tilt.ops.clipped_law import (
    clipped_mass_from_accepted,
    clipped_mass_upper,
    total_variation_from_accepted,
)

__all__ = ["Clipping", "clipping", "lcb_certificate"]


@dataclass(frozen=True)
class Clipping:
    """The error of a clipped rejection run.

    :ivar clipped_mass: estimate of kappa.
    :ivar clipped_mass_error: its standard error.
    :ivar clipped_mass_upper: upper confidence bound of kappa; None for unbounded weights.
    :ivar total_variation: estimated distance of the draws' law to the target.
    :ivar total_variation_upper: its upper confidence bound, capped draws included; None for
        unbounded weights, and for a run with a cap that was cut short.
    :ivar confidence: of the upper bounds.
    :ivar exact: nothing can be clipped, the baseline is at the weight's upper bound.
    """

    clipped_mass: float
    clipped_mass_error: float
    clipped_mass_upper: float | None
    total_variation: float
    total_variation_upper: float | None
    confidence: float
    num_draws: int
    num_capped: int
    exact: bool

    def info(self) -> dict[str, float]:
        """The numbers to report with a result."""
        numbers: dict[str, float | None] = {
            "clipped_mass": self.clipped_mass,
            "clipped_mass_upper": self.clipped_mass_upper,
            "capped": float(self.num_capped),
        }
        return {name: value for name, value in numbers.items() if value is not None}

    def excess_score(self, epsilon: float) -> float:
        """By how many standard errors the clipped mass exceeds ``epsilon``; 0 for few draws."""
        excess = self.clipped_mass - epsilon
        # The spread of a handful of draws is no yardstick: they may all happen to agree.
        if not excess > 0.0 or self.num_draws - self.num_capped < 100:
            return 0.0
        return excess / self.clipped_mass_error if self.clipped_mass_error > 0.0 else math.inf


def clipping(
    log_weights: Tensor,
    capped: Tensor,
    *,
    baseline: float,
    log_bound: float,
    confidence: float,
    may_cap: bool,
    complete: bool = True,
) -> Clipping:
    """Reads the error off the accepted draws.

    :param log_weights: log weights of the kept draws, shape (N,).
    :param capped: which of them hold a rejected proposal, shape (N,).
    :param baseline: the acceptance baseline.
    :param log_bound: an upper bound on all log weights, inf where none is known.
    :param confidence: of the upper bounds; split evenly where draws may be capped as well.
    :param may_cap: whether the run had a cap: a draw of it is capped with some probability, even
        if none was.
    :param complete: whether every slot was filled. Of a run cut short the draws that took few
        proposals are kept, so that its capped ones are too few to bound their share.
    """
    accepted = log_weights[~capped]
    num, num_capped = len(log_weights), int(capped.sum())
    share = num_capped / num if num else 0.0
    kappa, error, distance = 0.0, math.nan, 1.0
    if len(accepted):
        mass, mass_error = clipped_mass_from_accepted(accepted, baseline)
        kappa, error = float(mass), float(mass_error)
        distance = float(total_variation_from_accepted(accepted, baseline, kappa))
    part = 0.5 + 0.5 * confidence if may_cap else confidence
    upper = clipped_mass_upper(accepted, baseline, log_bound, confidence=part)
    total_upper = None
    if upper is not None and (complete or not may_cap):
        capped_upper = _share_upper(num_capped, num, part) if may_cap else 0.0
        total_upper = min(1.0, upper + capped_upper)
    return Clipping(
        clipped_mass=kappa,
        clipped_mass_error=error,
        clipped_mass_upper=upper,
        total_variation=min(1.0, distance + share),
        total_variation_upper=total_upper,
        confidence=confidence,
        num_draws=num,
        num_capped=num_capped,
        exact=log_bound <= baseline and not may_cap,
    )


def _share_upper(count: int, num: int, confidence: float) -> float:
    """Clopper and Pearson's upper bound on the share of capped draws."""
    return float(stats.beta.ppf(confidence, count + 1, num - count)) if count < num else 1.0


def lcb_certificate(found: Clipping) -> Certificate:
    """The certificate that a clipped rejection run earns."""
    if found.exact:
        return Certificate(
            target="joint tilt",
            law="exact",
            covers="independent draws; the baseline is at the upper bound of the weight",
        )
    covers = "unweighted draws; clipping at the baseline" + (
        f"; {found.num_capped} capped draws" if found.num_capped else ""
    )
    if found.total_variation_upper is not None:
        return Certificate(
            target="joint tilt",
            law="bounded",
            total_variation=found.total_variation_upper,
            confidence=found.confidence,
            estimated_total_variation=found.total_variation,
            covers=covers,
        )
    return Certificate(
        target="joint tilt",
        law="consistent",
        budget="num_calibration, with epsilon to 0,",
        estimated_total_variation=found.total_variation,
        covers=covers,
        excludes="rewards larger than any that was drawn: with an unbounded weight no bound from "
        "samples is valid"
        if found.clipped_mass_upper is None
        else "how often draws would be capped: the run was cut short",
    )
