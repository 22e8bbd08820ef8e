# SPDX-License-Identifier: Apache-2.0
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

from pyro_tilt.infer import TemperedSMC
from pyro_tilt.infer.tempered import Tuning, gaussian_kernels, kernels
from pyro_tilt.infer.tempered.density import ProgramDensity
from pyro_tilt.infer.tempered.gaussian_kernels import autocorrelation, pcnl_log_ratio, whiten
from pyro_tilt.infer.tempered.moves import Mover, correlation
from pyro_tilt.poutine import align
from pyro_tilt.testing.gates import P_VALUE

BETA = 0.6
STEPS = {"rwm": 0.7, "pcn": 1.5, "pcnl": 1.2, "hmc": 0.9, "independent": 1.0}


def _noises():
    x = pyro.sample("x", dist.Normal(torch.tensor(0.3), torch.tensor(1.5)))
    y = pyro.sample("y", dist.Normal(torch.zeros(2), torch.tensor([1.0, 0.5])).to_event(1))
    return torch.cat([x.unsqueeze(-1), y], -1)


def _reward(value):
    """At most zero, asymmetric, and curved in all coordinates."""
    x, y = value[..., 0], value[..., 1:]
    return -2.0 * (x - 1.0 - y[..., 0]).square() - torch.nn.functional.softplus(3.0 * y.sum(-1))


def _bounded():
    g = pyro.sample("g", dist.Gamma(torch.tensor(1.5), torch.tensor(1.0)))
    u = pyro.sample("u", dist.Uniform(-g, 2.0 * g))
    p = pyro.sample("p", dist.Beta(torch.tensor(2.0), 1.0 + g))
    return torch.stack([g, u, p], -1)


def _exact(program, count, seed, positions=True):
    """Draws of the tempered law by rejection, with what a move needs, and the density."""
    density = ProgramDensity(align(program, _reward, 1.0))
    pyro.set_rng_seed(seed)
    particles = density.start(count, positions=positions)
    # Not the program's seed, whose uniforms its draws are made of.
    generator = torch.Generator().manual_seed(1000 + seed)
    kept = torch.rand(count, generator=generator).log() < BETA * particles.log_weights
    return density, particles.index(kept.nonzero().squeeze(-1)), generator


def _cells(particles, program):
    samples = particles.draws.samples
    names = ("x", "y") if program is _noises else ("g", "u", "p")
    columns = [samples[name].reshape(len(particles), -1) for name in names]
    return torch.cat(columns, -1).double()


def _p_value(first, second):
    """Two-sample chi-square over the 64 cells between the quartiles of the second sample."""
    edges = second.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64), dim=0)
    tables = []
    for rows in (first, second):
        code = sum(
            torch.bucketize(rows[:, i].contiguous(), edges[:, i].contiguous()) * 4**i
            for i in range(3)
        )
        tables.append(torch.bincount(code, minlength=64).double())
    table = torch.stack(tables)
    table = table[:, table.sum(0) >= 10]
    return stats.chi2_contingency(table.numpy(), correction=False).pvalue


def _moved(name, program, seed=0, count=60_000, moves=2):
    kernel = TemperedSMC.kernels[name]()
    density, particles, generator = _exact(program, count, seed, kernel.positions)
    kernel.prepare(density)
    step = 0.5 if (name, program) == ("hmc", _bounded) else STEPS[name]
    tuning = Tuning(step, kernel.shape(particles))
    particles = kernel.begin(density, particles, BETA)
    for _ in range(moves):
        particles, accepted = kernels.move(
            kernel, kernels.Place(density, particles, BETA, tuning, generator)
        )
    return particles, accepted


CASES = [(name, _noises) for name in STEPS] + [
    (name, _bounded) for name in ("rwm", "hmc", "independent")
]


@pytest.mark.parametrize(("name", "program"), CASES)
def test_a_move_leaves_the_target(name, program, monkeypatch):
    _, reference, _ = _exact(program, 60_000, seed=99, positions=False)
    particles, accepted = _moved(name, program)
    # Rare acceptance would leave any law as it is.
    assert 0.1 < float(accepted.double().mean()) < 0.99
    assert _p_value(_cells(particles, program), _cells(reference, program)) > P_VALUE
    monkeypatch.setattr(kernels, "accept", lambda ratio, generator: ~ratio.isnan())
    particles, _ = _moved(name, program)
    assert _p_value(_cells(particles, program), _cells(reference, program)) < P_VALUE


