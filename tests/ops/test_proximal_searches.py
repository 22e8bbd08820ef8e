# SPDX-License-Identifier: Apache-2.0
"""Iterative proximal steps: the stated slack really bounds the distance to the maximum."""

import numpy as np
import pytest
import torch
from scipy import optimize

from pyro_tilt.ops import Mahalanobis, SquaredEuclidean, accelerated_ascent, branch_and_bound

D = 5
GENERATOR = torch.Generator().manual_seed(0)
SLOPES = torch.randn(7, D, generator=GENERATOR, dtype=torch.float64)
W = torch.randn(D, D, generator=GENERATOR, dtype=torch.float64)
METRIC = W @ W.T / D + 0.5 * torch.eye(D, dtype=torch.float64)
COSTS = {"euclidean": SquaredEuclidean(), "mahalanobis": Mahalanobis(METRIC)}


def concave(y):
    return -torch.logsumexp(2.0 * y @ SLOPES.to(y).T, -1) - 0.1 * y.pow(4).sum(-1)


def wavy(y):
    """Curvature at most 4: no eigenvalue of the Hessian exceeds it."""
    return torch.sin(2.0 * y).sum(-1) - 0.05 * y.pow(4).sum(-1)


def maximum(reward, a, penalty, cost, starts=1):
    rng = np.random.default_rng(1)
    found = []
    for start in [a, *(a + rng.normal(size=len(a)) for _ in range(starts - 1))]:

        def objective(y, a=a):
            y = torch.tensor(y, requires_grad=True)
            at = torch.tensor(a)[None]
            value = reward(y[None])[0] - penalty * cost(at, y[None])[0]
            value.backward()
            return -value.item(), -y.grad.numpy()

        run = optimize.minimize(objective, start, jac=True, method="BFGS", options={"gtol": 1e-9})
        found.append(-run.fun)
    return max(found)


