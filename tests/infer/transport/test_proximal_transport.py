# SPDX-License-Identifier: Apache-2.0
"""Wasserstein alignment of programs: laws, certificates, plumbing."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

from pyro_tilt import ops, rewards
from pyro_tilt.infer import (
    Certificate,
    MaxOf,
    ProximalTransport,
    SamplerWarning,
    TokenScores,
    load,
    merge,
)
from pyro_tilt.infer.transport.outcome import _assign
from pyro_tilt.testing.gates import P_VALUE

MEAN = torch.tensor([0.5, -1.0])
SCALE = torch.tensor([[1.0, 0.0], [0.6, 0.5]])
BASE = dist.MultivariateNormal(MEAN, scale_tril=SCALE)
SLOPE = torch.tensor([1.5, -0.5])


def program():
    z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    return pyro.sample("x", dist.Normal(z, 0.5).to_event(1))


def run(base, reward, beta=1.0, *, num_samples=500, seed=0, **options):
    return ProximalTransport(
        base, reward, beta, num_samples=num_samples, seed=seed, progress=False, **options
    ).run()


def test_the_law_of_a_linear_reward():
    """Every draw moves by beta g / lambda: the base law, shifted."""
    result = run(BASE, rewards.Linear(SLOPE), 2.0, penalty=4.0, num_samples=20_000)
    whitened = torch.linalg.solve_triangular(
        SCALE, (result.samples["x"] - MEAN - 0.5 * SLOPE).T, upper=False
    )
    for coordinate in whitened:
        assert stats.kstest(coordinate.numpy(), "norm").pvalue > P_VALUE
    assert result.kind == "transport"
    assert result.certificate.law == "exact" and result.certificate.gap == 0.0
    assert result.certificate.target == "transport optimum"
    expected = 0.5 * 0.25 * float(SLOPE.square().sum())
    torch.testing.assert_close(
        result.stats["transport_cost"], torch.full((20_000,), expected), rtol=1e-4, atol=1e-6
    )
    torch.testing.assert_close(result.stats["reward"], result.samples["x"] @ SLOPE)
    torch.testing.assert_close(result.stats["base_reward"], result.stats["base_value"] @ SLOPE)
    exact = 2.0 * float(MEAN @ SLOPE) + 4.0 * float(SLOPE.square().sum()) / 8.0
    error = result.info["value_error"]
    assert abs(result.info["value"] - exact) < 4.5 * error
    assert error == pytest.approx(2 * float((SCALE.T @ SLOPE).norm()) / 20_000**0.5, rel=0.05)
    assert result.cost.base_draws == 20_000


def test_the_mean_cost_of_a_ball():
    """In a W2 ball of radius e around a law, a linear reward gains e |g| and no more."""
    e = 0.7
    result = run(BASE, rewards.Linear(SLOPE), radius=e**2 / 2)
    gained = result.info["value"] - float(result.stats["base_reward"].double().mean())
    assert gained == pytest.approx(e * float(SLOPE.norm()), rel=1e-5)
    assert result.info["transport_cost"] == pytest.approx(e**2 / 2, rel=1e-5)
    assert float(result.stats["transport_cost"].mean()) == pytest.approx(e**2 / 2, rel=1e-5)
    assert result.info["penalty"] == pytest.approx(float(SLOPE.norm()) / e, rel=1e-4)
    assert result.certificate.law == "bounded" and result.certificate.gap < 1e-6
    assert "sampled base" in result.certificate.excludes


CASES = {
    "linear": (rewards.Linear(SLOPE), {}, "exact"),
    "quadratic": (rewards.Quadratic(torch.tensor([[-2.0, 0.7], [0.7, 0.1]]), SLOPE), {}, "exact"),
    "max-affine": (
        rewards.MaxAffine(torch.tensor([[1.0, 0.3], [-1.2, 0.4]]), torch.tensor([0.2, 0.1])),
        {},
        "exact",
    ),
    "max of concave": (
        MaxOf(
            rewards.Quadratic(-torch.eye(2), 2 * SLOPE),
            rewards.Concave(lambda x: -(x + 1.0).pow(4).sum(-1), event_dim=1),
        ),
        {},
        "bounded",
    ),
    "concave": (
        rewards.Concave(lambda x: -(1 + x.square().sum(-1)).sqrt(), event_dim=1),
        {},
        "bounded",
    ),
    # One against the Euclidean norm, 1 / 0.7 against the metric below.
    "one-sided smooth": (lambda x: torch.sin(x).sum(-1), {"curvature": 1.5}, "bounded"),
    "low-dimensional": (
        rewards.LowDim(lambda u: torch.cos(u[..., 0]), SLOPE[None], lipschitz=1.0),
        {"tolerance": 1e-6},
        "bounded",
    ),
    "two features": (
        rewards.LowDim(
            lambda u: torch.cos(u).sum(-1),
            torch.tensor([[1.0, 0.2], [-0.4, 0.9]]),
            lipschitz=2**0.5,
        ),
        {"tolerance": 1e-2},
        "bounded",
    ),
    "concave features": (
        rewards.LowDim(
            lambda u: -(1 + u[..., 0].square()).sqrt(), SLOPE[None], concave=True, lipschitz=1.0
        ),
        {},
        "bounded",
    ),
}


@pytest.mark.parametrize("cost", ["squared_euclidean", "mahalanobis"])
@pytest.mark.parametrize("name", CASES)
def test_no_grid_point_beats_the_certificate(name, cost):
    """Brute force over a fine grid of targets: optimum - value <= gap, point by point."""
    reward, options, law = CASES[name]
    metric = ops.Mahalanobis(torch.tensor([[1.5, 0.4], [0.4, 0.9]], dtype=torch.float64))
    cost = ops.SquaredEuclidean() if cost == "squared_euclidean" else metric
    penalty = 2.5
    base = dist.MultivariateNormal(MEAN.double(), scale_tril=SCALE.double())
    result = run(base, reward, penalty=penalty, cost=cost, num_samples=12, **options)
    assert result.certificate.law == law
    # What was said of the reward and only tested is left out by name.
    claim = {"low-dimensional": "Lipschitz", "two features": "Lipschitz"}.get(
        name, "curves upwards"
    )
    assert (claim in result.certificate.excludes) == (law == "bounded")
    gap = result.stats["gap"]
    assert bool((gap >= 0).all())
    assert result.certificate.gap == pytest.approx(float(gap.mean()), abs=1e-12)
    assert float(gap.max()) <= options.get("tolerance", 1e-8) * 1.0001
    line = torch.linspace(-6.0, 6.0, 1001).double()
    grid = torch.cartesian_prod(line, line)
    height = reward(grid)
    for at, moved, value, paid, slack in zip(
        result.stats["base_value"],
        result.samples["x"],
        result.stats["reward"],
        result.stats["transport_cost"],
        gap,
    ):
        assert bool((moved.abs() < 5.9).all())
        rival = float((height - penalty * cost(at, grid)).max())
        attained = float(value - penalty * paid)
        assert rival <= attained + float(slack) + 1e-9
        # The grid comes near: a gap that were loose, or a wrong cost, would show.
        assert attained <= rival + 1e-3
        assert float(cost(at[None], moved[None])) == pytest.approx(float(paid), abs=1e-9)


def test_a_wrong_sign_of_the_reward_would_show():
    up = run(BASE, rewards.Concave(lambda x: -x.square().sum(-1), event_dim=1), penalty=1.0)
    torch.testing.assert_close(up.samples["x"], up.stats["base_value"] / 3.0, rtol=0.0, atol=1e-3)
    down = run(BASE, rewards.Linear(SLOPE), -2.0, penalty=4.0)
    torch.testing.assert_close(down.samples["x"], down.stats["base_value"] - 0.5 * SLOPE)
    still = run(BASE, rewards.Linear(SLOPE), 0.0, penalty=4.0)
    torch.testing.assert_close(still.samples["x"], still.stats["base_value"])
    torch.testing.assert_close(still.stats["reward"], still.samples["x"] @ SLOPE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_and_sites(dtype):
    base = dist.Normal(torch.zeros(2, dtype=dtype), torch.ones((), dtype=dtype)).to_event(1)
    result = run(base, rewards.Linear(SLOPE.to(dtype)), penalty=1.0)
    assert result.samples["x"].dtype == dtype

    def model():
        z = pyro.sample("z", base)
        return 2.0 * z + 1.0

    result = run(model, rewards.Linear(SLOPE.to(dtype)), penalty=1.0)
    assert list(result.samples) == ["return_value"]
    torch.testing.assert_close(
        result.samples["return_value"], result.stats["base_value"] + SLOPE.to(dtype)
    )


def test_of_names_a_site():
    by_return = run(program, rewards.Linear(SLOPE), penalty=1.0)
    by_name = run(program, rewards.Linear(SLOPE), penalty=1.0, of="x")
    torch.testing.assert_close(by_return.samples["x"], by_name.samples["x"])
    latent = run(program, rewards.Linear(SLOPE), penalty=1.0, of="z")
    assert list(latent.samples) == ["z"]
    with pytest.raises(ValueError, match=r"of='y' names no site.*\['z', 'x'\]"):
        run(program, rewards.Linear(SLOPE), penalty=1.0, of="y")


def test_scalars_and_matrices():
    scalar = run(dist.Normal(0.0, 1.0), rewards.Quadratic(-1.0, 2.0), penalty=2.0)
    torch.testing.assert_close(scalar.samples["x"], (2.0 * scalar.stats["base_value"] + 2.0) / 4.0)
    theta = torch.tensor([[1.0, 2.0, -1.0], [0.0, 0.5, 3.0]])
    matrix = run(
        dist.Normal(torch.zeros(2, 3), 1.0).to_event(2), rewards.Linear(theta), penalty=2.0
    )
    torch.testing.assert_close(matrix.samples["x"], matrix.stats["base_value"] + theta / 2.0)


def test_blocks_chains_and_seeds():
    reward = CASES["concave"][0]
    whole = run(program, reward, penalty=1.0, num_samples=100)
    again = run(program, reward, penalty=1.0, num_samples=100)
    assert torch.equal(whole.samples["x"], again.samples["x"])
    state = torch.get_rng_state()
    blocks = run(program, reward, penalty=1.0, num_samples=100, max_batch=30)
    assert torch.equal(torch.get_rng_state(), state)
    assert len(blocks) == 100
    step = run(program, reward, penalty=1.0, num_samples=30)
    torch.testing.assert_close(blocks.samples["x"][:30], step.samples["x"])
    chains = run(program, reward, radius=0.2, num_samples=50, num_chains=2)
    assert chains.num_chains == 2 and len(chains) == 100
    assert chains.certificate.gap < 1e-6 and chains.certificate.confidence == 1.0
    merged = merge(whole, blocks)
    assert merged.kind == "transport" and merged.certificate.law == "bounded"


def test_storage_and_diagnostics(tmp_path):
    result = run(program, rewards.Linear(SLOPE), radius=0.2, num_samples=50)
    result.save(tmp_path / "run.nc")
    back = load(tmp_path / "run.nc")
    assert back.certificate == result.certificate and back.info == result.info
    torch.testing.assert_close(back.stats["base_value"], result.stats["base_value"])
    assert "transport" in str(result.summary())
    assert "x" in result.to_arviz().posterior
    assert result.beta is None and result.log_normalizer.isnan()


def test_tokens_under_hamming():
    """A ball of mean Hamming distance, against the greedy optimum of all single changes."""
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    base = dist.Categorical(torch.tensor([0.4, 0.3, 0.2, 0.1]).expand(5, 4)).to_event(1)
    result = run(base, TokenScores(scores), radius=1.25, cost="hamming", num_samples=200)
    x, y = result.stats["base_value"], result.samples["x"]
    assert y.dtype == x.dtype
    torch.testing.assert_close(result.stats["transport_cost"].double(), (x != y).sum(-1).double())
    gains = scores.amax(-1) - scores[torch.arange(5), x]
    best = gains.flatten().sort(descending=True).values[: int(1.25 * 200)].sum() / 200
    start = float(result.stats["base_reward"].mean())
    assert result.info["value"] == pytest.approx(start + float(best), abs=1e-7)
    assert result.certificate.gap < 1e-7
    assert float(result.stats["transport_cost"].mean()) == pytest.approx(1.25, abs=5 / 200)


def test_mixing_at_a_kink_is_independent_of_the_point():
    """Two atoms and one better value: both take the farther map with the same odds."""
    support = torch.tensor([[0.0], [1.0], [2.0], [4.0]])
    reward = rewards.BlackBox(lambda x: (x[..., 0] == 2.0).float() * 3.0)
    chosen = torch.zeros(2)
    seen = torch.zeros(2)

    def atoms():
        i = pyro.sample("i", dist.Categorical(torch.tensor([0.5, 0.5])))
        return 4.0 * i.unsqueeze(-1).float()

    for seed in range(40):
        result = run(
            atoms,
            reward,
            radius=0.7,
            support=support,
            seed=seed,
            num_samples=50,
        )
        assert 0.2 < result.info["mixing"] < 0.5
        assert result.certificate.gap < 1e-6
        far = result.stats["far"]
        for k, at in enumerate((0.0, 4.0)):
            here = result.stats["base_value"][:, 0] == at
            chosen[k] += far[here].sum()
            seen[k] += here.sum()
        assert float(result.stats["transport_cost"].mean()) == pytest.approx(0.7, abs=2.01 / 50)
    # Cost and gain are equal for both atoms, so that nothing but the odds decides.
    table = np.stack([chosen.numpy(), (seen - chosen).numpy()])
    assert stats.chi2_contingency(table).pvalue > P_VALUE


def test_the_confidence_bound_covers_the_gap_of_the_law():
    """gap_upper holds for fresh base draws about 95 times in 100."""
    reward = rewards.LowDim(lambda u: torch.cos(u[..., 0]), SLOPE[None], lipschitz=1.0)
    options = {"penalty": 1.0, "tolerance": 0.05}
    truth = run(BASE, reward, num_samples=20_000, seed=99, **options).certificate.gap
    held = sum(
        run(BASE, reward, num_samples=100, seed=s, **options).info["gap_upper"] >= truth
        for s in range(60)
    )
    # Binomial(60, .95): 48 or fewer has probability below 1e-5.
    assert held > 48


def test_a_search_says_so():
    def reward(x):
        return torch.sin(3.0 * x).sum(-1)

    with pytest.warns(SamplerWarning, match="local maxima"):
        result = run(BASE, reward, penalty=0.5, num_samples=50)
    assert result.certificate.law == "search" and math.isinf(result.certificate.gap)
    # A search has no bound for the law either, and promises none.
    assert math.isinf(result.info["gap_upper"]) and "gap_upper" not in str(result.certificate)
    with pytest.warns(SamplerWarning):
        bounded = run(BASE, rewards.Bounded(reward, -2.0, 2.0), penalty=0.5, num_samples=50)
    assert bounded.certificate.law == "bounded" and 0.01 < bounded.certificate.gap < 4.0
    with pytest.warns(SamplerWarning):
        ball = run(BASE, reward, radius=0.3, num_samples=20)
    assert ball.info["transport_cost"] == pytest.approx(0.3, rel=1e-2)
    # A curvature above the penalty leaves a search as well.
    with pytest.warns(SamplerWarning, match="local maxima"):
        below = run(BASE, reward, penalty=0.5, curvature=9.0, num_samples=50)
    assert below.certificate.law == "search"
    assert isinstance(below.certificate, Certificate)


def test_the_distance_itself_as_cost():
    """Where the reward is Lipschitz with the penalty nothing moves; a linear ball is a shift."""
    reward = rewards.LowDim(lambda u: torch.sin(u[..., 0]), SLOPE[None], lipschitz=1.0)
    lipschitz = float(SLOPE.norm())
    still = run(BASE, reward, cost="euclidean", penalty=1.001 * lipschitz)
    assert torch.equal(still.samples["x"], still.stats["base_value"])
    with pytest.raises(ValueError, match="below the Lipschitz constant"):
        run(BASE, reward, cost="euclidean", penalty=0.9 * lipschitz)
    ball = run(BASE, rewards.Linear(SLOPE), cost="euclidean", radius=0.4)
    gained = ball.info["value"] - float(ball.stats["base_reward"].double().mean())
    assert gained == pytest.approx(0.4 * lipschitz, rel=1e-5)
    assert ball.certificate.gap < 1e-5


def test_powers_of_the_norm_in_one_feature():
    """Against a fine grid on the line of moves."""
    a = torch.tensor([1.0, -0.4, 0.2], dtype=torch.float64)
    reward = rewards.LowDim(lambda u: torch.sin(2.0 * u[..., 0]), a[None], lipschitz=2.0)
    base = dist.Normal(torch.zeros(3).double(), 1.0).to_event(1)
    for cost, exponent in (
        (ops.NormPower(3.0), 2.0),
        (ops.NormPower(3.0, elementwise=True), 1.5),
        (ops.NormPower(1.5, elementwise=True), 3.0),
    ):
        result = run(base, reward, cost=cost, penalty=0.8, num_samples=6, tolerance=1e-6)
        # Changing the feature by t costs |t| / |a|_* with the dual norm.
        power = cost.p
        dual = float(a.abs().pow(exponent).sum() ** (1 / exponent))
        t = torch.linspace(-8.0, 8.0, 400_001).double()
        for at, value, paid in zip(
            result.stats["base_value"], result.stats["reward"], result.stats["transport_cost"]
        ):
            rival = torch.sin(2.0 * (at @ a + t)) - 0.8 / power * (t.abs() / dual) ** power
            assert float(value - 0.8 * paid) == pytest.approx(float(rival.max()), abs=1.1e-6)


def test_three_features_are_polished_and_the_bound_reported():
    A = torch.randn(3, 4, generator=torch.Generator().manual_seed(2))
    reward = rewards.LowDim(lambda u: torch.cos(2.0 * u).sum(-1), A, lipschitz=2 * 3**0.5)
    base = dist.Normal(torch.zeros(4), 1.0).to_event(1)
    result = run(base, reward, penalty=2.0, num_samples=8, tolerance=1e-6)
    assert result.certificate.law == "bounded" and 1e-6 < result.certificate.gap < 3.0
    with pytest.warns(SamplerWarning):
        local = run(base, lambda x: reward(x), penalty=2.0, num_samples=8)
    value = local.stats["reward"] - 2.0 * local.stats["transport_cost"]
    ours = result.stats["reward"] - 2.0 * result.stats["transport_cost"]
    assert bool((value <= ours + result.stats["gap"] + 1e-4).all())
    assert float((ours - value).mean()) > 0.0


def test_the_draws_of_a_mixed_plan_keep_its_mean_cost():
    """Systematic in the order of the extra cost: within one draw's extra cost over n."""
    order = torch.randperm(100, generator=torch.Generator().manual_seed(3))
    extra = (torch.linspace(0.0, 3.0, 100) ** 3)[order]
    zeros = torch.zeros(100)
    near = ops.ProximalStep(zeros[:, None], zeros, zeros, zeros)
    far = ops.ProximalStep(zeros[:, None], zeros, extra, zeros)
    plan = ops.BallPlan(far, near, 0.37, 1.0, 0.0, 0.0, 0.0, 1.0)
    for seed in range(20):
        chosen = _assign(plan, torch.Generator().manual_seed(seed))
        error = float(extra[chosen].sum()) - 0.37 * float(extra.sum())
        assert abs(error) <= float(extra.max()) * 1.01
    marginal = torch.stack(
        [_assign(plan, torch.Generator().manual_seed(seed)).float() for seed in range(2000)]
    ).mean(0)
    # Binomial(2000, .37) at each of 100 draws, joint false alarm below 1e-5.
    assert float((marginal - 0.37).abs().max()) < 5.5 * (0.37 * 0.63 / 2000) ** 0.5
