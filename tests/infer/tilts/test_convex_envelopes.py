# SPDX-License-Identifier: Apache-2.0
"""Envelopes dominate, bounds bound, and false declarations are found out with a witness."""

import math

import pytest
import torch
from tilt_models import F64, model

from pyro_tilt import rewards
from pyro_tilt.infer import ConvexTilt
from pyro_tilt.infer.tilts.convex_bounds import Envelope, excess
from pyro_tilt.infer.tilts.convex_family import ExactFamily
from pyro_tilt.infer.tilts.convex_feature import FeatureFunction
from pyro_tilt.infer.tilts.convex_range import feature_range

ONE = torch.tensor([[0.9, 0.45]], dtype=F64)
TWO = torch.tensor([[0.8, 0.3], [-0.2, 0.7]], dtype=F64)


def huber(u):
    size = u.abs()
    return torch.where(size < 0.7, size.square() / 1.4, size - 0.35).sum(-1)


CONVEX = {
    "absolute": (lambda u: (u - 0.37).abs().sum(-1), 1.0, ONE),
    "hinge": (lambda u: (u[..., 0] - 0.8).clamp(min=0), 1.0, ONE),
    "huber": (huber, 1.0, ONE),
    "quadratic": (lambda u: 0.15 * (u[..., 0] - 0.5).square(), None, ONE),
    "norm": (lambda u: (u - torch.tensor([0.3, -0.2]).to(u)).norm(dim=-1), 1.0, TWO),
    "largest": (lambda u: u.amax(-1).clamp(min=-0.5), 1.0, TWO),
    "bowl": (lambda u: 0.12 * u.square().sum(-1) + 0.1 * u[..., 0] * u[..., 1], None, TWO),
}


def tilt_of(name, **options):
    f, lipschitz, A = CONVEX[name]
    reward = rewards.LowDim(f, A, convex=True, lipschitz=lipschitz)
    return ConvexTilt(model(), reward, beta=1.2, **options)


@pytest.mark.parametrize("envelope", ["lp", "lse", "tangent"])
@pytest.mark.parametrize("name", CONVEX)
def test_an_envelope_dominates_between_the_points_of_every_grid(name, envelope):
    plan = tilt_of(name, envelope=envelope).plan()
    torch.manual_seed(0)
    u = plan.low + (plan.high - plan.low) * torch.rand(200_000, len(plan.low), dtype=F64)
    gap = 1.2 * CONVEX[name][0](u) - plan.envelope.log_value(u)
    assert float(gap.max()) <= 1e-9
    # What the construction promises: the programme's optimum, or one over the number of tangents.
    pieces = len(plan.envelope.slopes)
    promised = 0.97 * plan.optimum if envelope == "lp" else math.exp(-1.02) / pieces
    assert plan.acceptance > promised


@pytest.mark.parametrize("name", ["absolute", "hinge", "huber", "quadratic"])
def test_the_linear_programme_beats_the_others_and_meets_its_own_optimum(name):
    plans = {kind: tilt_of(name, envelope=kind).plan() for kind in ("lp", "lse", "tangent")}
    assert plans["lp"].acceptance > 0.998 * plans["lp"].optimum
    masses = {kind: plan.mixture.log_mass for kind, plan in plans.items()}
    assert masses["lp"] <= masses["lse"] + 2e-3 and masses["lse"] <= masses["tangent"] + 2e-3


@pytest.mark.parametrize("name", CONVEX)
def test_the_predicted_acceptance_is_that_of_quadrature(name):
    """E e^f over the mass of the envelope, E by a sum over the law of the features."""
    f, _, A = CONVEX[name]
    plan = tilt_of(name).plan()
    parts = model().mixture.component_distribution
    weights = model().mixture.mixture_distribution.probs
    low, high = plan.low - 3, plan.high + 3
    size = 4001 if len(A) == 1 else 801
    axes = [torch.linspace(a, b, size, dtype=F64) for a, b in zip(low, high)]
    u = torch.cartesian_prod(*axes).reshape(-1, len(A))
    cell = math.prod(float(axis[1] - axis[0]) for axis in axes)
    covariance = torch.einsum("rd,kd,sd->krs", A, parts.variance, A)
    law = torch.distributions.MultivariateNormal(parts.mean @ A.T, covariance)
    density = (law.log_prob(u.unsqueeze(1)).exp() * weights).sum(-1)
    evidence = float((density * (1.2 * f(u)).exp()).sum()) * cell
    mass = float((density * plan.envelope.log_value(u).exp()).sum()) * cell
    assert math.exp(plan.mixture.log_mass) == pytest.approx(mass, rel=1e-5)
    exact = evidence / mass
    assert abs(plan.acceptance - exact) < 4.5 * plan.acceptance_error + 1e-5


def test_the_supremum_is_bracketed():
    f = FeatureFunction(lambda u: (u - 0.2).abs().sum(-1), True)
    envelope = Envelope(
        torch.tensor([[1.0, 0.4], [-0.7, -1.0], [0.0, 0.9]], dtype=F64),
        torch.tensor([0.1, -0.2, 0.3], dtype=F64),
    )
    low, high = torch.tensor([-3.0, -2.0], dtype=F64), torch.tensor([2.0, 4.0], dtype=F64)
    for tangents in (False, True):
        found = excess(f, envelope, low, high, tolerance=1e-4, tangents=tangents)
        axes = [torch.linspace(a, b, 1501, dtype=F64) for a, b in zip(low, high)]
        u = torch.cartesian_prod(*axes)
        below = envelope.largest(u)[0] if tangents else envelope.log_value(u)
        dense = float((f(u) - below).max())
        assert found.lower <= dense + 1e-9 and dense <= found.upper <= dense + 0.02


