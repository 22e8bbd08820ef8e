# SPDX-License-Identifier: Apache-2.0
"""What is known of a convex tilt before a step of the diffusion is run for its draws."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_tilt.infer.errors import AcceptanceTooLow
from pyro_tilt.infer.seeding import seeded
from pyro_tilt.infer.tilts.convex_bounds import Envelope
from pyro_tilt.infer.tilts.convex_concave import optimal_tangent
from pyro_tilt.infer.tilts.convex_envelope import linear_programme, tangent_envelope
from pyro_tilt.infer.tilts.convex_family import DrawOptions, ExactFamily, TiltFamily
from pyro_tilt.infer.tilts.convex_feature import FeatureFunction
from pyro_tilt.infer.tilts.convex_mixture import TiltMixture
from pyro_tilt.infer.tilts.convex_pool import make_family
from pyro_tilt.infer.tilts.convex_range import feature_range
from pyro_tilt.infer.tilts.protocols import DiffusionModel
from pyro_tilt.rewards import LowDim, MaxAffine

__all__ = ["ConvexPlan", "PlanOptions", "plan_tilt"]

MAX_FEATURES = 3


@dataclass(frozen=True)
class PlanOptions:
    """
    Options of a plan.

    :ivar envelope: ``"lp"``, ``"lse"`` or ``"tangent"``.
    :ivar slopes: slopes for the linear programme, shape (J, k).
    :ivar range: ends of the features, two tensors of shape (k,).
    :ivar exit_probability: of the features from the range, under each tilt.
    """

    envelope: str = "lp"
    slopes: Tensor | None = None
    range: tuple[Tensor, Tensor] | None = None
    exit_probability: float = 1e-9


@dataclass(frozen=True)
class ConvexPlan:
    """
    A mixture of tilts to draw from, and how often its draws will be accepted.

    :ivar f: the reward of the features, beta folded in.
    :ivar envelope: of its exponential.
    :ivar mixture: the tilts, weighted.
    :ivar acceptance: the predicted acceptance probability.
    :ivar acceptance_error: its standard error.
    :ivar optimum: the acceptance that the linear programme itself promises, before the envelope was
        raised between the points of its grid; the acceptance where there is no programme.
    :ivar low: lower ends of the features for which the envelope is certified.
    :ivar high: upper ends.
    :ivar exit: a bound on the probability that a proposal leaves them, nan where unknown.
    :ivar everywhere: whether the envelope holds for all features.
    """

    f: FeatureFunction
    envelope: Envelope
    mixture: TiltMixture
    acceptance: float
    acceptance_error: float
    optimum: float
    low: Tensor
    high: Tensor
    exit: float
    everywhere: bool

    def require(self, least: float) -> None:
        """
        Refuses where too few proposals would be accepted.

        :param least: the least acceptance.
        :raises AcceptanceTooLow: saying what to use instead.
        """
        if self.acceptance < least:
            hint = "TemperedSMC, SMC or LCB on the model's program"
            if not self.f.convex:
                hint += (
                    "; a concave reward is easy under Wasserstein closeness, by ProximalTransport"
                )
            raise AcceptanceTooLow(
                f"the predicted acceptance is {self.acceptance:.2g}, below min_acceptance = "
                f"{least:.2g}: every draw would take {1 / max(self.acceptance, 1e-300):.3g} runs "
                f"of the diffusion. Lower beta, or use {hint}"
            )


def plan_tilt(
    base: DiffusionModel,
    reward: LowDim | MaxAffine,
    beta: float,
    draws: DrawOptions,
    options: PlanOptions,
    seed: int,
) -> ConvexPlan:
    """
    Makes the envelope and predicts its acceptance.

    :param base: the model.
    :param reward: the reward, without beta.
    :param beta: multiplies the reward.
    :param draws: how tilts are drawn.
    :param options: how to plan.
    :param seed: of the features behind the prediction.
    """
    with torch.no_grad():
        if isinstance(reward, MaxAffine) and beta >= 0.0:
            return _max_affine(base, reward, beta, draws, seed)
        if isinstance(reward, MaxAffine):
            reward = LowDim(_Largest(reward.intercepts), reward.slopes, convex=True)
        folded = reward * beta
        assert isinstance(folded, LowDim)
        f = _feature_function(folded, base)
        family = make_family(base, folded.A, None, draws)
        low, high, envelope, optimum = _envelope(f, family, options)
        mixture = TiltMixture.of(family, envelope.slopes, envelope.log_coefficients)
        exits = math.nan
        if isinstance(family, ExactFamily) and f.convex:
            exits = float(mixture.weights @ family.exits(envelope.slopes, low, high))
        return _plan(f, envelope, mixture, seed, low, high, exits, not f.convex, optimum)


def _plan(
    f: FeatureFunction,
    envelope: Envelope,
    mixture: TiltMixture,
    seed: int,
    low: Tensor,
    high: Tensor,
    exits: float,
    everywhere: bool,
    optimum: float | None = None,
) -> ConvexPlan:
    with seeded(seed):
        mean, error = mixture.family.mean(
            envelope.slopes, mixture.weights, lambda u: f(u) - envelope.log_value(u)
        )
    best = mean if optimum is None else mean * math.exp(mixture.log_mass - optimum)
    return ConvexPlan(f, envelope, mixture, mean, error, best, low, high, exits, everywhere)


def _max_affine(
    base: DiffusionModel, reward: MaxAffine, beta: float, draws: DrawOptions, seed: int
) -> ConvexPlan:
    """One tilt per piece: the sum of the exponentials is an envelope of the largest of them."""
    slopes, shifts = beta * reward.slopes, (beta * reward.intercepts).double()
    family = make_family(base, slopes, None, draws)
    f = FeatureFunction(_Largest(shifts.to(family.features)), True)
    envelope = Envelope(torch.eye(len(slopes)).to(family.features), shifts.to(family.features))
    mixture = TiltMixture.of(family, envelope.slopes, envelope.log_coefficients)
    ends = family.features.new_full((len(slopes),), math.inf)
    return _plan(f, envelope, mixture, seed, -ends, ends, 0.0, True)


class _Largest:
    def __init__(self, shifts: Tensor) -> None:
        self.shifts = shifts

    def __call__(self, u: Tensor) -> Tensor:
        return (u + self.shifts.to(u)).amax(-1)


def _feature_function(folded: LowDim, base: DiffusionModel) -> FeatureFunction:
    dtype = torch.promote_types(folded.A.dtype, base.dtype)
    return FeatureFunction(folded._inner, folded.convex is True, folded.lipschitz, dtype)


def _envelope(
    f: FeatureFunction, family: TiltFamily, options: PlanOptions
) -> tuple[Tensor, Tensor, Envelope, float | None]:
    k = len(family.features)
    if k > MAX_FEATURES:
        raise NotImplementedError(
            f"an envelope over {k} features would need exponentially many points; at most "
            f"{MAX_FEATURES} are taken, or any number of pieces of a rewards.MaxAffine. Use "
            "TemperedSMC or SMC on the model's program"
        )
    if options.range is not None:
        ends: Any = [torch.as_tensor(end).to(family.features).reshape(k) for end in options.range]
        low, high = ends
    elif f.convex:
        low, high = feature_range(f, family, exit_probability=options.exit_probability)
    else:
        low, high = family.box(family.features.new_zeros(1, k), options.exit_probability)
    _check_grid(f, low, high)
    if not f.convex:
        return low, high, optimal_tangent(f, family, low, high), None
    if options.envelope == "lp":
        slopes = options.slopes
        slopes = None if slopes is None else torch.as_tensor(slopes).to(low).reshape(-1, k)
        return low, high, *linear_programme(f, family, low, high, slopes=slopes)
    return low, high, tangent_envelope(f, family, low, high, kind=options.envelope), None


def _check_grid(f: FeatureFunction, low: Tensor, high: Tensor) -> None:
    """What was declared of f, at random points of the box."""
    generator = torch.Generator().manual_seed(0)
    share = torch.rand(4000, len(low), generator=generator, dtype=torch.float64).to(low)
    f.check_pairs(low + share * (high - low))
