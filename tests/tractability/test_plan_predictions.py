# SPDX-License-Identifier: Apache-2.0
"""What a plan foretells, against exact values and against runs; runs against exact laws.

Gates: z scores of 4.5 (false alarm 7e-6 each), Hotelling's T squared at 1e-5, chi square at 1e-5.
"""

import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

from pyro_tilt import align, diffusion, plan, rewards
from pyro_tilt.infer import LCB, SamplerWarning, TokenScores
from pyro_tilt.language import TabularLM
from pyro_tilt.testing.gates import P_VALUE, Z_SCORE, hotelling
from pyro_tilt.tractability import Pilot

F64 = torch.float64


def scalar():
    return pyro.sample("x", dist.Normal(torch.tensor(0.4, dtype=F64), 1.3))


def bowl_evidence(curvature, mean=0.4, variance=1.69, centre=1.0):
    """E exp(-curvature (x - centre)^2) under a normal law."""
    spread = 1.0 + 2.0 * curvature * variance
    return math.exp(-curvature * (mean - centre) ** 2 / spread) / math.sqrt(spread)


def bowl(x):
    return -(x - 1.0).square()


CAPPED = rewards.Bounded(bowl, low=-math.inf, high=0.0)


@pytest.mark.parametrize("beta", [0.5, 4.0])
@pytest.mark.parametrize("seed", range(4))
def test_acceptance_of_rejection_within_its_stated_error(beta, seed):
    entry = plan(scalar, CAPPED, beta, seed=seed).entry("Rejection")
    exact = bowl_evidence(beta)
    assert 0.0 < entry.acceptance_error < 0.1 * exact + 0.02
    assert abs(entry.acceptance - exact) < Z_SCORE * entry.acceptance_error
    assert entry.cost == pytest.approx(1.0 / entry.acceptance)


def test_acceptance_of_rejection_against_a_run():
    found = plan(scalar, CAPPED, 4.0, seed=5)
    measured = found.run(4000, seed=6).info["acceptance_rate"]
    error = math.hypot(found.choice.acceptance_error, measured / math.sqrt(4000))
    assert abs(found.choice.acceptance - measured) < Z_SCORE * error


@pytest.mark.parametrize("seed", range(4))
def test_effective_share_within_its_stated_error(seed):
    entry = plan(scalar, bowl, 1.0, seed=seed, num_pilot=4000).entry("ImportanceSampler")
    exact = bowl_evidence(1.0) ** 2 / bowl_evidence(2.0)
    assert 0.0 < entry.acceptance_error < 0.02
    assert abs(entry.acceptance - exact) < Z_SCORE * entry.acceptance_error


def test_the_jackknife_tells_the_spread_of_effective_shares():
    generator = torch.Generator().manual_seed(0)
    pilots = [
        Pilot(0.7 * torch.randn(400, generator=generator, dtype=F64), math.inf) for _ in range(400)
    ]
    shares = torch.tensor([pilot.effective_share for pilot in pilots])
    stated = torch.tensor([pilot.effective_share_error for pilot in pilots])
    # The jackknife estimates a variance, from above; weights with tails make it vary by itself.
    assert 0.8 < float(stated.square().mean().sqrt() / shares.std()) < 1.3


def test_weights_that_a_pilot_cannot_judge_are_not_picked():
    """Of e^{3.5 x} under N(0, 1) the true share is 5e-6; a pilot of 512 shows a hundredfold."""
    calm, heavy = plan(scalar, lambda x: 0.3 * x), plan(scalar, lambda x: 2.7 * x)
    assert calm.choice.name == "ImportanceSampler" and calm.choice.trusted
    entry = heavy.entry("ImportanceSampler")
    assert not entry.trusted and "(?)" in str(heavy)
    assert heavy.choice.name == "TemperedSMC"
    # Enough draws count, and still the tail says that more are hidden in it.
    pyro.set_rng_seed(0)
    tail = Pilot(dist.Exponential(0.9).sample((4000,)).double(), math.inf)
    assert tail.effective_share * 4000 > 10.0 and "pareto_k" in tail.doubt
    assert Pilot(torch.zeros(4000, dtype=F64), 0.0).doubt == ""
    # Five weights alike have no tail to fit, and are too few to believe.
    few = torch.full((4000,), -math.inf, dtype=F64)
    few[:5] = 0.0
    assert "only 5.0" in Pilot(few, 0.0).doubt


