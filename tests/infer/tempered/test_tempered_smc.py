# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

from pyro_tilt import rewards
from pyro_tilt.infer import TemperedSMC, ZeroWeights
from pyro_tilt.testing.exact_programs import conjugate_gaussian, two_categoricals
from pyro_tilt.testing.gates import P_VALUE, Z_SCORE, hotelling
from pyro_tilt.testing.sampler_case import SamplerTestCase


class TestTemperedSMC(SamplerTestCase):
    """Fresh draws move discrete and continuous sites alike, so that every part runs."""

    sampler = TemperedSMC
    options = {"kernel": "independent"}

    # The particles of a run share ancestors, so that their counts are no multinomial sample;
    # test_weights_give_the_target gates the law over runs.
    test_law_over_states = None

    @pytest.mark.parametrize("observed", [False, True])
    def test_evidence_is_unbiased(self, observed):
        case = two_categoricals(beta=4.0, observed=observed)
        pilot = self.make(case.aligned(), num_samples=50, max_moves=6, seed=0)
        pilot = pilot.freeze_schedule()
        assert len(pilot.schedule.stages) >= 2
        _gate_unbiased(case, pilot.schedule, kernel="independent", runs=250, num_samples=3)


class TestTemperedRandomWalk(SamplerTestCase):
    """The default kernel; the parts over discrete programs are those of the class above."""

    sampler = TemperedSMC

    test_law_over_states = None
    test_weights_give_the_target = None
    test_seed_reproduces_and_leaves_global_state = None

    @pytest.mark.parametrize("kernel", ["rwm", "pcn"])
    def test_evidence_is_unbiased(self, kernel):
        case = _two_noises()
        sampler = self.make(
            case["program"], reward=case["reward"], kernel=kernel, moves=4, num_samples=60
        )
        schedule = sampler.freeze_schedule().schedule
        ratios = []
        for seed in range(220):
            frozen = self.make(
                case["program"],
                reward=case["reward"],
                kernel=kernel,
                num_samples=4,
                seed=seed,
                schedule=schedule,
            )
            ratios.append(math.exp(float(frozen.run().log_normalizer) - case["log_z"]))
        _gate_mean_one(ratios)

    def test_beta_zero_is_the_base_bit_for_bit(self):
        case = conjugate_gaussian(beta=0.0)
        for seed in range(5):
            result = self.make(case.aligned(), num_samples=1, seed=seed).run()
            pyro.set_rng_seed(seed)
            trace = pyro.poutine.trace(case.program).get_trace()
            assert all(
                torch.equal(v[0], trace.nodes[k]["value"]) for k, v in result.samples.items()
            )


def _gate_unbiased(case, schedule, *, kernel, runs, num_samples):
    ratios = []
    for seed in range(runs):
        sampler = TemperedSMC(
            case.aligned(), kernel=kernel, num_samples=num_samples, seed=seed, schedule=schedule
        )
        try:
            log_z = float(sampler.run().log_normalizer)
        except ZeroWeights as error:
            log_z = float(error.partial.log_normalizer)
        ratios.append(math.exp(log_z - case.log_normalizer))
    _gate_mean_one(ratios)


def _gate_mean_one(ratios):
    score = (np.mean(ratios) - 1.0) / (np.std(ratios, ddof=1) / math.sqrt(len(ratios)))
    assert abs(score) < Z_SCORE


def _two_noises():
    """Two Gaussian sites with an asymmetric linear reward of moderate strength."""

    def program():
        a = pyro.sample("a", dist.Normal(torch.tensor(0.5), torch.tensor(2.0)))
        tril = torch.tensor([[1.0, 0.0], [0.4, 0.8]])
        b = pyro.sample("b", dist.MultivariateNormal(torch.tensor([0.0, 1.0]), scale_tril=tril))
        return torch.cat([a.unsqueeze(-1), b], -1)

    theta = torch.tensor([0.5, -0.7, 0.9])
    mean, covariance = torch.tensor([0.5, 0.0, 1.0]), torch.zeros(3, 3)
    covariance[0, 0] = 4.0
    covariance[1:, 1:] = torch.tensor([[1.0, 0.4], [0.4, 0.8]])
    return {
        "program": program,
        "reward": rewards.Linear(theta),
        "mean": (mean + covariance @ theta).double(),
        "covariance": covariance.double(),
        "log_z": float(theta @ mean + 0.5 * theta @ covariance @ theta),
    }


