# SPDX-License-Identifier: Apache-2.0
"""Every closed form beats, and is reached by, a numerical maximiser of the same objective."""

import numpy as np
import pytest
import torch
from scipy import optimize

from pyro_tilt.ops import (
    Hamming,
    Mahalanobis,
    NormPower,
    SquaredEuclidean,
    UnboundedProximal,
    as_cost,
    prox_linear,
    prox_max_affine,
    prox_quadratic,
    prox_support,
    prox_tokens,
)

M = torch.tensor([[2.0, 0.6, 0.0], [0.6, 1.0, -0.3], [0.0, -0.3, 0.7]], dtype=torch.float64)
# The costs once more, by numpy, so that no formula is compared with itself.
COSTS = {
    "euclidean": (SquaredEuclidean(), lambda s: 0.5 * s @ s),
    "mahalanobis": (Mahalanobis(M), lambda s: 0.5 * s @ M.numpy() @ s),
    "norm p=1.5": (NormPower(1.5), lambda s: np.linalg.norm(s) ** 1.5 / 1.5),
    "norm p=3": (NormPower(3.0), lambda s: np.linalg.norm(s) ** 3 / 3),
    "elementwise p=1.5": (NormPower(1.5, elementwise=True), lambda s: (abs(s) ** 1.5).sum() / 1.5),
    "elementwise p=4": (NormPower(4.0, elementwise=True), lambda s: (abs(s) ** 4).sum() / 4),
}
PENALTY = 1.7


def best(objective, start):
    """The largest value found from several starts, without derivatives."""
    rng = np.random.default_rng(0)
    starts = [start, start + rng.normal(size=len(start))]
    options = {"xatol": 1e-10, "fatol": 1e-13, "maxiter": 20_000, "maxfev": 20_000}
    found = []
    for at in starts:
        for _ in range(2):
            run = optimize.minimize(
                lambda y: -objective(y), at, method="Nelder-Mead", options=options
            )
            at = run.x
        found.append(-run.fun)
    return max(found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", COSTS)
def test_linear_rewards(name, dtype):
    cost, plain = COSTS[name]
    slope = torch.tensor([0.8, -1.9, 0.4], dtype=dtype)
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(1)).to(dtype)
    y = prox_linear(x, slope, PENALTY, cost)
    assert y.dtype == dtype
    _, gain = cost.linear(slope, PENALTY)
    for a, b in zip(x[:1].double().numpy(), y.double().numpy()):
        g = slope.double().numpy()

        def objective(z, a=a, g=g):
            return g @ z - PENALTY * plain(z - a)

        found = best(objective, a)
        tolerance = 1e-8 if dtype == torch.float64 else 2e-5
        assert objective(b) == pytest.approx(found, abs=tolerance)
        assert objective(b) == pytest.approx(g @ a + float(gain), abs=tolerance)
        assert cost(torch.tensor(a)[None], torch.tensor(b)[None]).item() == pytest.approx(
            plain(b - a), rel=1e-10
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["euclidean", "mahalanobis"])
def test_quadratic_rewards_of_any_signature(name, dtype):
    cost, plain = COSTS[name]
    Q = torch.tensor([[0.5, -0.8, 0.1], [-0.8, -2.0, 0.3], [0.1, 0.3, 0.2]], dtype=dtype)
    assert (torch.linalg.eigvalsh(Q) > 0).any() and (torch.linalg.eigvalsh(Q) < 0).any()
    slope = torch.tensor([0.3, -0.7, 1.1], dtype=dtype)
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(2)).to(dtype)
    y = prox_quadratic(x, Q, slope, PENALTY, cost)
    for a, b in zip(x.double().numpy(), y.double().numpy()):
        H, g = Q.double().numpy(), slope.double().numpy()

        def objective(z, a=a, g=g, H=H):
            return 0.5 * z @ H @ z + g @ z - PENALTY * plain(z - a)

        found = best(objective, a)
        assert objective(b) == pytest.approx(found, abs=1e-8 if dtype == torch.float64 else 1e-4)


def test_quadratic_beside_a_linear_system():
    generator = torch.Generator().manual_seed(3)
    Q = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    Q = Q + Q.T
    W = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    metric = W @ W.T + torch.eye(6, dtype=torch.float64)
    top = float(torch.linalg.eigvals(torch.linalg.solve(metric, Q)).real.max())
    penalty = 1.3 * top
    x = torch.randn(50, 6, generator=generator, dtype=torch.float64)
    g = torch.randn(6, generator=generator, dtype=torch.float64)
    exact = torch.linalg.solve(penalty * metric - Q, (penalty * x @ metric + g).T).T
    torch.testing.assert_close(prox_quadratic(x, Q, g, penalty, Mahalanobis(metric)), exact)
    with pytest.raises(UnboundedProximal) as caught:
        prox_quadratic(x, Q, g, 0.999 * top, Mahalanobis(metric))
    assert caught.value.bound == pytest.approx(top, rel=1e-10)