@pytest.mark.parametrize("mutation", ["no jacobian", "no weight", "no gradient term"])
def test_a_wrong_ratio_is_noticed(mutation, monkeypatch):
    name, program = "rwm", _bounded
    if mutation == "no jacobian":
        monkeypatch.setattr(
            torch.distributions.transforms.ExpTransform,
            "log_abs_det_jacobian",
            lambda self, x, y: torch.zeros_like(x),
        )
    elif mutation == "no weight":
        monkeypatch.setattr(
            kernels, "log_weight_ratio", lambda new, old, beta: torch.zeros(len(old))
        )
    else:
        name, program = "pcnl", _noises
        monkeypatch.setattr(
            gaussian_kernels,
            "pcnl_log_ratio",
            lambda new, old, new_weight, old_weight, *rest: new_weight - old_weight,
        )
    _, reference, _ = _exact(program, 60_000, seed=99, positions=False)
    particles, _ = _moved(name, program)
    assert _p_value(_cells(particles, program), _cells(reference, program)) < P_VALUE


def test_pcnl_ratio_is_that_of_the_proposal_densities():
    generator = torch.Generator().manual_seed(0)
    new, old, new_gradient, old_gradient = torch.randn(
        4, 50, 3, dtype=torch.float64, generator=generator
    )
    new_weight, old_weight = torch.randn(2, 50, dtype=torch.float64, generator=generator)
    for step in (0.1, 0.5, 2.0, 4.0):
        rho = autocorrelation(step)
        spread = math.sqrt(1.0 - rho * rho)

        def log_q(to, origin, gradient, rho=rho, spread=spread, step=step):
            mean = rho * origin + spread * 0.5 * math.sqrt(step) * gradient
            return torch.distributions.Normal(mean, spread).log_prob(to).sum(-1)

        def log_target(value, weight):
            return weight - 0.5 * value.square().sum(-1)

        expected = log_target(new, new_weight) + log_q(old, new, new_gradient)
        expected -= log_target(old, old_weight) + log_q(new, old, old_gradient)
        ratio = pcnl_log_ratio(new, old, new_weight, old_weight, new_gradient, old_gradient, step)
        torch.testing.assert_close(ratio, expected)


def test_whitening_maps_the_program_to_standard_normals():
    tril = torch.tensor([[1.0, 0.0], [0.4, 0.8]])

    def program():
        with pyro.plate("rows", 3):
            pyro.sample("m", dist.MultivariateNormal(torch.tensor([1.0, -2.0]), scale_tril=tril))
        pyro.sample("n", dist.Normal(torch.tensor([0.0, 5.0]), torch.tensor(2.0)).to_event(1))

    density = ProgramDensity(program)
    white = whiten(density, "pcn")
    pyro.set_rng_seed(0)
    particles = density.start(2000, positions=True)
    reference = white.to_reference(particles.position)
    torch.testing.assert_close(white.to_program(reference), particles.position)
    log_unit = torch.distributions.Normal(0.0, 1.0).log_prob(reference).double().sum(-1)
    constant = particles.log_prior - log_unit
    torch.testing.assert_close(constant, constant[:1].expand(2000), rtol=0, atol=1e-4)
    jacobian = 3 * math.log(0.8) + 2 * math.log(2.0)
    assert float(constant[0]) == pytest.approx(-jacobian, abs=1e-4)
    gradient = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    steps = torch.eye(8)
    rows = white.to_program(steps) - white.to_program(torch.zeros(1, 8))
    torch.testing.assert_close(white.pull_back(gradient), gradient @ rows.T)


@pytest.mark.parametrize("kernel", ["pcn", "pcnl"])
def test_noise_kernels_name_the_site_they_cannot_whiten(kernel):
    def chain():
        z = pyro.sample("z", dist.Normal(torch.tensor(0.0), torch.tensor(1.0)))
        return pyro.sample("x", dist.Normal(z, torch.tensor(1.0)))

    def positive():
        return pyro.sample("scale", dist.Gamma(torch.tensor(2.0), torch.tensor(1.0)))

    with pytest.raises(ValueError, match="site 'x' depends on other sites"):
        TemperedSMC(chain, reward=lambda x: x, kernel=kernel, num_particles=1).run()
    with pytest.raises(ValueError, match="site 'scale' is Gamma"):
        TemperedSMC(positive, reward=lambda x: -x, kernel=kernel, num_particles=10).run()


