# SPDX-License-Identifier: Apache-2.0
"""The LINEX loss leads to the log moment generating function, other losses do not."""

import math

import torch

from pyro_tilt.infer.twists import linex_loss


def _fitted(loss, features, returns, steps=3000):
    weight = torch.zeros(features.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([weight], lr=0.05)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * (1.0 - step / steps)
        optimizer.zero_grad()
        loss(features @ weight, returns).mean().backward()
        optimizer.step()
    return weight.detach()


def test_the_minimiser_is_the_log_mean_exponential_and_not_the_mean():
    returns = torch.tensor([-torch.inf, 0.3, 2.0, -1.0], dtype=torch.float64)
    ones = torch.ones(4, 1, dtype=torch.float64)
    best = returns.logsumexp(0) - math.log(4)
    found = _fitted(linex_loss, ones, returns)
    torch.testing.assert_close(found[0], best, atol=1e-6, rtol=0)
    finite = returns[1:]
    mean = _fitted(lambda f, A: (A - f).square(), ones[1:], finite)
    assert abs(mean[0] - (finite.logsumexp(0) - math.log(3))) > 0.3


def test_it_recovers_a_log_mgf_where_squares_of_exponentials_do_not():
    # A given y is N(2 sin 3y + 2y, 1): the log-MGF is its mean plus one half.
    generator = torch.Generator().manual_seed(3)
    y = 4.0 * torch.rand(4000, generator=generator, dtype=torch.float64) - 2.0
    basis = torch.stack((torch.ones_like(y), y, torch.sin(3 * y)), -1)
    truth = basis @ torch.tensor([0.5, 2.0, 2.0], dtype=torch.float64)
    noise = torch.randn(4000, generator=generator, dtype=torch.float64)
    returns = truth - 0.5 + noise
    errors = {}
    losses = {
        "linex": linex_loss,
        "mean": lambda f, A: (A - f).square(),
        "square": lambda f, A: (A.exp() - f.exp()).square(),
    }
    for name, loss in losses.items():
        fitted = basis @ _fitted(loss, basis, returns, steps=1500)
        errors[name] = float((fitted - truth).square().mean().sqrt())
    assert errors["linex"] < 0.1
    assert 0.4 < errors["mean"] < 0.6
    assert errors["square"] > 3 * errors["linex"]


def test_excess_loss_is_asymmetric():
    returns = torch.randn(100_000, dtype=torch.float64)
    best = returns.logsumexp(0) - math.log(len(returns))
    at_best = linex_loss(best, returns).mean()
    for d in (-1.0, 0.5, 1.0):
        excess = linex_loss(best - d, returns).mean() - at_best
        assert abs(excess - (math.exp(d) - d - 1.0)) < 1e-9


def test_far_returns_have_finite_slopes():
    values = torch.zeros(3, requires_grad=True)
    loss = linex_loss(values, torch.tensor([300.0, -300.0, -torch.inf]))
    loss.sum().backward()
    assert loss.isfinite().all() and values.grad.isfinite().all()
    assert values.grad[0] < -1e8 and values.grad[1:].tolist() == [1.0, 1.0]
