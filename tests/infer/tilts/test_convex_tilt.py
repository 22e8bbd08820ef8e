# SPDX-License-Identifier: Apache-2.0
"""Convex and concave tilts of mixtures against quadrature over the features."""

import math

import pyro
import pytest
import torch
from test_convex_envelopes import CONVEX, ONE, TWO
from tilt_models import F64, exact_draws, gate_bins, mixture, model, network

from pyro_tilt import rewards
from pyro_tilt.infer import ConvexTilt
from pyro_tilt.infer.errors import AcceptanceTooLow
from pyro_tilt.infer.tilts.convex_family import DrawOptions
from pyro_tilt.infer.tilts.convex_pool import PooledFamily
from pyro_tilt.testing.gates import Z_SCORE


def feature_law(f, A, direction):
    """Bins of a feature with their probabilities under p e^f, and log E e^f, by quadrature."""
    parts = mixture().component_distribution
    weights = mixture().mixture_distribution.probs
    rows = torch.cat([A, direction[None]]) if len(A) == 1 else A
    axes = [torch.linspace(-9, 9, 1401, dtype=F64) for _ in range(2)]
    u = torch.cartesian_prod(*axes)
    covariance = torch.einsum("rd,kd,sd->krs", rows, parts.variance, rows)
    law = torch.distributions.MultivariateNormal(parts.mean @ rows.T, covariance)
    logs = (law.log_prob(u.unsqueeze(1)) + weights.log()).logsumexp(-1) + f(u[:, : len(A)])
    cell = float(axes[0][1] - axes[0][0]) ** 2
    log_z = float(logs.logsumexp(0)) + math.log(cell)
    density = (logs - logs.logsumexp(0)).exp().view(1401, 1401)
    return rows, axes[0], density, log_z


def gate_law(draws, f, A, direction):
    """Chi-square of both coordinates, over bins of about equal mass."""
    rows, axis, density, log_z = feature_law(f, A, direction)
    step = float(axis[1] - axis[0])
    for i in range(2):
        mass = density.sum(1 - i)
        cdf = torch.cat([torch.zeros(1, dtype=F64), mass.cumsum(0)])
        places = torch.linspace(0.02, 0.98, 25, dtype=F64)
        index = torch.searchsorted(cdf, places).unique()
        edges = axis[0] - 0.5 * step + step * index.double()
        gate_bins(draws @ rows[i], cdf[index].diff(), edges)
    return log_z


DIRECTION = torch.tensor([-0.3, 1.0], dtype=F64)


CASES = [(name, "lp") for name in CONVEX] + [
    (name, kind) for name in CONVEX if len(CONVEX[name][2]) == 1 for kind in ("lse", "tangent")
]


@pytest.mark.parametrize(("name", "envelope"), CASES)
def test_convex_tilts(name, envelope):
    f, lipschitz, A = CONVEX[name]
    reward = rewards.LowDim(f, A, convex=True, lipschitz=lipschitz)
    with exact_draws():
        result = ConvexTilt(
            model(), reward, beta=1.2, num_samples=20_000, seed=2, envelope=envelope
        ).run()
    draws = result.samples["x_0"]
    log_z = gate_law(draws, lambda u: 1.2 * f(u), A, DIRECTION)
    error = float(result.log_normalizer_error)
    assert abs(float(result.log_normalizer) - log_z) < Z_SCORE * error + 1e-6
    assert error < 0.02
    expected, rate = result.info["predicted_acceptance"], result.info["acceptance_rate"]
    count = int(result.stats["proposals"].sum())
    slack = math.hypot(
        math.sqrt(expected * (1 - expected) / count), result.info["predicted_acceptance_error"]
    )
    assert abs(rate - expected) < Z_SCORE * slack + 1e-6
    torch.testing.assert_close(result.stats["reward"], reward(draws))
    assert result.certificate.law == "consistent"
    assert "not certified" in result.certificate.excludes


CONCAVE = {
    "bowl": (lambda u: -1.5 * (u[..., 0] - 1.0).square(), ONE),
    "far": (lambda u: -2.0 * (u[..., 0] - 4.0).square(), ONE),
    "kink": (lambda u: -2.0 * (u[..., 0] - 0.4).abs(), ONE),
    "flat": (lambda u: u[..., 0].clamp(max=0.3), ONE),
    "two": (lambda u: -(u - torch.tensor([1.0, -1.0]).to(u)).square().sum(-1), TWO),
}