def test_a_lipschitz_constant_bounds_what_convexity_does_not():
    """At a kink inside a cell the corners are far above; both bounds hold, the smaller is taken."""
    plain = FeatureFunction(lambda u: 5 * u.abs().sum(-1), True)
    flat = Envelope(torch.zeros(1, 1, dtype=F64), torch.zeros(1, dtype=F64))
    low, high = -torch.ones(1, dtype=F64), torch.ones(1, dtype=F64)
    known = FeatureFunction(plain.reward, True, 5.0)
    for f in (plain, known):
        found = excess(f, flat, low, high, tolerance=1e-3)
        assert found.lower <= 5.0 <= found.upper + 1e-9 and found.upper < 5.02


@pytest.mark.parametrize("lipschitz", [None, 2.0])
def test_a_function_that_is_not_convex_is_found_out(lipschitz):
    def wavy(u):
        return (u[..., 0] + 0.6 * torch.sin(2 * u[..., 0])).clamp(min=-3.0)

    with pytest.raises(ValueError, match=r"declared convex, but at the features \(.*above"):
        ConvexTilt(
            model(), rewards.LowDim(wavy, ONE, convex=True, lipschitz=lipschitz), num_samples=5
        ).run()


def test_a_function_that_is_not_concave_is_found_out():
    with pytest.raises(ValueError, match=r"declared concave, but at the features .*below"):
        ConvexTilt(
            model(), rewards.LowDim(lambda u: u[..., 0].abs(), ONE, concave=True), num_samples=5
        ).run()


def test_a_wrong_lipschitz_constant_is_found_out():
    reward = rewards.LowDim(lambda u: 1.3 * u[..., 0].abs(), ONE, convex=True, lipschitz=1.0)
    with pytest.raises(ValueError, match="not Lipschitz as declared: between the features"):
        ConvexTilt(model(), reward, num_samples=5).run()
    # A steep part that only a narrow range shows is found among the draws of the check.
    late = rewards.LowDim(
        lambda u: u[..., 0].clamp(min=2.0) * 1.05, ONE, convex=True, lipschitz=1.0
    )
    with pytest.raises(ValueError, match="not Lipschitz"):
        ConvexTilt(model(), late, beta=1.5, num_samples=5).run()


def test_the_checks_scale_with_beta():
    reward = rewards.LowDim(lambda u: u[..., 0].abs(), ONE, convex=True, lipschitz=1.0)
    assert ConvexTilt(model(), reward, beta=2.5).plan().f.lipschitz == pytest.approx(2.5)


def test_a_reward_that_is_not_integrable_is_refused():
    reward = rewards.LowDim(lambda u: 2.0 * u[..., 0].square(), ONE, convex=True)
    with pytest.raises(ValueError, match="not integrable"):
        ConvexTilt(model(), reward).plan()


def test_a_reward_that_is_too_strong_is_not_said_to_be_impossible():
    reward = rewards.LowDim(lambda u: u[..., 0].abs(), ONE, convex=True, lipschitz=1.0)
    with pytest.raises(ValueError, match="too strong .* lies too far out to be enclosed. Lower"):
        ConvexTilt(model(), reward, beta=1e6).plan()


def test_the_range_holds_the_features_of_every_tilt_in_it():
    f = FeatureFunction(lambda u: 0.2 * u[..., 0].square(), True)
    family = ExactFamily(model(), ONE)
    low, high = feature_range(f, family, exit_probability=1e-3)
    slopes = torch.tensor([[0.4 * float(low)], [0.0], [0.4 * float(high)]], dtype=F64)
    bound = family.exits(slopes, low, high)
    torch.manual_seed(0)
    for slope, most in zip(slopes, bound.tolist()):
        law = model().tilted_law(rewards.Linear(family.theta(slope))).law
        u = law.sample((200_000,)) @ ONE.T
        outside = float(((u < low) | (u > high)).double().mean())
        assert outside <= most * 1.0 + 4.5 * math.sqrt(most / 200_000) and most < 1.1e-3
        assert float(u.max()) > 0.3 * float(high) or float(slope) <= 0.0


def test_rewards_without_gradients_take_differences():
    def detached(u):
        return u.detach()[..., 0].abs()

    plan = ConvexTilt(
        model(), rewards.LowDim(detached, ONE, convex=True, lipschitz=1.0), beta=1.2
    ).plan()
    graded = ConvexTilt(
        model(),
        rewards.LowDim(lambda u: u[..., 0].abs(), ONE, convex=True, lipschitz=1.0),
        beta=1.2,
    ).plan()
    assert plan.acceptance == pytest.approx(graded.acceptance, abs=0.01)


@pytest.mark.parametrize("name", ["absolute", "huber", "quadratic", "largest"])
def test_tangent_envelopes_are_scaled_until_they_touch(name):
    for kind in ("lse", "tangent"):
        plan = tilt_of(name, envelope=kind).plan()
        torch.manual_seed(0)
        u = plan.low + (plan.high - plan.low) * torch.rand(400_000, len(plan.low), dtype=F64)
        below = plan.envelope.log_value(u) if kind == "lse" else plan.envelope.largest(u)[0]
        gap = float((1.2 * CONVEX[name][0](u) - below).max())
        assert -0.02 < gap <= 1e-9


def test_far_corners_do_not_raise_the_whole_envelope():
    """A steep bowl, whose features reach far out: there the grid of slopes is too coarse."""
    A = 1.9 * torch.eye(2, dtype=F64)
    reward = rewards.LowDim(lambda u: 0.5 * u.square().sum(-1), A, convex=True)
    plan = ConvexTilt(model(), reward, beta=0.4).plan()
    assert plan.acceptance > 0.97 * plan.optimum