@pytest.mark.parametrize("kernel", ["rwm", "pcn", "pcnl", "hmc"])
def test_gaussian_tilt_by_every_kernel(kernel):
    case = _two_noises()
    rows = []
    for seed in range(40):
        result = TemperedSMC(
            case["program"],
            reward=case["reward"],
            kernel=kernel,
            num_particles=400,
            num_leapfrog=4,
            seed=seed,
        ).run()
        x = torch.cat([result.samples["a"].unsqueeze(-1), result.samples["b"]], -1).double()
        centred = x - case["mean"]
        moments = torch.stack([centred[:, 0].square(), centred[:, 1] * centred[:, 2]], -1)
        evidence = (result.log_normalizer - case["log_z"]).exp().reshape(1)
        rows.append(torch.cat([x.mean(0), moments.mean(0), evidence]))
    covariance = case["covariance"]
    exact = torch.cat([case["mean"], covariance[0, :1], covariance[1, 2:], torch.ones(1)])
    exact[3:5] = torch.stack([covariance[0, 0], covariance[1, 2]])
    hotelling(torch.stack(rows), exact)


def test_waste_free_keeps_all_states():
    case = _two_noises()
    rows = []
    for seed in range(40):
        result = TemperedSMC(
            case["program"], reward=case["reward"], num_particles=400, waste_free=20, seed=seed
        ).run()
        assert len(result) == 400 and result.log_normalizer_error.isnan()
        assert (result.steps["moves"] == 19).all()
        assert (result.steps["unique_ancestors"] <= 20).all()
        x = torch.cat([result.samples["a"].unsqueeze(-1), result.samples["b"]], -1).double()
        evidence = (result.log_normalizer - case["log_z"]).exp().reshape(1)
        rows.append(torch.cat([x.mean(0), evidence]))
    # States of a chain are correlated, so that the bias of the mean, of order 1/N, is gated too.
    hotelling(torch.stack(rows), torch.cat([case["mean"], torch.ones(1)]))


def test_bounded_supports_that_depend_on_their_parents():
    """Beta, Gamma and a Uniform up to the Gamma; the exact law by quadrature."""

    def program():
        p = pyro.sample("p", dist.Beta(torch.tensor(2.0), torch.tensor(1.5)))
        g = pyro.sample("g", dist.Gamma(torch.tensor(3.0), 1.0 + p))
        u = pyro.sample("u", dist.Uniform(torch.zeros_like(g), g))
        return torch.stack([p, g, u], -1)

    def reward(value):
        return 2.0 * value[..., 0] - 1.5 * value[..., 1] + 2.0 * value[..., 2]

    rows = []
    for seed in range(40):
        result = TemperedSMC(program, reward=reward, num_particles=500, seed=seed).run()
        p, g, u = (result.samples[name].double() for name in "pgu")
        assert ((u > 0) & (u < g)).all()
        log_z = result.log_normalizer.exp()
        rows.append(torch.stack([p.mean(), g.log().mean(), (u / g).mean(), log_z]))
    hotelling(torch.stack(rows), _bounded_exact())


def _bounded_exact():
    p = (torch.arange(200).double() + 0.5) / 200
    g = (torch.arange(1500).double() + 0.5) / 1500 * 40.0
    s = (torch.arange(200).double() + 0.5) / 200
    log_p = torch.distributions.Beta(2.0, 1.5).log_prob(p)
    log_g = torch.distributions.Gamma(3.0, 1.0 + p.unsqueeze(-1)).log_prob(g)
    joint = (log_p + 2.0 * p).reshape(-1, 1, 1) + (log_g - 1.5 * g).unsqueeze(-1)
    joint = joint + 2.0 * g.unsqueeze(-1) * s
    log_z = joint.logsumexp((0, 1, 2)) + math.log(40.0 / 1500 / 200 / 200)
    law = joint.flatten().softmax(0).reshape(joint.shape)
    means = [(law.sum((1, 2)) @ p), (law.sum((0, 2)) @ g.log()), (law.sum((0, 1)) @ s)]
    return torch.stack([*means, log_z.exp()])


def test_simplex_sites_have_fewer_coordinates():
    counts = torch.tensor([3.0, 0.0, 5.0])

    def program():
        p = pyro.sample("p", dist.Dirichlet(torch.tensor([1.0, 2.0, 0.5])))
        return pyro.sample("y", dist.Multinomial(8, p), obs=counts)

    rows = []
    for seed in range(50):
        result = TemperedSMC(program, num_particles=400, seed=seed).run()
        rows.append(torch.cat([result.samples["p"][:, :2].double().mean(0)]))
    posterior = (torch.tensor([1.0, 2.0, 0.5]) + counts).double()
    hotelling(torch.stack(rows), (posterior / posterior.sum())[:2])


