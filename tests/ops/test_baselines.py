# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch
from scipy import integrate
from scipy.stats import norm

from pyro_tilt.ops.baselines import (
    LAMBDAS,
    Baseline,
    budget_baseline,
    chernoff_baseline,
    chernoff_bound,
    exact_chernoff_baseline,
    exchange_baseline,
    exchange_loss,
    log_chernoff_constant,
)
from pyro_tilt.ops.calibration import calibrate, calibration_shift
from pyro_tilt.ops.clipped_law import ClippedLaw, clipped_mass_from_proposals

inf = math.inf
GAUSSIANS = [(m, s, e) for m, s in ((0.0, 0.5), (-1.3, 1.0), (2.0, 2.0)) for e in (0.2, 0.01, 1e-4)]


def gaussian_psi(mean, scale):
    return lambda s: s * mean + s * s * scale * scale / 2


def gaussian_clipped_mass(mean, scale, b):
    """Of A ~ N(mean, scale^2), whose target is N(mean + scale^2, scale^2)."""
    log_z = gaussian_psi(mean, scale)(1.0)
    above = norm.sf(b, mean + scale**2, scale)
    return above - math.exp(b - log_z) * norm.sf(b, mean, scale)


def discrete(seed=0, size=30):
    generator = torch.Generator().manual_seed(seed)
    log_p = torch.randn(size, generator=generator, dtype=torch.float64).log_softmax(0)
    A = 1.5 * torch.randn(size, generator=generator, dtype=torch.float64)
    return log_p, A, lambda s: float(torch.logsumexp(log_p + s * A, 0))


def test_constant_is_the_least_that_works():
    lam = torch.tensor([0.1, 1.0, 2.0, 7.5], dtype=torch.float64)
    constant = log_chernoff_constant(lam).exp()
    assert constant[1].item() == pytest.approx(1 / 4, rel=1e-14)
    assert constant[2].item() == pytest.approx(4 / 27, rel=1e-14)
    u = torch.linspace(0.0, 5.0, 2_000_001, dtype=torch.float64)
    for value, bound in zip(lam, constant, strict=True):
        ratio = -torch.expm1(-u) * (-value * u).exp()
        assert ratio.max() <= bound + 1e-14
        assert ratio.max().item() == pytest.approx(bound.item(), rel=1e-9)


@pytest.mark.parametrize("mean, scale, epsilon", GAUSSIANS)
def test_plain_chernoff_of_a_gaussian(mean, scale, epsilon):
    found = exact_chernoff_baseline(gaussian_psi(mean, scale), epsilon, sharp=False)
    log_term = math.log(1 / epsilon)
    best = mean + scale**2 + scale * math.sqrt(2 * log_term)
    assert found.value == pytest.approx(best, abs=1e-9)
    assert found.lam == pytest.approx(math.sqrt(2 * log_term) / scale, rel=1e-4)
    assert norm.sf(found.value, mean + scale**2, scale) <= epsilon


@pytest.mark.parametrize("epsilon", [0.1, 0.3])
def test_plain_chernoff_optimum_on_a_discrete_base(epsilon):
    # KL(p_{1+lam*} || q) = log 1/eps, and b* is the mean of A under p_{1+lam*}.
    for seed in range(20):
        log_p, A, psi = discrete(seed)
        target = log_p + A - psi(1.0)
        if target[A.argmax()] > math.log(epsilon) - 0.2:
            continue  # the bound is then reached only as lam grows without limit
        found = exact_chernoff_baseline(psi, epsilon, sharp=False)
        s = 1 + found.lam
        tilted = log_p + s * A - psi(s)
        divergence = (tilted.exp() * (tilted - target)).sum().item()
        assert divergence == pytest.approx(-math.log(epsilon), rel=2e-4)
        assert (tilted.exp() * A).sum().item() == pytest.approx(found.value, abs=2e-4)


