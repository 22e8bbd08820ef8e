# SPDX-License-Identifier: Apache-2.0
"""What the options of SMC come to, and the certificate that it earns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from pyro_tilt.infer.certificate import Certificate
from pyro_tilt.infer.smc.messenger import Twist
from pyro_tilt.infer.smc.proposals import Proposal, gradient_proposal
from pyro_tilt.infer.weighted_samples import WeightedSamples


def certificate_of(target: str, subsampled: list[str]) -> Certificate:
    """The certificate of weighted particles."""
    return Certificate(
        target=target,
        law="consistent",
        budget="num_particles",
        covers="self-normalised expectations under any twist that is positive where later mass is; "
        "the evidence is unbiased at every number of particles",
        excludes="the error at this number of particles, which the effective sample sizes and the "
        "ancestors left describe but do not bound"
        + (f"; the minibatch of {subsampled[0]!r}, shared by all particles" if subsampled else ""),
    )


def frozen_schedule(given: WeightedSamples | Sequence[bool] | Tensor | None) -> list[bool] | None:
    """When to resample, from an earlier result or as given."""
    if given is None:
        return None
    if isinstance(given, WeightedSamples):
        if "resampled" not in given.steps:
            raise ValueError("freeze_schedule: the result has no steps to take the schedule from")
        given = given.steps["resampled"]
        given = given if given.dim() == 1 else given[0]
    return [bool(each) for each in given]


def steering(
    guide: Any, proposal: Proposal | str | None, twist: Twist | None
) -> tuple[Callable[..., Any] | None, Proposal | None]:
    """Either a guide to step beside the program or laws to propose site by site."""
    if guide is not None and proposal is not None:
        raise ValueError("give a guide or a proposal, not both")
    if hasattr(guide, "get_posterior"):
        posterior = guide.get_posterior
        return None, lambda name, fn, carry, x: posterior(name, fn)
    if guide is not None and not callable(guide):
        raise TypeError(f"guide must be callable, got {type(guide).__name__}")
    if isinstance(proposal, str):
        if proposal != "gradient":
            raise ValueError(f"proposal must be a function or 'gradient', got {proposal!r}")
        if twist is None:
            raise ValueError("proposal='gradient' needs twist=, a function of state and step")
        return None, gradient_proposal(twist)
    if proposal is not None and not callable(proposal):
        raise TypeError(f"proposal must be a function, got {type(proposal).__name__}")
    return guide, proposal