def test_a_pilot_of_zeros_predicts_nothing_to_accept():
    pilot = Pilot(torch.full((8,), -math.inf, dtype=F64), 0.0)
    assert pilot.acceptance(0.0) == (0.0, 0.0) and pilot.effective_share == 0.0
    assert math.isnan(pilot.effective_share_error)


def test_acceptance_of_lcb_is_of_the_size_of_a_run():
    entry = plan(scalar, bowl, 4.0, num_pilot=4000).entry("LCB")
    measured = plan(scalar, bowl, 4.0).run(2000, seed=1, method="LCB").info["acceptance_rate"]
    # Two baselines learned from different draws: the same up to the spread of the baseline.
    assert 0.75 < entry.acceptance / measured < 1.33


def test_acceptance_of_lcb_where_few_pilot_draws_count():
    """No baseline lies above the largest weight seen, in the sampler as in the plan."""

    def steep(x):
        return 4.0 * x

    found = plan(scalar, steep, 1.0, num_pilot=256, seed=2)
    entry = found.entry("LCB")
    assert not entry.trusted
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SamplerWarning)
        run = LCB(align(scalar, steep, 1.0), num_calibration=256, num_samples=200, seed=2).run()
    # The largest of 256 weights varies by a factor of e^4 or so, and nothing worse may be said.
    assert abs(math.log(entry.acceptance / run.info["acceptance_rate"])) < 5.0


@pytest.mark.parametrize(
    "reward,beta",
    [
        (rewards.Quadratic(torch.diag(torch.tensor([-3.0, 0.0], dtype=F64))), 1.0),
        (
            rewards.LowDim(
                lambda u: u.abs().sum(-1),
                torch.tensor([[1.0, -0.5]], dtype=F64),
                convex=True,
                lipschitz=1.0,
            ),
            1.3,
        ),
    ],
)
def test_acceptance_of_convex_tilts_against_a_run(model, reward, beta):
    found = plan(model, reward, beta)
    assert found.choice.name == "ConvexTilt"
    num = 3000
    measured = found.run(num, seed=2).info["acceptance_rate"]
    # The prediction is for the tilt in continuous time; 40 levels are within 10 % of it.
    rate = found.choice.acceptance
    error = math.hypot(found.choice.acceptance_error, measured * math.sqrt((1 - measured) / num))
    assert abs(rate - measured) < Z_SCORE * error + 0.1 * rate


def test_the_choice_for_a_normal_law_draws_its_tilt():
    found = plan(dist.Normal(torch.tensor(0.4, dtype=F64), 1.3), rewards.Linear(0.7), 2.0)
    result = found.run(20_000, seed=0)
    exact = dist.Normal(torch.tensor(0.4 + 1.69 * 1.4, dtype=F64), 1.3)
    gate_bins(result.samples["x"], exact)
    assert float(result.log_normalizer) == pytest.approx(0.4 * 1.4 + 0.5 * 1.69 * 1.4**2, rel=1e-6)
    kl = 0.5 * 1.69 * 1.4**2
    assert result.info["kl"] == pytest.approx(kl, abs=Z_SCORE * 1.4 * 1.3 / math.sqrt(20_000))
    assert result.kind == "iid" and result.beta == 2.0


def gate_bins(draws, exact):
    """Chi square over ten bins of equal probability."""
    inside = exact.cdf(draws.double())
    counts = torch.histc(inside, bins=10, min=0.0, max=1.0)
    assert stats.chisquare(counts.numpy()).pvalue > P_VALUE


def test_the_choice_for_a_program_draws_its_tilt():
    found = plan(scalar, CAPPED, 4.0)
    assert found.choice.name == "Rejection"
    spread = 1.0 / (1.0 / 1.69 + 8.0)
    exact = dist.Normal(torch.tensor(spread * (0.4 / 1.69 + 8.0), dtype=F64), math.sqrt(spread))
    gate_bins(found.run(20_000, seed=1).samples["x"], exact)


def test_the_choice_for_a_diffusion_draws_its_tilt(model, mixture):
    """Weights of the components, .0249/.3874/.5877 or so, from w_k exp(<theta, m_k> + ...)."""
    theta = torch.tensor([0.9, -0.6], dtype=F64)
    found = plan(model, rewards.Linear(0.5 * theta), 2.0)
    parts = mixture.component_distribution.base_dist
    gains = parts.loc @ theta + 0.5 * parts.scale.square() @ theta.square()
    weights = (mixture.mixture_distribution.logits + gains).softmax(-1)
    moved = parts.loc + parts.scale.square() * theta
    draws = found.run(4000, seed=0).samples["x_0"]
    # 40 levels leave a bias of a few hundredths in the mean.
    assert torch.allclose(draws.mean(0), weights @ moved, atol=0.08)