@pytest.mark.parametrize(
    "scale, epsilon, sharp, plain",
    [(0.5, 0.01, 3.10, 5.17), (1, 0.1, 5.47, 14.2), (1, 0.01, 15.7, 34.3), (2, 0.01, 1019, 3198)],
)
def test_proposals_of_the_gaussian_table(scale, epsilon, sharp, plain):
    for is_sharp, expected in ((True, sharp), (False, plain)):
        found = exact_chernoff_baseline(gaussian_psi(0.0, scale), epsilon, sharp=is_sharp)
        mass = gaussian_clipped_mass(0.0, scale, found.value)
        assert mass <= epsilon
        cost = math.exp(found.value - found.log_z) / (1 - mass)
        assert cost == pytest.approx(expected, rel=3e-3)


def test_gaussian_clipped_mass_against_quadrature():
    mass = integrate.quad(
        lambda a: norm.pdf(a, 1.5, 1.0) * max(0.0, 1 - math.exp(2.0 - a)), 2.0, 15.0
    )[0]
    assert gaussian_clipped_mass(0.5, 1.0, 2.0) == pytest.approx(mass, rel=1e-8)


@pytest.mark.parametrize("sharp", [True, False])
@pytest.mark.parametrize("epsilon", [0.3, 0.05, 0.001])
def test_certified_on_discrete_bases(epsilon, sharp):
    for seed in range(20):
        log_p, A, psi = discrete(seed)
        found = exact_chernoff_baseline(psi, epsilon, sharp=sharp, upper_bound=float(A.max()))
        law = ClippedLaw(log_p, A, torch.tensor(found.value, dtype=torch.float64))
        assert law.clipped_mass <= epsilon + 1e-12
        assert found.log_z <= found.value <= A.max() + 1e-12
        grid = torch.tensor(LAMBDAS, dtype=torch.float64)
        values = torch.tensor([psi(1 + lam) for lam in LAMBDAS], dtype=torch.float64)
        bounds = chernoff_bound(values, psi(1.0), grid, epsilon, sharp=sharp)
        assert found.value <= max(float(bounds.min()), found.log_z) + 1e-9
        for b in bounds:
            exact = ClippedLaw(log_p, A, b).clipped_mass
            assert exact <= epsilon + 1e-12


def test_sharp_is_below_plain_and_at_least_the_floor():
    log_p, A, psi = discrete()
    for epsilon in (0.5, 0.05):
        sharp = exact_chernoff_baseline(psi, epsilon).value
        assert psi(1.0) <= sharp < exact_chernoff_baseline(psi, epsilon, sharp=False).value
    loose = exact_chernoff_baseline(gaussian_psi(0.0, 0.1), 0.9)
    assert loose.value == loose.log_z
    drawn = chernoff_baseline(0.1 * torch.randn(1000), 0.9)
    assert drawn.value == drawn.log_z


def test_heavy_tails_have_no_chernoff_baseline():
    with pytest.raises(ValueError, match="no finite Chernoff baseline"):
        exact_chernoff_baseline(lambda s: -math.log(1 - s / 2) if s <= 1 else inf, 0.05)
    partly = exact_chernoff_baseline(lambda s: -math.log(1 - s / 2) if s < 2 else inf, 0.05)
    assert 0 < partly.lam < 1 and math.isfinite(partly.value)


def test_draws_find_the_exact_baseline():
    # Ten runs of 100,000 draws: an estimate has sd 0.022, their mean 0.007; the gate is four sd.
    exact = exact_chernoff_baseline(gaussian_psi(-0.4, 0.8), 0.05)
    found = [chernoff_baseline(0.8 * torch.randn(100_000) - 0.4, 0.05) for _ in range(10)]
    values = torch.tensor([f.value for f in found])
    assert abs(values.mean().item() - exact.value) < 0.03
    assert all(f.trusted and f.effective_sample_size >= 50 for f in found)
    assert all(f.clipped_mass <= 0.05 for f in found)
    assert found[0].rule == "chernoff"


