# SPDX-License-Identifier: Apache-2.0
"""The divergence of best-of-n: bound, estimator by class mass, win rates, curves."""

import math

import pytest
import torch
from scipy import integrate

from pyro_tilt.diagnostics import kl
from pyro_tilt.language import laws


def spread_evenly(size):
    base = torch.full((size,), 1.0 / size, dtype=torch.float64)
    return base, torch.arange(size, dtype=torch.float64)


@pytest.mark.parametrize(
    ("size", "n", "divergence", "estimate", "bound"),
    [
        (2, 2, 0.1308, 0.1791, 0.1931),
        (2, 8, 0.6676, 0.6723, 1.2044),
        (10, 100, 2.3023, 2.3023, 3.6152),
        (100, 100, 3.5745, 3.5897, 3.6152),
    ],
)
def test_even_laws(size, n, divergence, estimate, bound):
    base, rewards = spread_evenly(size)
    law = laws.best_of_n(base, rewards, n)
    assert float(kl.exact(law, base)) == pytest.approx(divergence, abs=6e-5)
    found = (law * kl.best_of_n_estimate(base, n)).sum()
    assert float(found) == pytest.approx(estimate, abs=6e-5)
    assert kl.best_of_n_bound(n) == pytest.approx(bound, abs=6e-5)


def test_estimate_is_exact_for_one_atom_on_top():
    mass, n = 0.2, 8

    def density(u):
        return n * u ** (n - 1) * math.log(n * u ** (n - 1)) if u > 0 else 0.0

    rest = integrate.quad(density, 0.0, 1.0 - mass)[0]
    hit = 1.0 - (1.0 - mass) ** n
    expected = rest + hit * math.log(hit / mass)
    assert float(kl.best_of_n_estimate(mass, n)) == pytest.approx(expected, rel=1e-9)


def test_ties_need_the_mass_of_their_class():
    base = torch.full((100,), 0.01, dtype=torch.float64)
    rewards = (torch.arange(100.0) >= 80.0).double()
    law = laws.best_of_n(base, rewards, 8)
    true = float(kl.exact(law, base))
    assert true == pytest.approx(0.9245, abs=5e-5)
    masses = kl.class_mass(rewards, rewards, base)
    right = float((law * kl.best_of_n_estimate(masses, 8)).sum())
    # The mass of the selected outcome alone gives the bound, a third too much.
    wrong = float((law * kl.best_of_n_estimate(base, 8)).sum())
    assert right == pytest.approx(0.9750, abs=5e-5)
    assert wrong - true > 5.0 * (right - true) > 0.0
    drawn = rewards[torch.multinomial(base, 4000, True, generator=torch.Generator().manual_seed(0))]
    shares = kl.class_mass(torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64), drawn)
    assert shares[2] == 0.0
    assert abs(float(shares[0]) - 0.2) < 4.5 * math.sqrt(0.16 / 4000)


def test_estimate_at_its_ends():
    n = 50
    masses = torch.tensor([0.0, 1e-320, 1e-300, 1e-12, 0.999999999, 1.0], dtype=torch.float64)
    found = kl.best_of_n_estimate(masses, n)
    bound = kl.best_of_n_bound(n)
    torch.testing.assert_close(
        found[:4], torch.full((4,), bound, dtype=torch.float64), rtol=1e-9, atol=0
    )
    assert found[5] == 0.0 and 0.0 <= float(found[4]) < 1e-7
    logs = torch.tensor([-1e4, -700.0, 0.0], dtype=torch.float64)
    found = kl.best_of_n_estimate(logs, n, log=True)
    torch.testing.assert_close(found, torch.tensor([bound, bound, 0.0], dtype=torch.float64))
    grid = torch.linspace(0.0, 1.0, 1001, dtype=torch.float64)
    assert bool((kl.best_of_n_estimate(grid, n).diff() <= 1e-12).all())
    torch.testing.assert_close(kl.best_of_n_estimate(grid, 1), torch.zeros_like(grid))
    assert float(kl.best_of_n_estimate(1, 2)) == 0.0


def test_divergence_grows_with_n_and_knows_only_the_order():
    base = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    rewards = torch.tensor([0.1, 0.5, 0.5, 0.2], dtype=torch.float64)
    spent = [float(kl.exact(laws.best_of_n(base, rewards, n), base)) for n in range(1, 30)]
    assert spent[0] == pytest.approx(0.0, abs=1e-14)
    assert spent == sorted(spent)
    assert spent[-1] < -math.log(0.5)