def test_a_stiff_direction_in_many_dimensions():
    """-kappa <a, x>^2 / 2 with kappa = 1e12 is one line of algebra."""
    generator = torch.Generator().manual_seed(4)
    a = torch.randn(40, generator=generator, dtype=torch.float64)
    x = torch.randn(20, 40, generator=generator, dtype=torch.float64)
    kappa = 1e12
    y = prox_quadratic(x, -kappa * torch.outer(a, a), torch.zeros(40), 0.7, SquaredEuclidean())
    exact = x - kappa * (x @ a)[:, None] * a / (0.7 + kappa * a @ a)
    torch.testing.assert_close(y, exact, rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("name", COSTS)
def test_max_affine_takes_the_best_of_all_moves(name):
    cost, plain = COSTS[name]
    generator = torch.Generator().manual_seed(5)
    slopes = 1.5 * torch.randn(5, 3, generator=generator, dtype=torch.float64)
    intercepts = torch.randn(5, generator=generator, dtype=torch.float64)
    x = torch.randn(200, 3, generator=generator, dtype=torch.float64)
    y = prox_max_affine(x, slopes, intercepts, PENALTY, cost)
    value = (y @ slopes.T + intercepts).amax(-1) - PENALTY * cost(x, y)
    pieces = torch.stack([prox_linear(x, slope, PENALTY, cost) for slope in slopes])
    rivals = (pieces @ slopes.T + intercepts).amax(-1) - PENALTY * torch.stack(
        [cost(x, piece) for piece in pieces]
    )
    torch.testing.assert_close(value, rivals.amax(0))
    # The piece that is largest at x itself is not always the one to climb.
    greedy = (x @ slopes.T + intercepts).argmax(-1)
    assert (rivals[greedy, torch.arange(200)] < value - 1e-6).any()
    V, b = slopes.numpy(), intercepts.numpy()
    for a, v in zip(x[:2].numpy(), value):
        found = best(lambda z, a=a: (V @ z + b).max() - PENALTY * plain(z - a), a)
        assert float(v) >= found - 1e-8


def test_tokens_against_all_sequences():
    generator = torch.Generator().manual_seed(6)
    scores = 2.0 * torch.randn(4, 3, generator=generator)
    x = torch.randint(3, (30, 4), generator=generator)
    every = torch.cartesian_prod(*[torch.arange(3)] * 4)
    reward = scores[torch.arange(4), every].sum(-1)
    for penalty in (0.1, 0.9, 2.5):
        y = prox_tokens(x, scores, penalty)
        value = scores[torch.arange(4), y].sum(-1) - penalty * (x != y).sum(-1)
        rivals = reward - penalty * (x[:, None] != every).sum(-1)
        torch.testing.assert_close(value, rivals.amax(-1))
        index = prox_support(x, every, reward, penalty, Hamming())
        torch.testing.assert_close(rivals[torch.arange(30), index], rivals.amax(-1))


def test_a_reward_below_the_lipschitz_constant_moves_nothing():
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(7))
    slopes = torch.tensor([[0.6, 0.0, 0.8], [0.0, 0.9, 0.0]])
    distance = as_cost("euclidean")
    assert torch.equal(prox_max_affine(x, slopes, torch.zeros(2), 1.0001, distance), x)
    with pytest.raises(UnboundedProximal, match="must exceed 1,"):
        prox_linear(x, slopes[0], 0.99, distance)
    # Coordinate by coordinate the constant is the largest slope.
    elementwise = NormPower(1.0, elementwise=True)
    assert torch.equal(prox_linear(x, slopes[0], 0.81, elementwise), x)
    with pytest.raises(UnboundedProximal, match="must exceed 0.8,"):
        prox_linear(x, slopes[0], 0.79, elementwise)


@pytest.mark.parametrize("name", COSTS)
def test_envelope_gradient(name):
    """Danskin: the gradient of the envelope is the penalty times the slope of the cost."""
    cost, _ = COSTS[name]
    slopes = torch.tensor([[0.8, -1.9, 0.4], [1.0, 1.2, -0.5]], dtype=torch.float64)
    intercepts = torch.tensor([0.3, -0.2], dtype=torch.float64)
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(8), dtype=torch.float64)

    def envelope(at):
        y = prox_max_affine(at, slopes, intercepts, PENALTY, cost)
        return (y @ slopes.T + intercepts).amax(-1) - PENALTY * cost(at, y)

    claimed = PENALTY * cost.slope(x, prox_max_affine(x, slopes, intercepts, PENALTY, cost))
    for i in range(3):
        h = torch.zeros(3, dtype=torch.float64)
        h[i] = 1e-5
        numeric = (envelope(x + h) - envelope(x - h)) / 2e-5
        torch.testing.assert_close(claimed[:, i], numeric, rtol=0.0, atol=1e-7)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: as_cost("wasserstein"), ValueError, "must be one of squared_euclidean, hamming"),
        (lambda: as_cost(2.0), TypeError, "must be a name or a TransportCost"),
        (lambda: NormPower(0.5), ValueError, "at least one"),
        (lambda: Mahalanobis(torch.ones(2, 3)), ValueError, "square"),
        (lambda: Mahalanobis(-torch.eye(2)), ValueError, "positive definite"),
        (lambda: Mahalanobis(torch.tensor([[1.0, 0.5], [0.0, 1.0]])), ValueError, "symmetric"),
        (lambda: Hamming().slope(torch.ones(1, 1), torch.ones(1, 1)), NotImplementedError, "no gr"),
    ],
)
def test_bad_costs(make, error, match):
    with pytest.raises(error, match=match):
        make()


def test_the_second_power_of_the_norm_is_the_squared_norm():
    assert isinstance(as_cost(NormPower(2.0)), SquaredEuclidean)
    assert isinstance(as_cost(NormPower(2.0, elementwise=True)), SquaredEuclidean)