def test_gate_keeps_unreliable_exponents_out():
    A = 2.0 * torch.randn(2000, dtype=torch.float64)
    gated = chernoff_baseline(A, 1e-4)
    free = chernoff_baseline(A, 1e-4, min_ess=0.0)
    assert free.lam > gated.lam and free.effective_sample_size < 50
    assert not gated.trusted or gated.effective_sample_size >= 50
    hopeless = chernoff_baseline(6.0 * A, 0.05)
    assert not hopeless.trusted and hopeless.lam == LAMBDAS[0]


def test_weighted_draws_stand_for_base_draws():
    # Draws of N(1, 1) weighted back to N(0, 1) against 0.8 x: the base-law values within 0.05.
    x = 1 + torch.randn(400_000, dtype=torch.float64)
    log_weights = 0.5 - x
    A = 0.8 * x
    found = chernoff_baseline(A, 0.05, log_weights=log_weights)
    exact = exact_chernoff_baseline(gaussian_psi(0.0, 0.8), 0.05)
    assert found.log_z == pytest.approx(0.32, abs=0.02)
    assert found.value == pytest.approx(exact.value, abs=0.05)
    assert found.clipped_mass == pytest.approx(
        gaussian_clipped_mass(0.0, 0.8, found.value), rel=0.1
    )
    exchange = exchange_baseline(A, 100.0, log_weights=log_weights)
    assert exchange.value == pytest.approx(
        exchange_baseline(0.8 * torch.randn(400_000), 100.0).value, abs=0.1
    )


def test_budget():
    A = 0.7 * torch.randn(100_000, dtype=torch.float64)
    found = budget_baseline(A, 5.0)
    assert found.value == pytest.approx(found.log_z + math.log(5.0))
    assert found.expected_proposals == pytest.approx(5.0 / (1 - found.clipped_mass))
    accepted = (A - found.value).clamp(max=0).exp().mean().item()
    assert 1 / accepted == pytest.approx(found.expected_proposals, rel=1e-9)
    assert budget_baseline(A, 1e9, upper_bound=4.0).value == 4.0
    with pytest.raises(ValueError, match="at least 1"):
        budget_baseline(A, 0.5)


@pytest.mark.parametrize("rate", [3.0, 30.0, 300.0])
def test_exchange_minimises_cost_plus_clipped_mass(rate):
    A = torch.randn(5001, dtype=torch.float64)
    found = exchange_baseline(A, rate)
    log_p = torch.full_like(A, -math.log(len(A)))
    grid = found.log_z + torch.linspace(0.0, 4.0, 801, dtype=torch.float64)

    def cost(b):
        law = ClippedLaw(log_p.expand(len(b), -1), A.expand(len(b), -1), b)
        return law.expected_proposals + rate * law.clipped_mass

    best = cost(torch.tensor([found.value], dtype=torch.float64))
    assert (best <= cost(grid) + 1e-9).all()
    assert best.item() == pytest.approx(
        found.expected_proposals + rate * found.clipped_mass, rel=1e-9
    )
    # Stationarity, as far as one draw more or less above b allows.
    above = A.gt(found.value).double().mean().item()
    stationary = 1 / (found.expected_proposals + rate * (1 - found.clipped_mass))
    if found.value > found.log_z:
        assert abs(above - stationary) <= 1.01 / len(A)


def test_exchange_orders_by_rate_and_floors():
    A = torch.randn(20_000, dtype=torch.float64)
    values = [exchange_baseline(A, rate) for rate in (0.0, 10.0, 100.0, 1000.0)]
    assert values[0].value == values[0].log_z
    assert all(a.value < b.value for a, b in zip(values, values[1:], strict=False))
    assert all(a.clipped_mass > b.clipped_mass for a, b in zip(values, values[1:], strict=False))
    assert exchange_baseline(A, 1e9).value == A.max()
    with pytest.raises(ValueError, match="negative"):
        exchange_baseline(A, -1.0)


def test_exchange_with_huge_weights():
    A = torch.randn(1000, dtype=torch.float64) * 1e6
    found = exchange_baseline(A, 100.0)
    assert math.isfinite(found.value) and found.value <= A.max()
    assert not found.trusted