def maxima(reward, x, penalty, cost, starts=1):
    found = [maximum(reward, a, penalty, cost, starts) for a in x.numpy()]
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize("name", COSTS)
@pytest.mark.parametrize("penalty", [0.2, 3.0])
def test_concave_rewards(name, penalty):
    cost = COSTS[name]
    x = 2.0 * torch.randn(12, D, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    step = accelerated_ascent(concave, x, penalty, cost, tolerance=1e-9)
    assert float(step.slack.max()) <= 1e-9
    torch.testing.assert_close(step.cost, cost(x, step.points))
    torch.testing.assert_close(step.reward, concave(step.points))
    best = maxima(concave, x, penalty, cost)
    short = best - step.value(penalty)
    assert float(short.max()) <= 1.1e-9 and float(short.min()) >= -1e-8


@pytest.mark.parametrize("name", COSTS)
@pytest.mark.parametrize("steps", [1, 3, 8])
def test_slack_bounds_unfinished_searches(name, steps):
    """Also the certificate of a search cut short holds, and is not vacuous."""
    cost, penalty = COSTS[name], 0.6
    x = 2.0 * torch.randn(12, D, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    step = accelerated_ascent(concave, x, penalty, cost, tolerance=1e-12, max_steps=steps)
    best = maxima(concave, x, penalty, cost)
    short = best - step.value(penalty)
    assert float(short.max()) > 1e-6
    assert bool((short <= step.slack * (1.0 + 1e-6) + 1e-9).all())


@pytest.mark.parametrize(("height", "penalty"), [(100.0, 0.01), (1e3, 0.01), (1e4, 1.0)])
def test_sharp_ridges_are_not_leapt_over(height, penalty):
    """Gradients on both sides are alike, and the penalty is far below the curvature on top."""
    x = torch.randn(60, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    step = accelerated_ascent(
        lambda y: -height * (1.0 + y.square().sum(-1)).sqrt(), x, penalty, SquaredEuclidean()
    )
    assert float(step.slack.max()) <= 1e-8 and step.calls < 100 * len(x)
    # Where the gradient vanishes, y (height / sqrt(1 + |y|^2) + penalty) = penalty x.
    size = (1.0 + step.points.square().sum(-1, keepdim=True)).sqrt()
    torch.testing.assert_close(
        step.points * (height / size + penalty), penalty * x, atol=1e-4 * penalty, rtol=1e-2
    )


def test_slack_is_attained_by_a_linear_reward():
    """For a linear reward the bound is an equality: a smaller constant would be wrong."""
    x = torch.tensor([[3.0, -1.0]], dtype=torch.float64)
    slope = torch.tensor([1.0, 2.0], dtype=torch.float64)
    step = accelerated_ascent(lambda y: y @ slope, x, 0.8, SquaredEuclidean(), max_steps=1)
    torch.testing.assert_close(step.slack, torch.zeros(1).double(), atol=1e-12, rtol=0.0)
    start = x + torch.tensor([0.3, 0.1], dtype=torch.float64)
    cut = accelerated_ascent(
        lambda y: y @ slope, x, 0.8, SquaredEuclidean(), start=start, tolerance=1e9
    )
    exact = (x @ slope) + slope.square().sum() / 1.6 - cut.value(0.8)
    torch.testing.assert_close(cut.slack, exact)


def test_one_sided_smooth_rewards():
    x = 2.0 * torch.randn(10, D, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    cost = SquaredEuclidean()
    step = accelerated_ascent(wavy, x, 4.5, cost, curvature=4.0, tolerance=1e-9)
    assert float(step.slack.max()) <= 1e-9
    best = maxima(wavy, x, 4.5, cost, starts=3)
    torch.testing.assert_close(step.value(4.5), best, rtol=0.0, atol=1e-8)
    # Below the curvature the ascent is local and claims nothing.
    local = accelerated_ascent(wavy, x, 1.0, cost, curvature=4.0, tolerance=1e-9)
    assert bool(torch.isinf(local.slack).all())
    best = maxima(wavy, x, 1.0, cost, starts=8)
    assert float((best - local.value(1.0)).max()) > 0.1
    assert bool((local.value(1.0) >= wavy(x)).all())


def test_the_slack_counts_the_curvature():
    """With |g|^2 / (2 lam) in place of |g|^2 / (2 (lam - l)) the bound would fail."""
    penalty, curvature = 1.0, 0.9
    x = torch.tensor([[1.0], [-2.0]], dtype=torch.float64)

    def bowl(y):
        return 0.5 * curvature * y.square().sum(-1)

    step = accelerated_ascent(
        bowl, x, penalty, SquaredEuclidean(), curvature=curvature, tolerance=1e9
    )
    best = 0.5 * penalty * curvature / (penalty - curvature) * x.square().sum(-1)
    torch.testing.assert_close(step.slack, best - step.value(penalty))


def test_rows_do_not_touch():
    x = torch.randn(9, D, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    together = accelerated_ascent(concave, x, 0.5, SquaredEuclidean())
    alone = accelerated_ascent(concave, x[4:5], 0.5, SquaredEuclidean())
    torch.testing.assert_close(together.points[4:5], alone.points, rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_kept(dtype):
    x = torch.randn(6, D, generator=torch.Generator().manual_seed(6)).to(dtype)
    step = accelerated_ascent(concave, x, 0.5, COSTS["mahalanobis"], tolerance=1e-7)
    for tensor in (step.points, step.reward, step.cost, step.slack):
        assert tensor.dtype == dtype
    assert float(step.slack.max()) <= 1e-7


def test_a_domain_is_not_left():
    x = torch.tensor([[0.1, 2.0], [3.0, 0.01]], dtype=torch.float64)

    def logs(y):
        return (2.0 * y.log() - 3.0 * y).sum(-1)

    step = accelerated_ascent(logs, x, 0.5, SquaredEuclidean(), tolerance=1e-10)
    # The root of 2/y - 3 - (y - x)/2 = 0.
    b = 6.0 - x
    exact = (-b + (b.square() + 16.0).sqrt()) / 2.0
    torch.testing.assert_close(step.points, exact, rtol=0.0, atol=1e-5)
    with pytest.raises(ValueError, match="not finite at 1 of 2"):
        accelerated_ascent(logs, torch.tensor([[1.0], [-1.0]]), 0.5, SquaredEuclidean())


def test_a_reward_without_gradient():
    with pytest.raises(ValueError, match="no gradient"):
        accelerated_ascent(lambda y: y.detach().sum(-1), torch.ones(1, 2), 1.0, SquaredEuclidean())


@pytest.mark.parametrize(("size", "tolerance"), [(1, 1e-7), (2, 1e-2)])
@pytest.mark.parametrize("power", [1.5, 2.0, 3.0])
def test_branch_and_bound_against_a_grid(size, tolerance, power):
    penalty, lipschitz = 0.7, 1.3
    shifts = torch.tensor([0.3, -1.1, 2.0], dtype=torch.float64)

    def fn(w, rows):
        inside = (w - shifts[rows, None]).mul(torch.tensor([1.0, 0.83][:size]).double())
        return lipschitz * torch.linalg.vector_norm(torch.sin(inside), dim=-1) / 1.0

    radius = (lipschitz / penalty) ** (1 / (power - 1))
    w, gap, calls = branch_and_bound(
        fn,
        torch.full((3,), radius, dtype=torch.float64),
        torch.full((3,), lipschitz, dtype=torch.float64),
        penalty,
        size=size,
        power=power,
        tolerance=tolerance,
        max_boxes=10**6,
    )
    line = torch.linspace(-1.2 * radius, 1.2 * radius, 40_001 if size == 1 else 601).double()
    grid = torch.cartesian_prod(*[line] * size).reshape(-1, size)

    def objective(at, row):
        rows = torch.full((len(at),), row)
        return fn(at, rows) - penalty / power * torch.linalg.vector_norm(at, dim=-1).pow(power)

    for row in range(3):
        best = float(objective(grid, row).max())
        value = float(objective(w[row : row + 1], row))
        assert float(gap[row]) <= tolerance
        assert value >= best - float(gap[row]) - 1e-12
    assert calls > 0


def test_branch_and_bound_out_of_boxes_says_so():
    def fn(w, rows):
        return torch.sin(9.0 * w).sum(-1) / 9.0

    ones = torch.ones(2, dtype=torch.float64)
    options = {"size": 2, "tolerance": 1e-6}
    w, gap, _ = branch_and_bound(fn, 2 * ones, 2**0.5 * ones, 0.7, **options, max_boxes=200)
    assert bool((gap > 1e-6).all())
    line = torch.linspace(-2.0, 2.0, 801).double()
    grid = torch.cartesian_prod(line, line)
    best = float((fn(grid, None) - 0.35 * grid.square().sum(-1)).max())
    value = fn(w, None) - 0.35 * w.square().sum(-1)
    assert bool((best - value <= gap).all())


def test_boxes_reach_into_their_corners():
    """A cone that peaks at the corner of the cube: a box bound without sqrt(k) is too low there."""
    radius, lipschitz = torch.ones(1).double(), torch.full((1,), 3.0).double()

    def cone(w, rows):
        return -3.0 * torch.linalg.vector_norm(w - 1.0, dim=-1)

    for tolerance in (0.3, 0.03, 0.003):
        w, gap, _ = branch_and_bound(
            cone, radius, lipschitz, 1e-9, size=2, tolerance=tolerance, max_boxes=10**6
        )
        assert float(-cone(w, None)) <= float(gap) + 1e-8 <= tolerance + 2e-8