def test_exact():
    law, base = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.25, 0.25, 0.5])
    assert float(kl.exact(law, base)) == pytest.approx(math.log(2.0))
    assert float(kl.exact(law.log(), base.log(), log=True)) == pytest.approx(math.log(2.0))
    assert float(kl.exact(base, law)) == math.inf
    assert kl.exact(torch.stack([law, base]), base).tolist() == [pytest.approx(math.log(2.0)), 0.0]
    with pytest.raises(ValueError, match="different outcomes"):
        kl.exact(law, base[:2])
    with pytest.raises(ValueError, match="law holds NaN"):
        kl.exact(law - 0.1, base)
    with pytest.raises(ValueError, match="base holds NaN"):
        kl.exact(law, base * math.nan)


def test_win_rate():
    base = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    rewards = torch.tensor([-math.inf, 2.0, 1.0], dtype=torch.float64)
    for law in (base, laws.best_of_n(base, rewards, 3)):
        expected = 0.0
        for i in range(3):
            for j in range(3):
                score = 0.5 if i == j else float(rewards[i] > rewards[j])
                expected += float(law[i] * base[j]) * score
        assert float(kl.win_rate(law, base, rewards)) == pytest.approx(expected)
    fine, order = spread_evenly(2000)
    for n in (1, 4):
        rate = float(kl.win_rate(laws.best_of_n(fine, order, n), fine, order))
        assert rate == pytest.approx(kl.win_rate_bound(n), abs=2e-3)
    assert float(kl.best_of_n_gap_bound(fine, order, 4)) == pytest.approx(24 / 2000)


def test_curve_is_the_mean_over_subsets():
    from itertools import combinations

    rewards = torch.tensor([0.3, -1.0, 2.0, 0.3, 1.1], dtype=torch.float64)
    curve = kl.best_of_n_curve(rewards, range(1, 6))
    for n in range(1, 6):
        best = [max(float(r) for r in subset) for subset in combinations(rewards, n)]
        assert float(curve[n - 1]) == pytest.approx(sum(best) / len(best))
    excluded = kl.best_of_n_curve(torch.tensor([-math.inf, 0.0, 1.0]), [1, 2, 3])
    assert excluded.tolist() == [-math.inf, pytest.approx(2 / 3), 1.0]


def test_curve_is_unbiased_and_stable_for_many_draws():
    base = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    rewards = torch.tensor([0.0, 0.5, 1.0, 3.0], dtype=torch.float64)
    generator = torch.Generator().manual_seed(4)
    drawn = rewards[torch.multinomial(base, 40_000 * 12, True, generator=generator)]
    curves = kl.best_of_n_curve(drawn.reshape(40_000, 12), [1, 5, 12])
    for column, n in enumerate((1, 5, 12)):
        exact = float((laws.best_of_n(base, rewards, n) * rewards).sum())
        score = (curves[:, column].mean() - exact) / (curves[:, column].std() / 200.0)
        assert abs(float(score)) < 4.5
    many = torch.linspace(0.0, 1.0, 100_000, dtype=torch.float64)
    found = kl.best_of_n_curve(many, [1, 99_999])
    torch.testing.assert_close(found, torch.tensor([0.5, 1.0]).double(), rtol=0, atol=1e-5)


def test_bad_input():
    rewards = torch.arange(4.0)
    base = torch.full((4,), 0.25)
    for n in (0, -1, 2.5, True):
        for call in (
            lambda n=n: kl.best_of_n_bound(n),
            lambda n=n: kl.best_of_n_estimate(0.5, n),
            lambda n=n: kl.best_of_n_gap_bound(base, rewards, n),
            lambda n=n: kl.blockwise_bound(n, 2),
            lambda n=n: kl.win_rate_bound(n),
            lambda n=n: kl.best_of_n_curve(rewards, [n]),
        ):
            with pytest.raises(ValueError, match="n must be"):
                call()
    with pytest.raises(ValueError, match="num_blocks"):
        kl.blockwise_bound(2, 0)
    for mass in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="selected_mass"):
            kl.best_of_n_estimate(mass, 3)
    with pytest.raises(ValueError, match="exceeds"):
        kl.best_of_n_curve(rewards, [5])
    with pytest.raises(ValueError, match="NaN"):
        kl.best_of_n_curve(rewards * math.nan, [1])
    with pytest.raises(ValueError, match="shapes"):
        kl.class_mass(rewards.reshape(2, 2), rewards)
    with pytest.raises(ValueError, match="NaN"):
        kl.class_mass(rewards, rewards * math.nan)
    with pytest.raises(ValueError, match="base must"):
        kl.class_mass(rewards, rewards, base[:2])
    with pytest.raises(ValueError, match="different outcomes"):
        kl.win_rate(base[:3], base, rewards)
    with pytest.raises(ValueError, match="one shape"):
        kl.best_of_n_gap_bound(base, rewards[:2], 2)
