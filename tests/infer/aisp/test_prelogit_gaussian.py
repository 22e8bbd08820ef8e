# SPDX-License-Identifier: Apache-2.0
"""Updates of the Gaussian against closed-form fixed points; the sign of its inner product."""

import math

import pytest
import torch

from pyro_tilt.infer.aisp import PrelogitGaussian

SLOPE = torch.tensor([[0.4, -0.2, 0.1]], dtype=torch.float64)
SIGMA, LAM = 0.8, 0.9


def iterate(q, reward, rounds, n=200_000, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(rounds):
        draws = q.draw(n, generator)
        q = q.updated(draws, reward(draws))
    return q.mean


def averaged(q, reward, seed, rounds=8):
    """The mean of the last of several updates, whose noise is shrunk by alpha and by n."""
    generator = torch.Generator().manual_seed(seed)
    means = []
    for k in range(60):
        draws = q.draw(20_000, generator)
        q = q.updated(draws, reward(draws))
        if k >= 60 - rounds:
            means.append(q.mean)
    return torch.stack(means).mean(0)


def start(alpha, lam=LAM, sigma=SIGMA):
    return PrelogitGaussian(torch.zeros(1, 3, dtype=torch.float64), sigma, lam, alpha)


def linear(draws):
    return (SLOPE * draws).sum((-1, -2))


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.9])
def test_fixed_point_of_a_linear_reward(alpha):
    q = start(alpha)
    exact = SIGMA**2 * SLOPE / q.effective_lam
    # Near the fixed point weights are those of a shift by at most 9 SLOPE / LAM SIGMA.
    near = PrelogitGaussian(exact, SIGMA, LAM, alpha)
    generator = torch.Generator().manual_seed(1)
    draws = near.draw(400_000, generator)
    moved = near.updated(draws, linear(draws)).mean
    # Weights e^{<a, V> (1 - ...)} leave an effective sample above 1e5.
    torch.testing.assert_close(moved, exact, atol=6 * SIGMA / math.sqrt(1e5), rtol=0)
    # The map from anywhere is alpha U + sigma^2 a / lam.
    other = PrelogitGaussian(torch.tensor([[0.3, 0.5, -0.4]]).double(), SIGMA, LAM, alpha)
    draws = other.draw(400_000, generator)
    moved = other.updated(draws, linear(draws)).mean
    expected = alpha * other.mean + SIGMA**2 * SLOPE / LAM
    torch.testing.assert_close(moved, expected, atol=6 * SIGMA / math.sqrt(1e5), rtol=0)


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_iterations_reach_the_linear_fixed_point(alpha):
    found = iterate(start(alpha), linear, 12)
    exact = SIGMA**2 * SLOPE / (LAM * (1 - alpha))
    assert float((found - exact).abs().max()) < 0.02 + 2 * alpha**12


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.9])
def test_fixed_point_of_a_quadratic_reward(alpha):
    root = torch.randn(3, 3, generator=torch.Generator().manual_seed(2)).double()
    hessian = root @ root.T + 0.5 * torch.eye(3).double()
    centre = torch.tensor([0.7, -0.3, 0.5], dtype=torch.float64)

    def reward(draws):
        gap = draws.squeeze(-2) - centre
        return -0.5 * torch.einsum("...i,ij,...j->...", gap, hessian, gap)

    precision = (1 - alpha) / SIGMA**2 * torch.eye(3).double() + hessian / LAM
    exact = torch.linalg.solve(precision, hessian @ centre / LAM)
    found = averaged(start(alpha), reward, seed=3)
    assert float((found - exact).abs().max()) < 0.03


def test_the_wrong_sign_diverges(monkeypatch):
    right = PrelogitGaussian.log_weights

    def wrong(self, draws, rewards):
        return 2.0 * rewards.double() / self.lam - right(self, draws, rewards)

    exact = SIGMA**2 * SLOPE / LAM
    good = iterate(start(0.0), linear, 6, n=20_000)
    monkeypatch.setattr(PrelogitGaussian, "log_weights", wrong)
    bad = iterate(start(0.0), linear, 6, n=20_000)
    assert float((good - exact).norm()) < 0.1
    assert float(bad.norm()) > 4.0 * float(exact.norm())


def test_weights():
    q = start(0.3)
    draws = q.draw(50)
    rewards = torch.randn(50).double()
    # At U = 0 they are softmax(r / lam), whatever alpha.
    expected = (rewards / LAM).softmax(0)
    torch.testing.assert_close(q.log_weights(draws, rewards).softmax(0), expected)
    moved = PrelogitGaussian(torch.ones(1, 3).double(), SIGMA, LAM, 0.0)
    prior = -draws.square().sum((-1, -2)) / (2 * SIGMA**2)
    own = -(draws - moved.mean).square().sum((-1, -2)) / (2 * SIGMA**2)
    expected = (rewards / LAM + prior - own).softmax(0)
    torch.testing.assert_close(moved.log_weights(draws, rewards).softmax(0), expected)
    # alpha = 1 leaves the inner product out.
    free = PrelogitGaussian(moved.mean, SIGMA, LAM, 1.0)
    torch.testing.assert_close(free.log_weights(draws, rewards), rewards / LAM)


def test_extremes():
    draws = torch.randn(2, 9, 4, 3)
    rewards = torch.randn(2, 9).double()
    sharp = PrelogitGaussian(torch.full((2, 4, 3), 0.1), 1.0, 1e-6).updated(draws, rewards)
    best = rewards.argmax(-1)
    torch.testing.assert_close(sharp.mean, draws[torch.arange(2), best])
    assert sharp.mean.dtype == torch.float32
    rewards[0] = -math.inf
    rewards[1, 1:] = -math.inf
    kept = PrelogitGaussian(torch.full((2, 4, 3), 0.1), 1.0, 1.0).updated(draws, rewards)
    assert torch.equal(kept.mean[0], torch.full((4, 3), 0.1))
    torch.testing.assert_close(kept.mean[1], draws[1, 0])
    bound = PrelogitGaussian(torch.full((2, 4, 3), 0.1), 0.5, 1.0).kl_bound()
    torch.testing.assert_close(bound, torch.full((2,), 12 * 0.01 / 0.5).double())


@pytest.mark.parametrize(
    "options", [{"sigma": 0.0}, {"lam": 0.0}, {"lam": math.nan}, {"alpha": 1.1}, {"sigma": -1.0}]
)
def test_bad_numbers(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        PrelogitGaussian(torch.zeros(1, 2), **{"sigma": 1.0, "lam": 1.0, **options})