_ANGLES = torch.arange(8) * (math.pi / 4)
_CENTRES = 4.0 * torch.stack([_ANGLES.cos(), _ANGLES.sin()], -1)


def _noise():
    return pyro.sample("x", dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1))


def _ring(x):
    squared = (x.unsqueeze(-2) - _CENTRES).square().sum(-1) / 0.16
    log_modes = torch.logsumexp(-0.5 * squared, -1) - math.log(8 * 2 * math.pi * 0.16)
    return log_modes + 2.5 + 0.5 * x.square().sum(-1) + math.log(2 * math.pi)


def test_eight_modes_get_their_masses_and_evidence():
    log_zs, counts = [], []
    for seed in range(8):
        result = TemperedSMC(_noise, reward=_ring, num_particles=4000, moves=10, seed=seed).run()
        log_zs.append(float(result.log_normalizer))
        mode = torch.cdist(result.samples["x"], _CENTRES).argmin(-1)
        counts.append(torch.bincount(mode, minlength=8).double() / 4000)
        ess = result.steps["ess"]
        # The last temperature is clipped at one, above the threshold.
        torch.testing.assert_close(ess[:-1], torch.full_like(ess[:-1], 2000.0), rtol=1e-5, atol=0)
        assert result.steps["beta"][-1] == 1.0 and ess[-1] > 2000.0
    # The stated error, about .035 a run, takes moves for perfect; twice it holds for ten sweeps.
    error = 2 * float(result.log_normalizer_error) / math.sqrt(8)
    assert abs(np.mean(log_zs) - 2.5) < Z_SCORE * error
    masses = torch.stack(counts)
    spread = masses.std(0).mean() / math.sqrt(8)
    statistic = float(((masses.mean(0) - 0.125) / spread).square().sum())
    # Masses sum to one, so seven degrees of freedom; the pooled spread has 56 itself.
    assert stats.f.sf(statistic / 7, 7, 56) > P_VALUE
    assert (masses.mean(0) > 0.1).all()


def test_last_increment_is_clipped_at_temperature_one():
    """An evidence that adds the increment of an unclipped temperature is off by about a unit."""
    case = _two_noises()
    result = TemperedSMC(case["program"], reward=case["reward"], num_particles=20_000, seed=3).run()
    assert result.steps["beta"][-1].item() == 1.0
    assert abs(float(result.log_normalizer) - case["log_z"]) < Z_SCORE * float(
        result.log_normalizer_error
    )


def test_one_run_states_what_it_did():
    case = _two_noises()
    sampler = TemperedSMC(case["program"], reward=case["reward"], num_particles=300, seed=0)
    result = sampler.run()
    steps = result.steps
    assert result.kind == "weighted" and result.certificate.law == "consistent"
    assert result.certificate.budget == "num_particles"
    assert "freeze_schedule" in result.certificate.excludes
    assert len({len(values) for values in steps.values()}) == 1
    assert steps["resampled"].all() and steps["resampled"].dtype == torch.bool
    assert torch.equal(steps["beta"], steps["beta"].sort().values)
    assert float(steps["log_normalizer"][-1]) == pytest.approx(float(result.log_normalizer))
    assert (result.log_weights == result.log_weights[0]).all()
    torch.testing.assert_close(
        result.log_weights.logsumexp(0) - math.log(300), result.log_normalizer
    )
    assert result.stats["ancestor"].unique().numel() < 300
    frozen = sampler.freeze_schedule()
    assert "unbiased" in frozen.run().certificate.covers
    assert sampler.schedule is None


def test_a_frozen_run_repeats_the_pilot_in_everything_adapted():
    case = _two_noises()
    sampler = TemperedSMC(case["program"], reward=case["reward"], num_particles=200, seed=4)
    frozen = sampler.freeze_schedule()
    first, second = frozen.run(), frozen.run()
    assert torch.equal(first.samples["a"], second.samples["a"])
    assert first.steps["beta"].tolist() == frozen.schedule.betas
    assert first.steps["moves"].tolist() == [stage.moves for stage in frozen.schedule.stages]
    steps = [stage.tuning.step_size for stage in frozen.schedule.stages]
    assert first.steps["step_size"].tolist() == pytest.approx(steps)
    assert first.steps["resampled"].all()
    other = TemperedSMC(
        case["program"], reward=case["reward"], num_particles=200, seed=5, schedule=frozen.schedule
    ).run()
    assert other.steps["step_size"].tolist() == pytest.approx(steps)
    assert not torch.equal(other.samples["a"], first.samples["a"])


