# SPDX-License-Identifier: Apache-2.0
"""What transport refuses, and how it says so."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_tilt import align, ops, plan, rewards
from pyro_tilt.infer import (
    ProximalOracle,
    ProximalTransport,
    SamplerWarning,
    TokenScores,
    register_proximal,
)

BASE = dist.Normal(torch.zeros(2), 1.0).to_event(1)
LINEAR = rewards.Linear(torch.tensor([1.0, -2.0]))


def run(base=BASE, reward=LINEAR, *args, **options):
    options = {"num_samples": 20, "seed": 0, "progress": False, **options}
    return ProximalTransport(base, reward, *args, **options).run()


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({}, ValueError, "either penalty= .* or radius="),
        ({"penalty": 1.0, "radius": 1.0}, ValueError, "either penalty="),
        ({"penalty": 0.0}, ValueError, "penalty must be positive"),
        ({"penalty": -1.0}, ValueError, "penalty must be positive"),
        ({"penalty": float("nan")}, ValueError, "penalty must be positive"),
        ({"radius": 0.0}, ValueError, "radius must be positive"),
        ({"radius": "big"}, TypeError, "radius must be a number"),
        ({"penalty": 1.0, "cost": "l2"}, ValueError, "cost must be one of"),
        ({"penalty": 1.0, "cost": 2}, TypeError, "cost must be a name"),
        ({"penalty": 1.0, "of": ["x"]}, TypeError, "of must name one site"),
        ({"penalty": 1.0, "curvature": float("inf")}, ValueError, "curvature must be a finite"),
        ({"penalty": 1.0, "max_steps": 0}, ValueError, "max_steps must be an integer"),
        ({"penalty": 1.0, "support": torch.zeros(3, 5)}, ValueError, r"shape \(m, \*\(2,\)\)"),
    ],
)
def test_bad_options(options, error, match):
    with pytest.raises(error, match=match):
        run(**options)


def test_the_penalty_must_exceed_the_growth():
    reward = rewards.Quadratic.from_hessian(torch.diag(torch.tensor([3.0, -1.0])))
    for penalty in (2.9, 3.0):
        with pytest.raises(ValueError, match=rf"penalty = {penalty:g} must exceed 3,") as caught:
            run(BASE, reward, penalty=penalty)
        assert caught.value.bound == pytest.approx(3.0)
    run(BASE, reward, penalty=3.01)
    # Beta multiplies the growth.
    with pytest.raises(ValueError, match="must exceed 6,"):
        run(BASE, reward, 2.0, penalty=4.0)
    # Within a ball there is always an answer.
    assert run(BASE, reward, radius=0.5).certificate.gap < 1e-5


def test_rewards_must_be_numbers():
    calls = []

    def nan(x):
        calls.append(len(x))
        return x.sum(-1) * float("nan")

    with pytest.raises(ValueError, match="NaN for 20 of 20"):
        run(BASE, rewards.Concave(nan, event_dim=1), penalty=1.0)
    assert calls == [20]
    with pytest.raises(ValueError, match=r"shape \(20,\), got shape \(20, 2\)"):
        run(BASE, rewards.Concave(lambda x: -x.square()), penalty=1.0)
    scores = rewards.BlackBox(lambda x: torch.full(x.shape[:1], float("nan")))
    with pytest.raises(ValueError, match="NaN"):
        run(BASE, scores, penalty=1.0, support=torch.zeros(3, 2))


def test_declared_structure_is_checked():
    with pytest.raises(ValueError, match="not concave, as was said: between"):
        run(BASE, rewards.Concave(lambda x: x.square().sum(-1) * 0.4, event_dim=1), penalty=1.0)
    with pytest.raises(ValueError, match="not of curvature at most 0.5"):
        run(BASE, lambda x: x.square().sum(-1), penalty=2.5, curvature=0.5)
    steep = rewards.LowDim(lambda u: torch.sin(3 * u[..., 0]), torch.ones(1, 2), lipschitz=1.0)
    with pytest.raises(ValueError, match="not Lipschitz with constant 1, as declared"):
        run(BASE, steep, penalty=1.0)


UPWARDS = {
    "square": lambda x: x.square().sum(-1),
    "quartic": lambda x: x.pow(4).sum(-1),
    "exponential": lambda x: x.exp().sum(-1),
}


@pytest.mark.parametrize("num_samples", [1, 20])
@pytest.mark.parametrize("options", [{"penalty": 1.0}, {"penalty": 1.9}, {"radius": 0.5}])
@pytest.mark.parametrize("name", UPWARDS)
def test_convex_rewards_are_not_concave(name, options, num_samples):
    """Also where the proximal map is unbounded, so that the ascent runs away and stays nowhere."""
    with pytest.raises(ValueError, match="not concave, as was said: between"):
        run(BASE, rewards.Concave(UPWARDS[name], event_dim=1), num_samples=num_samples, **options)


def test_false_claims_of_curvature_where_points_run_away():
    with pytest.raises(ValueError, match="not of curvature at most 0.5"):
        run(BASE, UPWARDS["square"], penalty=1.0, curvature=0.5)
    low = rewards.LowDim(lambda u: u[..., 0] ** 2, torch.tensor([[1.0, 0.5]]), concave=True)
    for options in ({"penalty": 1.0}, {"penalty": 5.0}, {"radius": 0.5}):
        with pytest.raises(ValueError, match="f of the LowDim reward is not concave, as was said"):
            run(BASE, low, **options)
    square = rewards.Concave(UPWARDS["square"], event_dim=1)
    with pytest.raises(ValueError, match="not concave, as was said: between"):
        plan(BASE, square, closeness="wasserstein", penalty=1.0, seed=0).run(num_samples=20)


def test_a_certificate_that_says_little_is_warned_of():
    stiff = rewards.Concave(lambda x: -100.0 * (1.0 + x.square().sum(-1)).sqrt(), event_dim=1)
    with pytest.warns(SamplerWarning, match="certified gap .* is large beside the objective"):
        result = run(BASE, stiff, penalty=0.01, max_steps=2)
    assert result.certificate.gap > 100.0
    # Warnings are errors here: with enough steps there is none.
    result = run(BASE, stiff, penalty=0.01)
    assert result.certificate.gap < 1e-4
    assert bool((result.samples["x"].norm(dim=-1) < 0.01).all())


def test_bumps_between_draws_refute_concavity():
    """Every ascent ends at a local maximum next to its start; only pairs of draws show the rest."""
    spread = dist.Normal(torch.zeros(2), 20.0).to_event(1)
    waves = rewards.Concave(lambda x: -(x - x.round()).square().sum(-1) * 100.0, event_dim=1)
    with pytest.raises(ValueError, match="not concave, as was said: between"):
        run(spread, waves, penalty=1e-3)


def test_programs_that_transport_cannot_move():
    def observed():
        x = pyro.sample("x", BASE)
        pyro.sample("y", dist.Normal(x[..., 0], 1.0), obs=torch.tensor(0.3))
        return x

    with pytest.raises(ValueError, match=r"observations, factors and tilts \(\['y'\]\)"):
        run(observed, penalty=1.0)
    with pytest.raises(ValueError, match="factors and tilts"):
        run(align(lambda: pyro.sample("x", BASE), LINEAR), penalty=1.0)
    with pytest.raises(ValueError, match="the program returns nothing"):
        run(_silent, penalty=1.0)
    with pytest.raises(ValueError, match=r"batch shape \(2,\)"):
        run(dist.Normal(torch.zeros(2), 1.0), penalty=1.0)
    with pytest.raises(TypeError, match=r"distribution of pyro\.distributions"):
        run(torch.distributions.Normal(0.0, 1.0), penalty=1.0)
    with pytest.raises(TypeError, match="program or a distribution"):
        run(3, penalty=1.0)
    with pytest.raises(ValueError, match="one value at a time|batch shape"):
        run(BASE, rewards.Linear(torch.ones(4, 2), event_dim=1), penalty=1.0, num_samples=4)


def _silent():
    pyro.sample("x", BASE)


def test_tokens_do_not_move_by_real_amounts():
    tokens = dist.Categorical(torch.ones(3, 4)).to_event(1)
    with pytest.raises(ValueError, match="use cost='hamming' for tokens"):
        run(tokens, TokenScores(torch.randn(3, 4)), penalty=1.0)
    with pytest.raises(ValueError, match="takes 2 tokens"):
        run(tokens, TokenScores(torch.randn(2, 4)), penalty=1.0, cost="hamming")
    with pytest.raises(ValueError, match="between 0 and 1"):
        run(tokens, TokenScores(torch.randn(3, 2)), penalty=1.0, cost="hamming")


def test_no_proximal_map_is_known():
    tokens = dist.Categorical(torch.ones(3, 4)).to_event(1)
    with pytest.raises(NotImplementedError, match="Give support="):
        run(tokens, lambda x: x.double().prod(-1), penalty=1.0, cost="hamming")
    with pytest.raises(NotImplementedError, match="no proximal map is known for Constraint"):
        run(BASE, rewards.Constraint(lambda x: x[..., 0] > -100.0), penalty=1.0)
    with pytest.raises(NotImplementedError, match="NormPower"):
        run(BASE, rewards.Quadratic(-torch.eye(2)), penalty=1.0, cost=ops.NormPower(3.0))
    # On a finite support any reward and cost will do.
    every = torch.cartesian_prod(*[torch.arange(4)] * 3)
    result = run(tokens, lambda x: x.double().prod(-1), penalty=1.0, cost="hamming", support=every)
    assert result.certificate.law == "exact"
    assert bool((result.samples["x"] == 3).all())


def test_rules_can_be_registered():
    class Floor(rewards.Reward):
        """0 above a floor, -inf below: conditioning on a half-space by projection."""

        event_dim = 1

        def __call__(self, value):
            return torch.zeros(value.shape[:-1]).masked_fill(value[..., 0] < 0.0, -torch.inf)

    with pytest.raises(TypeError, match="must be a Reward type"):
        register_proximal(int, ops.SquaredEuclidean)
    with pytest.raises(TypeError, match="must be a TransportCost type"):
        register_proximal(Floor, int)

    @register_proximal(Floor, ops.QuadraticCost)
    def floor(problem):
        if not isinstance(problem.cost, ops.SquaredEuclidean):
            return None

        def solve(x, penalty, start):
            return problem.step(x, torch.cat([x[:, :1].clamp(min=0.0), x[:, 1:]], -1))

        return ProximalOracle(solve, "projection")

    result = run(BASE, Floor(), penalty=1.0)
    base, moved = result.stats["base_value"], result.samples["x"]
    assert bool((base[:, 0] < 0).any()) and bool((moved[:, 0] >= 0).all())
    torch.testing.assert_close(moved[:, 1], base[:, 1])
    assert result.certificate.law == "exact"