@pytest.mark.parametrize("kernel", ["rwm", "hmc", "pcn"])
def test_discrete_sites_are_named(kernel):
    def program():
        z = pyro.sample("z", dist.Normal(torch.tensor(0.0), torch.tensor(1.0)))
        k = pyro.sample("k", dist.Categorical(torch.tensor([0.2, 0.8])))
        return z + k

    with pytest.raises(ValueError, match="site 'k' is discrete.*independent"):
        TemperedSMC(program, reward=lambda x: x, kernel=kernel, num_particles=10).run()
    result = TemperedSMC(
        program, reward=lambda x: 2.0 * x, kernel="independent", num_particles=4000, seed=0
    ).run()
    exact = 0.8 * math.exp(2.0) / (0.2 + 0.8 * math.exp(2.0))
    # Five standard errors of 4,000 draws.
    assert float(result.expectation("k")) == pytest.approx(exact, abs=0.02)


def test_gradient_kernels_say_that_a_reward_has_no_gradient():
    reward = _detached_reward
    for kernel in ("hmc", "pcnl"):
        with pytest.raises(ValueError, match="no gradient"):
            TemperedSMC(_noises, reward=reward, kernel=kernel, num_particles=10).run()


def _detached_reward(value):
    return value.detach()[..., 0]


def test_ratios_without_a_number_are_refused():
    generator = torch.Generator().manual_seed(0)
    ratios = torch.tensor([math.nan, -math.inf, math.inf, 0.0]).repeat(1000)
    accepted = kernels.accept(ratios, generator).reshape(1000, 4)
    assert accepted.double().mean(0).tolist() == [0.0, 0.0, 1.0, 1.0]
    half = kernels.accept(torch.full((20_000,), 0.5).log(), generator)
    assert abs(float(half.double().mean()) - 0.5) < 4.5 * 0.5 / math.sqrt(20_000)


def test_moves_stop_when_the_start_is_forgotten():
    density, particles, generator = _exact(_noises, 20_000, 0)
    kernel = TemperedSMC.kernels["rwm"]()
    moved = Mover(kernel, density, generator, None, 50, 1.0).at(particles, BETA, None)
    assert 2 < moved.stage.moves < 50 and moved.correlation < 0.1
    held = Mover(kernel, density, generator, 3, 50, 1.0).at(particles, BETA, None)
    assert held.stage.moves == 3 and held.correlation > 0.1
    capped = Mover(kernel, density, generator, None, 2, 1.0).at(particles, BETA, None)
    assert capped.stage.moves == 2
    assert correlation(particles.position, -particles.position) == pytest.approx(-1.0)


def test_the_step_size_reaches_its_acceptance():
    density, particles, generator = _exact(_noises, 20_000, 0)
    for name, first in (("pcnl", 1e-3), ("hmc", 1e-2), ("pcn", 1e-3)):
        kernel = TemperedSMC.kernels[name]()
        kernel.prepare(density)
        mover = Mover(kernel, density, generator, 25, 50, first)
        mover.at(particles, BETA, None)
        settled = mover.at(particles, BETA, None)
        assert settled.acceptance_rate == pytest.approx(kernel.target_acceptance, abs=0.12)


def test_a_population_without_spread_still_moves():
    assert torch.equal(kernels.population_shape(torch.zeros(10, 2)), torch.eye(2))
    few = kernels.population_shape(torch.randn(4, 3, generator=torch.Generator().manual_seed(0)))
    assert few.shape == (3,)
    rows = torch.randn(5000, 2, generator=torch.Generator().manual_seed(0)).double()
    mixed = rows @ torch.tensor([[1.0, 0.9], [0.0, 0.3]]).double()
    factor = kernels.population_shape(mixed)
    torch.testing.assert_close(factor @ factor.T, torch.cov(mixed.T), rtol=1e-2, atol=1e-3)