@pytest.mark.parametrize("name", CONCAVE)
def test_concave_tilts(name):
    f, A = CONCAVE[name]
    with exact_draws():
        tilt = ConvexTilt(model(), rewards.LowDim(f, A, concave=True), num_samples=6000, seed=2)
        result = tilt.run()
    log_z = gate_law(result.samples["x_0"], f, A, DIRECTION)
    error = float(result.log_normalizer_error)
    assert abs(float(result.log_normalizer) - log_z) < Z_SCORE * error + 1e-6
    # No other single tilt has less mass: the optimum of a convex problem, up to its smoothing.
    plan = tilt.plan()
    best = plan.mixture.log_mass
    u = torch.linspace(-12, 12, 200_001, dtype=F64)[:, None]
    if len(A) == 1:
        values = f(u)
        slopes = plan.envelope.slopes[0, 0] + torch.linspace(-3, 3, 61, dtype=F64)
        others = [
            float(plan.mixture.family.log_normalizer(v.reshape(1, 1))[0])
            + float((values - u[:, 0] * v).max())
            for v in slopes
        ]
        assert best <= min(others) + 0.03
        assert float((values - plan.envelope.log_value(u)).max()) <= 1e-9


def test_a_far_target_is_reached_by_the_tangent_alone():
    """-5 (u - 6)^2: one proposal in ten thousand millions of the base, most of the tilt's."""
    f = rewards.LowDim(lambda u: -5.0 * (u[..., 0] - 6.0).square(), ONE, concave=True)
    plan = ConvexTilt(model(), f).plan()
    assert 0.2 < plan.acceptance < 0.8
    base_share = plan.acceptance * math.exp(plan.mixture.log_mass)
    assert base_share < 1e-9


def test_max_affine_in_any_number_of_pieces():
    generator = torch.Generator().manual_seed(1)
    slopes = torch.randn(9, 2, generator=generator, dtype=F64)
    shifts = 0.3 * torch.randn(9, generator=generator, dtype=F64)
    reward = rewards.MaxAffine(slopes, shifts)
    with exact_draws():
        result = ConvexTilt(model(), reward, beta=0.7, num_samples=20_000, seed=0).run()
    eye = torch.eye(2, dtype=F64)
    log_z = gate_law(
        result.samples["x_0"], lambda u: 0.7 * (u @ slopes.T + shifts).amax(-1), eye, DIRECTION
    )
    error = float(result.log_normalizer_error)
    assert abs(float(result.log_normalizer) - log_z) < Z_SCORE * error + 1e-5
    assert result.info["acceptance_rate"] > 1 / 9
    assert "not certified" not in result.certificate.excludes


def test_beta_zero_is_the_base():
    reward = rewards.LowDim(lambda u: u[..., 0].abs(), ONE, convex=True, lipschitz=1.0)
    base = model()
    result = ConvexTilt(base, reward, beta=0.0, num_samples=1, seed=9).run()
    pyro.set_rng_seed(9)
    assert torch.equal(result.samples["x_0"][0], base.program()())
    assert float(result.log_normalizer) == pytest.approx(0.0, abs=1e-9)


def test_a_negative_beta_turns_convex_into_concave():
    reward = rewards.LowDim(lambda u: 0.5 * u[..., 0].square(), ONE, convex=True)
    with exact_draws():
        result = ConvexTilt(model(), reward, beta=-2.0, num_samples=5000, seed=0).run()
    gate_law(result.samples["x_0"], lambda u: -u[..., 0].square(), ONE, DIRECTION)
    slopes = torch.tensor([[1.0, 0.0], [-0.5, 0.5]], dtype=F64)
    pieces = rewards.MaxAffine(slopes, torch.zeros(2, dtype=F64))
    with exact_draws():
        result = ConvexTilt(model(), pieces, beta=-1.0, num_samples=5000, seed=0).run()
    eye = torch.eye(2, dtype=F64)
    gate_law(result.samples["x_0"], lambda u: -(u @ slopes.T).amax(-1), eye, DIRECTION)


def test_seeds_and_chains():
    reward = rewards.LowDim(lambda u: u[..., 0].abs(), ONE, convex=True, lipschitz=1.0)
    runs = [ConvexTilt(model(), reward, num_samples=40, seed=s).run() for s in (3, 3, 4)]
    assert torch.equal(runs[0].samples["x_0"], runs[1].samples["x_0"])
    assert not torch.equal(runs[0].samples["x_0"], runs[2].samples["x_0"])
    chains = ConvexTilt(model(), reward, num_samples=40, num_chains=2, seed=3).run()
    assert torch.equal(chains.samples["x_0"][:40], runs[0].samples["x_0"])


def test_too_low_an_acceptance_is_refused_before_a_draw():
    f = rewards.LowDim(lambda u: -5e5 * (u[..., 0] - 6.0).square(), ONE, concave=True)
    tilt = ConvexTilt(model(), f, min_acceptance=0.01)
    with pytest.raises(AcceptanceTooLow, match="predicted acceptance.*ProximalTransport"):
        tilt.run()
    assert tilt.plan().acceptance < 0.01


def test_an_acceptance_above_one_stops_the_run_with_its_witness():
    """A range that is too small for the proposals: the envelope fails outside it."""
    reward = rewards.LowDim(lambda u: 0.15 * u[..., 0].square(), ONE, convex=True)
    with pytest.raises(ValueError, match=r"above one, at the features \("):
        ConvexTilt(model(), reward, range=([-0.5], [0.5]), num_samples=4000, seed=0).run()