def test_given_temperatures_carry_their_weights():
    """Without resampling the product of mean weights is the mean of products: plain annealing."""
    case = _two_noises()
    betas = [0.25, 0.5, 0.75, 1.0]
    result = TemperedSMC(
        case["program"],
        reward=case["reward"],
        num_particles=3000,
        schedule=betas,
        ess_threshold=1e-9,
        seed=1,
    ).run()
    assert result.steps["beta"].tolist() == betas
    assert result.steps["resampled"].tolist() == [False, False, False, True]
    assert float(result.log_normalizer) == pytest.approx(case["log_z"], abs=0.2)
    # Weights that forget the earlier stages have a nearly even last increment.
    assert float(result.steps["ess"][2]) < float(result.steps["ess"][0])


def test_hard_constraint_is_imposed_at_once():
    reward = rewards.Constraint(lambda x: x[..., 0] > 1.5)
    result = TemperedSMC(_noise, reward=reward, num_particles=4000, seed=0).run()
    assert (result.samples["x"][:, 0] > 1.5).all()
    exact = math.log(stats.norm.sf(1.5))
    assert abs(float(result.log_normalizer) - exact) < Z_SCORE * float(result.log_normalizer_error)
    assert len(result.steps["beta"]) <= 2


def test_deterministic_sites_follow_their_particles():
    def program():
        x = pyro.sample("x", dist.Normal(torch.tensor(0.0), torch.tensor(1.0)))
        return pyro.deterministic("twice", 2.0 * x)

    result = TemperedSMC(program, reward=lambda y: y, num_particles=300, seed=0).run()
    torch.testing.assert_close(result.samples["twice"], 2.0 * result.samples["x"])
    torch.testing.assert_close(result.stats["reward"], result.samples["twice"])


def test_control_flow_runs_draw_by_draw():
    def program():
        z = pyro.sample("z", dist.Normal(torch.tensor(0.0), torch.tensor(1.0)))
        scale = torch.tensor(2.0) if z.item() > 0 else torch.tensor(0.5)
        return pyro.sample("x", dist.Normal(z, scale))

    result = TemperedSMC(
        program, reward=lambda x: 0.5 * x, num_particles=150, vectorized=False, moves=6, seed=0
    ).run()
    sides = [stats.norm.cdf(0.5) * math.exp(0.5), stats.norm.sf(0.5) * math.exp(0.25 / 8)]
    exact = 0.125 + math.log(sum(sides))
    assert abs(float(result.log_normalizer) - exact) < 5 * float(result.log_normalizer_error)


def test_zero_weights_carry_the_draws():
    nothing = rewards.Constraint(lambda x: x[..., 0] > 50)
    with pytest.raises(ZeroWeights, match="temperature 0") as caught:
        TemperedSMC(_noise, reward=nothing, num_particles=40, seed=0).run()
    assert len(caught.value.partial) == 40


def test_nan_during_a_move_raises():
    def reward(x):
        return torch.where(x[..., 0] > 4.0, math.nan, 3.0 * x[..., 0])

    with pytest.raises(ValueError, match="NaN"):
        TemperedSMC(_noise, reward=reward, num_particles=500, seed=0).run()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kernel": "gibbs"}, "kernel must be one of"),
        ({"ess_threshold": 0.0}, "ess_threshold"),
        ({"moves": 0}, "moves"),
        ({"waste_free": 7, "num_particles": 100}, "waste_free=7 must divide"),
        ({"waste_free": True}, "waste_free takes a number"),
        ({"schedule": [0.5, 0.4, 1.0]}, "schedule must increase"),
        ({"schedule": [0.5, 0.9]}, "exactly 1"),
        ({"schedule": "linear"}, "schedule must be"),
    ],
)
def test_bad_options_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        TemperedSMC(_noise, reward=_ring, **options)


def test_subsampled_plates_have_no_fixed_target():
    data = torch.linspace(-1.0, 2.0, 20)

    def program():
        x = pyro.sample("x", dist.Normal(torch.tensor(0.0), torch.tensor(1.0)))
        with pyro.plate("rows", 20, subsample_size=5) as rows:
            pyro.sample("y", dist.Normal(x, torch.tensor(5.0)), obs=data[rows])

    with pytest.raises(ValueError, match="plate 'rows' is subsampled"):
        TemperedSMC(program, num_particles=10).run()