@pytest.mark.parametrize("rate", [20.0, 200.0])
def test_exchange_loss_is_minimal_at_the_base_quantile(rate):
    A = 0.5 * torch.randn(10_000, dtype=torch.float64)
    log_z = A.exp().mean().log()
    b = torch.sort(A).values[9000:]
    loss = exchange_loss(b[:, None], A, log_z, rate).mean(-1)
    best = b[loss.argmin()].item()
    assert best == pytest.approx(A.quantile(1 - 1 / rate).item(), abs=2e-3 * rate**0.5)
    middle = exchange_loss(((b[0].exp() + b[-1].exp()) / 2).log(), A, log_z, rate).mean()
    assert middle <= (loss[0] + loss[-1]) / 2


def test_exchange_tends_to_the_quantile():
    A = 0.5 * torch.randn(100_000, dtype=torch.float64)
    limit = exchange_baseline(A, 500.0).value
    assert limit == pytest.approx(A.quantile(1 - 1 / 500).item(), abs=0.01)


@pytest.mark.parametrize("epsilon", [0.3, 0.02, 1e-4])
def test_calibration_hits_epsilon_exactly(epsilon):
    A = torch.randn(5000, dtype=torch.float64)
    A[::7] = -inf
    for start in (-2.0, 1.0, 9.0):
        shift = calibration_shift(A - start, epsilon)
        mass = clipped_mass_from_proposals(A, start + shift).item()
        assert mass == pytest.approx(epsilon, rel=1e-9)
    spread = torch.rand(5000, dtype=torch.float64)
    shift = calibration_shift(A - spread, epsilon, log_weights=A - 2 * spread)
    weights = (A - 2 * spread).exp()
    lost = weights * (1 - (spread + shift - A).exp()).clamp(min=0)
    assert (lost.sum() / weights.sum()).item() == pytest.approx(epsilon, rel=1e-9)


def test_calibrated_baseline_keeps_floor_and_bound():
    A = torch.randn(5000, dtype=torch.float64)
    start = chernoff_baseline(A, 0.05)
    done = calibrate(start, torch.randn(5000, dtype=torch.float64), 0.05)
    assert done.clipped_mass == pytest.approx(0.05) and done.value < start.value
    assert done.shift == pytest.approx(done.value - start.value) and done.lam == start.lam
    floored = calibrate(start, A, 0.9)
    assert floored.value == floored.log_z and floored.clipped_mass < 0.9
    bounded = calibrate(Baseline(1.0, "budget", 0.0), A, 1e-6, upper_bound=2.0)
    assert bounded.value == 2.0
    weighted = calibrate(start, A.repeat(2), 0.05, log_weights=torch.zeros(10_000) + 3)
    assert weighted.value == pytest.approx(calibrate(start, A, 0.05).value)


def test_calibration_controls_the_clipped_mass_on_fresh_draws():
    # True clipped mass after calibration on 100,000 held-out draws: sd about 2e-4, gate 1.5e-3.
    start = budget_baseline(0.6 * torch.randn(10_000), 3.0)
    done = calibrate(start, 0.6 * torch.randn(100_000), 0.02)
    assert gaussian_clipped_mass(0.0, 0.6, done.value) == pytest.approx(0.02, abs=1.5e-3)


def test_bad_arguments():
    A = torch.randn(100)
    for epsilon in (0.0, 1.0, -0.1, math.nan):
        with pytest.raises(ValueError, match="epsilon"):
            chernoff_baseline(A, epsilon)
        with pytest.raises(ValueError, match="epsilon"):
            exact_chernoff_baseline(gaussian_psi(0, 1), epsilon)
        with pytest.raises(ValueError, match="epsilon"):
            calibration_shift(A, epsilon)
    for call in (
        lambda x: chernoff_baseline(x, 0.1),
        lambda x: budget_baseline(x, 2.0),
        lambda x: exchange_baseline(x, 2.0),
        lambda x: calibrate(Baseline(0.0, "budget", 0.0), x, 0.1),
    ):
        with pytest.raises(ValueError, match="weight zero"):
            call(torch.full((3,), -inf))
        with pytest.raises(ValueError, match="nan"):
            call(torch.tensor([0.0, math.nan]))