def test_a_concavity_that_no_check_sees_beforehand_is_caught_on_the_run():
    """Convex in every place that is looked at before the draws, by counting the calls."""
    calls = []

    def fickle(u):
        calls.append(len(u))
        honest = u[..., 0].abs()
        return honest if len(u) != 777 else honest - 0.5 * u[..., 0].square()

    reward = rewards.LowDim(fickle, ONE, convex=True)
    with pytest.raises(ValueError, match="declared convex"):
        ConvexTilt(model(), reward, num_samples=777, seed=0).run()


def test_bad_arguments():
    plain = rewards.LowDim(lambda u: u[..., 0].abs(), ONE)
    with pytest.raises(ValueError, match="declared convex or concave"):
        ConvexTilt(model(), plain)
    with pytest.raises(TypeError, match="LowDim or a rewards.MaxAffine"):
        ConvexTilt(model(), rewards.Linear(torch.zeros(2)))
    with pytest.raises(ValueError, match="event|shape"):
        ConvexTilt(model(3), rewards.LowDim(lambda u: u[..., 0], ONE, convex=True))
    many = rewards.LowDim(lambda u: u.norm(dim=-1), torch.randn(4, 2), convex=True)
    with pytest.raises(NotImplementedError, match="4 features"):
        ConvexTilt(model(), many).plan()
    fine = rewards.LowDim(lambda u: u[..., 0].abs(), ONE, convex=True)
    for options in ({"envelope": "box"}, {"min_acceptance": 2.0}, {"exit_probability": 0.0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            ConvexTilt(model(), fine, **options)
    broken = rewards.LowDim(lambda u: u[..., 0] * float("nan"), ONE, convex=True)
    with pytest.raises(ValueError, match="NaN"):
        ConvexTilt(model(), broken, num_samples=5).run()


def test_estimated_normalizers_enter_the_certificate():
    f, lipschitz, A = CONVEX["absolute"]
    reward = rewards.LowDim(f, A, convex=True, lipschitz=lipschitz)
    *_, log_z = feature_law(lambda u: 1.2 * f(u), A, DIRECTION)
    bounds = {}
    for size, max_z in ((500, 1e9), (2000, 1e9), (2000, None)):
        result = ConvexTilt(
            network(),
            reward,
            beta=1.2,
            num_samples=300,
            seed=0,
            normalizer_samples=size,
            max_z=max_z,
        ).run()
        error = float(result.log_normalizer_error)
        assert abs(float(result.log_normalizer) - log_z) < Z_SCORE * error + 0.03
        assert result.certificate.law == "consistent"
        bounds[size, max_z] = result.certificate.estimated_total_variation
    assert bounds[2000, 1e9] < 0.8 * bounds[500, 1e9]
    # Warm starts repeat the errors of the pool, which have to show.
    assert bounds[2000, None] > bounds[2000, 1e9]


def test_warm_starts_add_the_variance_of_their_weights():
    """A pool of n effective draws knows no normaliser better than 1 / n, however often reused."""
    family = PooledFamily(network(), ONE, None, DrawOptions(max_z=1.0, normalizer_samples=400))
    torch.manual_seed(0)
    _, errors = family.log_normalizer(torch.tensor([[0.0], [1.5]], dtype=F64))
    anchors = len(family.anchors) - 1
    assert anchors >= 1
    assert float(errors.min()) ** 2 >= anchors / (400 * (anchors + 1))
    cold = PooledFamily(network(), ONE, None, DrawOptions(normalizer_samples=400))
    assert float(cold.log_normalizer(torch.zeros(1, 1, dtype=F64))[1]) < 1e-6


def test_the_evidence_of_few_draws_is_unbiased():
    """Streams end with an acceptance; counting that proposal would bias the mean upwards."""
    f = rewards.LowDim(lambda u: -1.5 * (u[..., 0] - 1.0).square(), ONE, concave=True)
    plan = ConvexTilt(model(), f).plan()
    *_, log_z = feature_law(lambda u: -1.5 * (u[..., 0] - 1.0).square(), ONE, DIRECTION)
    torch.manual_seed(0)
    found = []
    with exact_draws():
        for _ in range(800):
            outcome = plan.mixture.draw(3, log_target=plan.f, log_envelope=plan.envelope.log_value)
            found.append(math.exp(outcome.log_normalizer - log_z))
    values = torch.tensor(found, dtype=F64)
    assert abs(float(values.mean()) - 1) < Z_SCORE * float(values.std()) / math.sqrt(len(values))


@pytest.mark.slow
def test_through_the_diffusion():
    """The slack is that of 200 steps."""
    f, lipschitz, A = CONVEX["hinge"]
    reward = rewards.LowDim(f, A, convex=True, lipschitz=lipschitz)
    draws = ConvexTilt(model(steps=200), reward, num_samples=10_000, seed=3).run().samples["x_0"]
    rows, axis, density, _ = feature_law(f, A, DIRECTION)
    mean = density.sum(1) @ axis
    found = draws @ rows[0]
    assert abs(float(found.mean() - mean)) < Z_SCORE * float(found.std()) / 100 + 0.02
