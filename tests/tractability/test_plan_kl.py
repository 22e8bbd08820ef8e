# SPDX-License-Identifier: Apache-2.0
"""Which primitives apply under KL closeness, which is picked, and what is said to be hard."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_tilt import diffusion, plan, rewards
from pyro_tilt.infer import TokenScores
from pyro_tilt.language import TabularLM

F64 = torch.float64
PAPER = "arXiv 2602.16570"


def diagonal(*values):
    return rewards.Quadratic(torch.diag(torch.tensor(values, dtype=F64)))


LINEAR = rewards.Linear(torch.tensor([1.25, -0.5], dtype=F64))
BLACK = rewards.BlackBox(lambda x: -x.abs().sum(-1), event_dim=1)
KINK = rewards.LowDim(
    lambda u: u.abs().sum(-1), torch.tensor([[1.0, -0.5]], dtype=F64), convex=True, lipschitz=1.0
)
PIECES = rewards.MaxAffine(
    torch.tensor([[1.0, 0.0], [-0.5, 0.5]], dtype=F64), torch.tensor([0.0, 0.2], dtype=F64)
)
WAVE = rewards.LowDim(lambda u: u.sin().sum(-1), torch.tensor([[1.0, 0.0]], dtype=F64))

ON_DIFFUSION = [
    (LINEAR, "LinearTilt"),
    (diagonal(-0.7, -0.7), "QuadraticTilt"),
    (diagonal(0.1, 0.0), "QuadraticTilt"),
    (KINK, "ConvexTilt"),
    (PIECES, "ConvexTilt"),
    (diagonal(-0.7, 0.0), "ConvexTilt"),
]


@pytest.mark.parametrize("reward,name", ON_DIFFUSION, ids=lambda v: v if isinstance(v, str) else "")
def test_diffusions_by_structure(model, reward, name):
    found = plan(model, reward)
    assert found.choice.name == name
    assert found.choice.law == "consistent"
    assert found.choice.target == "continuous-time tilt of the diffusion"
    assert 0.0 < found.choice.acceptance <= 1.0
    # A run of the base takes a prediction per level; rejection from a mixture takes more.
    assert found.choice.cost == pytest.approx(40.0 / found.choice.acceptance)
    tilts = {"LinearTilt", "QuadraticTilt", "ConvexTilt"} - {name}
    if name == "LinearTilt":
        assert not any(found.entry(other).applicable for other in tilts)


@pytest.mark.parametrize("name", ["LinearTilt", "QuadraticTilt", "ConvexTilt", "Mixture algebra"])
def test_diffusion_tilts_need_a_diffusion(program, walk, name):
    for base in (program, walk, dist.Normal(0.0, 1.0)):
        entry = plan(base, rewards.Linear(torch.tensor(0.1)), num_pilot=0).entry(name)
        assert not entry.applicable
        assert entry.make is None and entry.law is None
        assert "diffusion" in entry.reason


def test_no_structure_falls_to_draws(model):
    found = plan(model, WAVE)
    for name in ("LinearTilt", "QuadraticTilt", "ConvexTilt", "Mixture algebra"):
        assert not found.entry(name).applicable, name
    assert found.choice.name == "ImportanceSampler"
    assert found.choice.cost == pytest.approx(40.0 / found.choice.acceptance)
    assert found.choice.cost_unit == "denoiser rows"


def test_mixture_algebra_knows_negative_quadratics(model, network):
    bowl = diagonal(-3.0, 0.0)
    known = plan(model, bowl).entry("Mixture algebra")
    assert known.applicable and known.law == "exact"
    assert not plan(network, bowl, num_pilot=0).entry("Mixture algebra").applicable
    assert not plan(model, KINK).entry("Mixture algebra").applicable


def test_negative_rank_one_cites_its_theorem(model):
    found = plan(model, diagonal(-3.0, 0.0))
    assert [hard.source for hard in found.hardness] == [
        "Moitra, Risteski and Rohatgi 2026, arXiv 2602.16570, Theorem 4.1"
    ]
    assert "Theorem 4.1" in found.entry("QuadraticTilt").reason
    assert not found.entry("QuadraticTilt").applicable
    assert "wasserstein" in found.advice
    assert found.choice.law == "consistent"
    assert "weaker" in str(found)


def test_isotropic_and_low_rank_quadratics_are_not_called_hard(model):
    for reward in (diagonal(-0.7, -0.7), diagonal(0.1, 0.0), LINEAR, KINK):
        assert plan(model, reward).hardness == ()


def test_high_positive_rank_cites_its_theorem():
    parts = dist.Normal(torch.zeros(8, dtype=F64), 1.0).to_event(1)
    base = diffusion.MixtureDiffusion(
        dist.MixtureSameFamily(
            dist.Categorical(torch.ones(2, dtype=F64)),
            dist.Normal(3.0 * torch.stack([torch.ones(8), -torch.ones(8)]).double(), 1.0).to_event(
                1
            ),
        ),
        diffusion.VP.linear(20),
    )
    steep = rewards.Quadratic(0.2 * torch.eye(8, dtype=F64))
    found = plan(base, steep)
    assert [hard.source.rpartition(", ")[2] for hard in found.hardness] == ["Theorem A.1"]
    entry = found.entry("QuadraticTilt")
    assert not entry.applicable and "Theorem A.1" in entry.reason
    # Of one Gaussian the mixing law is log-concave at any rank, although the class is hard.
    easy = plan(diffusion.MixtureDiffusion(parts, diffusion.VP.linear(20)), steep)
    assert easy.choice.name == "QuadraticTilt" and easy.hardness


@pytest.mark.parametrize(
    "base,reward",
    [
        (dist.Normal(0.3, 1.2), rewards.Linear(1.5)),
        (dist.Normal(0.3, 1.2), rewards.Quadratic(-4.0)),
        (dist.Poisson(2.0), rewards.Linear(0.4)),
        (dist.Bernoulli(0.3), lambda x: 2.0 * x),
        (dist.Normal(0.3, 1.2), lambda x: x.sin()),
    ],
)
def test_distributions_with_a_known_tilt(base, reward):
    found = plan(base, reward)
    quadrature = isinstance(base, dist.Normal) and not isinstance(reward, rewards.Reward)
    assert (found.choice.name, found.choice.law) == (
        "Tilted",
        "bounded" if quadrature else "exact",
    )
    assert found.hardness == () and found.advice == ""
    assert found.run(50, seed=0).certificate.law == found.choice.law


def test_distributions_without_one_are_thinned_or_weighed():
    base = dist.Normal(torch.zeros(2, dtype=F64), 1.0).to_event(1)
    found = plan(base, BLACK)
    assert not found.entry("Tilted").applicable
    assert found.choice.name == "ImportanceSampler"
    bounded = rewards.Bounded(BLACK, low=-torch.inf, high=0.0, event_dim=1)
    found = plan(base, bounded)
    assert (found.choice.name, found.choice.law) == ("Rejection", "exact")


def test_rejection_needs_a_bound(program):
    assert "Bounded" in plan(program, lambda x: -x.abs()).entry("Rejection").reason
    capped = rewards.Bounded(lambda x: -x.abs(), low=-torch.inf, high=0.0)
    assert plan(program, capped).choice.name == "Rejection"


def test_an_observation_without_a_bound_is_named():
    def noisy():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        scale = pyro.sample("scale", dist.Gamma(2.0, 1.0))
        pyro.sample("datum", dist.Normal(x, scale), obs=torch.tensor(0.4))
        return x

    capped = rewards.Bounded(lambda x: -x.abs(), low=-torch.inf, high=0.0)
    entry = plan(noisy, capped).entry("Rejection")
    assert not entry.applicable and "datum" in entry.reason


def test_smc_needs_steps(walk, program):
    assert plan(walk, lambda x: 0.1 * x).entry("SMC").applicable
    entry = plan(program, lambda x: 0.1 * x).entry("SMC")
    assert not entry.applicable and "steps" in entry.reason


def test_tempering_where_weighing_fails(program):
    found = plan(program, lambda x: 6.0 * x)
    assert found.entry("ImportanceSampler").acceptance < 0.01
    assert (found.choice.name, found.choice.law) == ("TemperedSMC", "consistent")
    declined = plan(diffusion_of_a_normal(), lambda x: x.sum(-1)).entry("TemperedSMC")
    assert not declined.applicable


def diffusion_of_a_normal():
    part = dist.MultivariateNormal(torch.zeros(2, dtype=F64), torch.eye(2, dtype=F64))
    return diffusion.MixtureDiffusion(part, diffusion.VP.linear(10))


def test_tempering_needs_a_density():
    base = diffusion_of_a_normal()
    entry = plan(base.program(record="last"), lambda x: x.sum(-1)).entry("TemperedSMC")
    assert not entry.applicable and "'x_0' has no density" in entry.reason


def test_nothing_is_picked_behind_the_users_back(cube):
    signs, numbers = cube
    # Acceptance is the share of balanced partitions, 6 / 16: three signs out of {3, 1, 2, 2}.
    reward = rewards.Quadratic(-9.0 * torch.outer(numbers, numbers))
    easy = plan(signs, reward)
    assert easy.choice.name == "Rejection" and len(easy.hardness) == 1
    none = plan(signs, reward, min_acceptance=0.9)
    assert none.choice is None
    assert "Nothing is picked" in str(none) and "Rejection" in none.why_none
    with pytest.raises(ValueError, match="min_acceptance"):
        none.run(10)
    assert none.run(10, seed=0, method="Rejection").certificate.law == "exact"


def test_autoregressive_models_are_hard_by_a_result_of_this_project():
    model = TabularLM.random(3, 4)
    scores = TokenScores(torch.linspace(-0.4, 0.6, 12, dtype=F64).reshape(4, 3))
    for base in (model, model.program()):
        found = plan(base, scores)
        assert found.problem.kind == "autoregressive"
        (hard,) = found.hardness
        assert "derived here" in hard.source and "arXiv" not in hard.source
        # Scores of a finite vocabulary are bounded, so that this easy one is thinned.
        assert found.choice.name == "Rejection"
    blind = plan(model, lambda y: 0.3 * (y == 1).double().sum(-1))
    assert blind.choice.law == "consistent" and blind.entry("SMC").applicable
    assert PAPER not in str(blind)


def test_a_program_with_continuous_steps_is_not_autoregressive(walk):
    found = plan(walk, lambda x: 0.1 * x)
    assert found.problem.kind == "program" and found.hardness == ()


def test_networks_are_told_of_their_reach(network):
    far = plan(network, rewards.Linear(torch.tensor([2.0, 0.0], dtype=F64)))
    assert "not independent" in far.choice.reason
    near = plan(network, rewards.Linear(torch.tensor([1e-3, 0.0], dtype=F64)))
    assert "not independent" not in near.choice.reason


def test_a_groove_that_slopes_along_itself_has_no_single_tangent(model):
    sloped = rewards.Quadratic(
        torch.diag(torch.tensor([-0.6, 0.0], dtype=F64)), torch.tensor([0.7, -0.3], dtype=F64)
    )
    found = plan(model, sloped)
    assert not found.entry("ConvexTilt").applicable and "linear in none" in str(
        found.entry("ConvexTilt").reason
    )
    assert found.choice.name == "Mixture algebra" and found.hardness


def test_beta_decides_the_side_of_a_quadratic(model):
    cup = diagonal(0.7, 0.0)
    assert plan(model, cup, 0.2).choice.name == "QuadraticTilt"
    assert plan(model, cup, -1.0).choice.name == "ConvexTilt"
    assert plan(model, cup, -1.0).hardness
