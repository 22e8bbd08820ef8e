# SPDX-License-Identifier: Apache-2.0
"""Samplers as Pyro programs: sites, laws, engines."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

from pyro_tilt import diffusion, rewards
from pyro_tilt.infer import SMC, ImportanceSampler, ProgramProposal
from pyro_tilt.testing.gates import P_VALUE, Z_SCORE

F64 = torch.float64
LOCS = torch.tensor([[-2.5, -0.5], [1.0, 1.5], [2.0, -1.5]], dtype=F64)
SCALES = torch.tensor([[0.5, 0.4], [0.4, 0.6], [0.5, 0.5]], dtype=F64)
WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=F64)
THETA = torch.tensor([0.9, -0.5], dtype=F64)


def model(schedule):
    mixture = dist.MixtureSameFamily(
        dist.Categorical(WEIGHTS), dist.Normal(LOCS, SCALES).to_event(1)
    )
    return diffusion.MixtureDiffusion(mixture, schedule)


def gaussian(schedule, scale=1.7):
    """A correlation-free Gaussian, whose chain stays Gaussian."""
    law = dist.Normal(torch.tensor([0.4], dtype=F64), torch.tensor([scale], dtype=F64))
    return diffusion.MixtureDiffusion(law.to_event(1), schedule)


def modes(draws):
    nearest = (draws.unsqueeze(1) - LOCS).square().sum(-1).argmin(-1)
    return torch.bincount(nearest, minlength=3).double()


@pytest.mark.parametrize("sampler", ["ancestral", "heun", "euler"])
def test_sites_of_a_program(sampler):
    trace = pyro.poutine.trace(model(diffusion.VP.linear(5)).program(sampler)).get_trace()
    sites = [name for name, node in trace.nodes.items() if node["type"] == "sample"]
    steps = [f"x_{k}" for k in range(4, 0, -1)] if sampler == "ancestral" else []
    assert sites == ["x_T", *steps, "x_0"]
    assert torch.equal(trace.nodes["_RETURN"]["value"], trace.nodes["x_0"]["value"])
    assert math.isfinite(float(trace.log_prob_sum()))


def test_the_chain_has_the_law_that_algebra_gives_it():
    """
    For a Gaussian every step is affine: the law of x_0 after ten steps is known exactly.

    The recursion is written with the posterior variance of Ho et al., not with eta.
    """
    base = gaussian(diffusion.VP.linear(10))
    mean, var = 0.0, base.schedule.start.s**2
    for now, then in zip(base.schedule.levels, base.schedule.levels[1:]):
        gain = now.a * 1.7**2 / (now.a**2 * 1.7**2 + now.s**2)
        alpha = (now.a / then.a) ** 2
        weight_clean = then.a * (1 - alpha) / now.s**2
        weight_noisy = math.sqrt(alpha) * then.s**2 / now.s**2
        noise = then.s**2 * (1 - alpha) / now.s**2
        slope = weight_clean * gain + weight_noisy
        mean = slope * mean + weight_clean * (0.4 - gain * now.a * 0.4)
        var = slope**2 * var + noise
    torch.manual_seed(0)
    draws = base.program(record="last")
    with pyro.plate("n", 40_000):
        values = draws()[:, 0]
    assert abs(float(values.mean()) - mean) < Z_SCORE * math.sqrt(var / 40_000)
    assert abs(float(values.var()) / var - 1) < Z_SCORE * math.sqrt(2 / 40_000)


@pytest.mark.parametrize(("sampler", "order"), [("euler", 1.0), ("heun", 2.0)])
@pytest.mark.parametrize(
    "make", [diffusion.VP.linear, lambda n: diffusion.RectifiedFlow(n, end=0.9)]
)
def test_orders_of_the_flows(make, sampler, order):
    """Halving the steps' length divides the error of a deterministic path by two or by four."""
    errors = []
    for steps in (400, 800):
        base = gaussian(make(steps), scale=0.6)
        now = base.schedule.start
        # The flow of a Gaussian keeps the number of standard deviations; down to the level where
        # half of the time is left, where no step is singular.
        x = torch.tensor([2.0], dtype=F64)
        z = (x - now.a * 0.4) / math.hypot(0.6 * now.a, now.s)
        for here, there in zip(base.schedule.levels[: steps // 2], base.schedule.levels[1:]):
            x, _ = base.step(x, here, there, sampler=sampler)
        end = base.schedule.levels[steps // 2]
        exact = end.a * 0.4 + z * math.hypot(0.6 * end.a, end.s)
        errors.append(float((x - exact).abs()))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("sampler", ["ancestral", "heun"])
def test_programs_run_over_many_particles(sampler):
    base = model(diffusion.VP.linear(80))
    torch.manual_seed(1)
    draws = ProgramProposal(base.program(sampler)).draw(4000).samples["x_0"]
    counts = modes(draws)
    statistic = float(((counts - 4000 * WEIGHTS).square() / (4000 * WEIGHTS)).sum())
    assert stats.chi2.sf(statistic, 2) > P_VALUE


def test_a_plate_of_draws_and_a_plain_run_of_the_last_state():
    base = model(diffusion.VP.linear(8))
    for record in ("all", "last"):
        program = base.program(record=record)
        with pyro.plate("n", 6):
            assert program().shape == (6, 2)
        assert program().shape == (2,)
    torch.manual_seed(2)
    one = base.program()()
    torch.manual_seed(2)
    assert torch.equal(base.program(record="last")(), one)
    with pytest.raises(NotImplementedError, match="no density"):
        diffusion.DiffusionLaw(base).log_prob(one)


def test_smc_steers_the_program():
    """The steps are those of a scan: SMC over them finds the evidence of a reward."""
    base = model(diffusion.VP.linear(20))

    def reward(x):
        return torch.tanh(x[..., 0])

    found = SMC(base.program(), reward=reward, num_particles=3000, seed=0, progress=False).run()
    plain = ImportanceSampler(
        base.program(record="last"), reward=reward, num_samples=20_000, seed=1, progress=False
    ).run()
    error = math.hypot(float(found.log_normalizer_error), float(plain.log_normalizer_error))
    error = 0.03 if math.isnan(error) else error
    assert abs(float(found.log_normalizer - plain.log_normalizer)) < Z_SCORE * error


@pytest.mark.parametrize("sampler", ["ancestral", "heun", "euler"])
def test_a_tilted_model_is_a_program_of_the_tilt(sampler):
    base = model(diffusion.VP.linear(120))
    tilted = diffusion.TiltedDiffusion(base, THETA)
    torch.manual_seed(3)
    with pyro.plate("n", 4000):
        draws = tilted.program(sampler)()
    exact = base.tilted_law(rewards.Linear(THETA)).law
    spread = (exact.variance / 4000).sqrt()
    assert bool(((draws.mean(0) - exact.mean).abs() < Z_SCORE * spread + 0.02).all())


def test_refusals():
    base = model(diffusion.VP.linear(5))
    with pytest.raises(ValueError, match="sampler"):
        base.program("langevin")
    with pytest.raises(ValueError, match="eta"):
        base.program(eta=-0.1)
    with pytest.raises(ValueError, match="record"):
        base.program(record="some")
    with pytest.raises(ValueError, match="event shape"):
        diffusion.TiltedDiffusion(base, torch.zeros(3))
    with pytest.raises(TypeError, match="Schedule"):
        diffusion.MixtureDiffusion(base.mixture, 400)