@pytest.mark.parametrize("seed", range(2))
def test_mixture_algebra_draws_the_tilt(model, mixture, seed):
    """Against the mean and the evidence on a grid, which know nothing of completed squares."""
    bend = torch.tensor([[-1.2, 0.4], [0.4, 0.15]], dtype=F64)
    slope = torch.tensor([0.3, -0.5], dtype=F64)
    found = plan(model, rewards.Quadratic(bend / 0.8, slope / 0.8), 0.8)
    axis = torch.linspace(-9.0, 9.0, 901, dtype=F64)
    grid = torch.cartesian_prod(axis, axis)
    log_density = mixture.log_prob(grid) + ((grid @ bend) * grid).sum(-1) + grid @ slope
    law = log_density.softmax(0)
    result = found.run(20_000, seed=seed, method="Mixture algebra")
    assert result.certificate.law == "exact"
    draws = result.samples["x_0"]
    blocks = torch.cat([draws, draws.square()], -1).reshape(200, 100, 4).mean(1)
    hotelling(blocks, law @ torch.cat([grid, grid.square()], -1))
    evidence = float(log_density.logsumexp(0) + 2.0 * math.log(18.0 / 900.0))
    assert float(result.log_normalizer) == pytest.approx(evidence, abs=1e-8)


def test_a_groove_is_the_same_by_features_and_by_algebra(model):
    """A slope along the bend, and a beta."""
    groove = rewards.Quadratic(
        torch.diag(torch.tensor([-0.6, 0.0], dtype=F64)), torch.tensor([0.7, 0.0], dtype=F64), 0.2
    )
    found = plan(model, groove, 2.0)
    assert found.choice.name == "ConvexTilt"
    result = found.run(4000, seed=0)
    exact = model.tilted_law(2.0 * groove)
    # 40 levels leave a bias of a few hundredths.
    assert float(result.log_normalizer) == pytest.approx(float(exact.log_normalizer), abs=0.1)
    assert torch.allclose(result.samples["x_0"].mean(0), exact.law.mean, atol=0.1)
    assert torch.allclose(result.stats["reward"], groove(result.samples["x_0"]), atol=1e-9)


def test_smc_of_a_diffusion_knows_its_levels():
    """After x_k the state has the variance a^2 V + s^2 of the level that the twist asks at."""
    law = dist.MultivariateNormal(torch.zeros(1, dtype=F64), 0.25 * torch.eye(1, dtype=F64))
    model = diffusion.MixtureDiffusion(law, diffusion.VP.linear(200, beta_max=4.0))
    twist = plan(model, rewards.Linear(torch.tensor([2.0], dtype=F64))).sampler("SMC").twist
    pyro.set_rng_seed(0)
    with pyro.plate("draws", 40_000, dim=-1):
        trace = pyro.poutine.trace(model.program()).get_trace()
    probe = torch.ones(1, 1, dtype=F64)
    for k in (20, 80, 150):
        variance = float(trace.nodes[f"x_{k}"]["value"].var())
        near = [abs(level.a**2 * 0.25 + level.s**2 - variance) for level in model.schedule.levels]
        level = model.schedule.levels[near.index(min(near))]
        slope = 0.25 * level.a / (0.25 * level.a**2 + level.s**2)
        # 2 E[x_0 | x_k = 1]; the spread of the variance blurs the level by a step or two.
        assert float(twist(probe, k)) == pytest.approx(2.0 * slope, rel=0.04), k


def test_language_models_by_the_choice():
    model = TabularLM.random(3, 3, seed=4)
    scores = TokenScores(torch.randn(3, 3, generator=torch.Generator().manual_seed(1)).double())
    found = plan(model, scores, 1.5)
    draws = found.run(20_000, seed=0).samples["tokens"]
    every = model.enumerate()
    law = (model.log_law() + 1.5 * scores(every)).softmax(0)
    code = torch.tensor([9, 3, 1])
    counts = torch.bincount(draws @ code, minlength=27)[every @ code]
    assert stats.chisquare(counts.numpy(), (law * 20_000).numpy()).pvalue > P_VALUE
