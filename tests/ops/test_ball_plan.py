# SPDX-License-Identifier: Apache-2.0
"""The ball constraint against linear programmes, kinks included."""

import numpy as np
import pytest
import torch
from scipy import optimize, sparse

from pyro_tilt.ops import (
    Hamming,
    NormPower,
    ProximalStep,
    SquaredEuclidean,
    ball_plan,
    prox_support,
)


def problem(seed, points=7, targets=9, dim=2):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(points, dim)), rng.normal(size=(targets, dim)) * 1.5
    weights, rewards = rng.dirichlet(np.ones(points)), rng.normal(size=targets)
    return (torch.tensor(t) for t in (x, np.concatenate([x, y]), weights)), np.concatenate(
        [rng.normal(size=points) - 0.5, rewards]
    )


def steps(x, support, rewards, cost):
    """The proximal step over a finite support, as a function of the penalty."""

    def solve(penalty):
        index = prox_support(x, support, rewards, penalty, cost)
        paid = cost(x, support[index])
        return ProximalStep(support[index], rewards[index], paid, torch.zeros_like(paid))

    return solve


def linear_programme(costs, weights, rewards, *, radius=None, penalty=None):
    """The best plan over all couplings with the first marginal given, by HiGHS."""
    n, m = costs.shape
    gain = np.tile(rewards, n) - (0.0 if penalty is None else penalty * costs.ravel())
    marginal = sparse.kron(sparse.eye(n), np.ones((1, m)))
    bound = {} if radius is None else {"A_ub": costs.reshape(1, -1), "b_ub": [radius]}
    run = optimize.linprog(-gain, A_eq=marginal, b_eq=weights, method="highs-ds", **bound)
    assert run.status == 0
    return -run.fun, run.x.reshape(n, m)


COSTS = {
    "squared": SquaredEuclidean(),
    "cubed": NormPower(3.0),
    "distance": NormPower(1.0),
}


@pytest.mark.parametrize("name", COSTS)
@pytest.mark.parametrize("seed", range(4))
def test_ball_and_penalty_equal_the_linear_programme(name, seed):
    (x, support, weights), rewards = problem(seed)
    cost = COSTS[name]
    costs = cost(x[:, None], support[None]).numpy()
    solve = steps(x, support, torch.tensor(rewards), cost)
    kinks = 0
    for radius in (0.01, 0.1, 0.37, 0.8, 5.0):
        exact, _ = linear_programme(costs, weights.numpy(), rewards, radius=radius)
        plan = ball_plan(solve, radius, weights=weights)
        assert plan.reward == pytest.approx(exact, abs=1e-7)
        assert plan.dual == pytest.approx(exact, abs=1e-7)
        assert plan.gap <= 1e-7 and plan.cost <= radius * (1 + 1e-12)
        far, near = float(weights @ plan.far.cost), float(weights @ plan.near.cost)
        mixed = plan.mixing * far + (1 - plan.mixing) * near
        assert mixed == pytest.approx(plan.cost, abs=1e-10)
        kinks += 0.01 < plan.mixing < 0.99 and far > near + 1e-3
    # The cost of a map onto finitely many values jumps: the ball is met by mixing two maps.
    assert kinks >= 2
    for penalty in (0.2, 1.0, 4.0):
        exact, _ = linear_programme(costs, weights.numpy(), rewards, penalty=penalty)
        value = float(weights @ solve(penalty).value(penalty))
        assert value == pytest.approx(exact, abs=1e-12)


def test_hamming_ball():
    rng = np.random.default_rng(3)
    every = torch.cartesian_prod(*[torch.arange(3)] * 3)
    x = every[torch.tensor(rng.permutation(27)[:6])]
    rewards, weights = rng.normal(size=27), rng.dirichlet(np.ones(6))
    costs = Hamming()(x[:, None], every[None]).double()
    solve = steps(x, every, torch.tensor(rewards), Hamming())
    for radius in (0.2, 0.9, 1.7):
        exact, _ = linear_programme(costs.numpy(), weights, rewards, radius=radius)
        plan = ball_plan(solve, radius, weights=torch.tensor(weights))
        assert plan.reward == pytest.approx(exact, abs=1e-7)


def test_the_plan_is_a_law_within_the_ball():
    """POT as referee: the law of the plan has that reward, at the cost of the radius."""
    ot = pytest.importorskip("ot")
    (x, support, weights), rewards = problem(11)
    cost, radius = SquaredEuclidean(), 0.3
    costs = cost(x[:, None], support[None])
    values = torch.tensor(rewards)
    plan = ball_plan(steps(x, support, values, cost), radius, weights=weights)
    law = torch.zeros(len(support)).double()
    for step, share in ((plan.far, plan.mixing), (plan.near, 1 - plan.mixing)):
        index = (step.points[:, None] == support[None]).all(-1).long().argmax(-1)
        law.index_add_(0, index, share * weights)
    assert float(law @ values) == pytest.approx(plan.reward, abs=1e-12)
    assert ot.emd2(weights.numpy(), law.numpy(), costs.numpy()) == pytest.approx(radius, abs=1e-9)


def test_a_ball_that_reaches_the_best_value():
    (x, support, weights), rewards = problem(5)
    plan = ball_plan(
        steps(x, support, torch.tensor(rewards), SquaredEuclidean()), 100.0, weights=weights
    )
    assert plan.reward == pytest.approx(rewards.max(), abs=1e-10)
    assert plan.gap < 1e-8 and plan.cost < 100.0


def test_inexact_steps_enter_the_gap():
    (x, support, weights), rewards = problem(6)
    exact = steps(x, support, torch.tensor(rewards), SquaredEuclidean())

    def solve(penalty):
        step = exact(penalty)
        # Worse by up to 0.05 than the maximum, and says so.
        worse = 0.05 * torch.linspace(0, 1, len(x)).double()
        return ProximalStep(step.points, step.reward - worse, step.cost, worse)

    plan = ball_plan(solve, 0.2, weights=weights)
    costs = SquaredEuclidean()(x[:, None], support[None]).numpy()
    best, _ = linear_programme(costs, weights.numpy(), rewards, radius=0.2)
    assert plan.dual >= best - 1e-9
    assert best - plan.reward <= plan.gap + 1e-9
    stated = float(weights @ torch.linspace(0, 0.05, 7).double())
    assert plan.gap == pytest.approx(stated, abs=2e-3)


def test_no_penalty_keeps_the_ball():
    def solve(penalty):
        ones = torch.ones(3)
        return ProximalStep(torch.zeros(3, 1), ones, ones, torch.zeros(3))

    with pytest.raises(ValueError, match="no penalty up to"):
        ball_plan(solve, 0.5)
