# SPDX-License-Identifier: Apache-2.0
import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_tilt import rewards
from pyro_tilt.infer import ImportanceSampler, SamplerWarning, ZeroWeights
from pyro_tilt.ops.psis import khat_threshold, pareto_smooth
from pyro_tilt.testing.exact_programs import conjugate_gaussian, two_categoricals
from pyro_tilt.testing.loop_case import LoopedSamplerTestCase
from pyro_tilt.testing.sampler_case import SamplerTestCase


class TestImportanceSampler(SamplerTestCase):
    sampler = ImportanceSampler


class TestImportanceSamplerInALoop(LoopedSamplerTestCase):
    sampler = ImportanceSampler


def test_data_dependent_control_flow_needs_the_loop():
    def program():
        z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.3)))
        loc = torch.tensor(2.0) if z.item() else torch.tensor(-1.0)
        return pyro.sample("x", dist.Normal(loc, torch.tensor(0.5)))

    reward = rewards.Linear(torch.tensor(1.0))
    exact = math.log(0.3 * math.exp(2.0 + 0.125) + 0.7 * math.exp(-1.0 + 0.125))
    result = ImportanceSampler(
        program, reward=reward, num_samples=3000, seed=0, vectorized=False
    ).run()
    # Five standard errors: a false alarm in 1.7 million.
    assert abs(float(result.log_normalizer) - exact) < 5 * float(result.log_normalizer_error)


def test_weights_are_the_tilt_and_smoothing_is_beside_them():
    case = conjugate_gaussian()
    result = ImportanceSampler(case.aligned(), num_samples=2000, seed=0).run()
    torch.testing.assert_close(
        result.log_weights, case.beta * result.stats["reward"].double(), rtol=1e-6, atol=1e-6
    )
    smoothed, k = pareto_smooth(result.log_weights)
    torch.testing.assert_close(result.psis_log_weights, smoothed)
    assert result.pareto_k == pytest.approx(float(k))


def test_heavy_weights_are_never_silent():
    def program():
        return pyro.sample("x", dist.Normal(torch.tensor(0.0), torch.tensor(1.0)))

    sampler = ImportanceSampler(
        program, reward=rewards.Linear(torch.tensor(1.0)), beta=6.0, num_samples=500, seed=0
    )
    with pytest.warns(SamplerWarning, match="pareto_k") as caught:
        result = sampler.run()
    assert [warning.filename for warning in caught] == [__file__]
    assert result.pareto_k > khat_threshold(500)
    assert "too heavy" in result.certificate.excludes


def test_zero_weights_carry_the_draws():
    case = two_categoricals()
    nothing = rewards.Constraint(lambda value: value[0] > 5)
    with pytest.raises(ZeroWeights) as caught:
        ImportanceSampler(case.program, reward=nothing, num_samples=40, seed=0).run()
    assert len(caught.value.partial) == 40


def test_guide_proposes_and_the_weights_correct_it():
    case = conjugate_gaussian()
    marginal_z = dist.Normal(case.mean[0].float(), case.covariance[0, 0].sqrt().float())
    slope = (case.covariance[0, 1] / case.covariance[0, 0]).float()
    spread = (case.covariance[1, 1] - case.covariance[0, 1] ** 2 / case.covariance[0, 0]).sqrt()

    def guide():
        z = pyro.sample("z", marginal_z)
        loc = case.mean[1].float() + slope * (z - case.mean[0].float())
        pyro.sample("x", dist.Normal(loc, spread.float()))

    result = ImportanceSampler(case.aligned(), guide=guide, num_samples=500, seed=0).run()
    # Draws of a guide show nothing of the base.
    assert result.base is None
    # The guide is the aligned law itself, so every weight equals Z.
    torch.testing.assert_close(
        result.log_weights,
        torch.full_like(result.log_weights, case.log_normalizer),
        rtol=0,
        atol=2e-5,
    )


def test_few_level_rewards_are_judged_by_their_sample_size():
    def program():
        return pyro.sample("x", dist.Uniform(torch.tensor(0.0), torch.tensor(1.0)))

    # Ties fill the tail, so that no Pareto law fits; the weights are fine all the same.
    common = rewards.Bounded(lambda x: (x > 0.3).to(x), low=0.0, high=1.0)
    result = ImportanceSampler(program, reward=common, num_samples=200, seed=0).run()
    assert not math.isfinite(result.pareto_k)
    rare = rewards.Bounded(lambda x: (x > 0.99).to(x), low=0.0, high=1.0)
    with pytest.warns(SamplerWarning, match="effective sample size"):
        ImportanceSampler(program, reward=rare, beta=20.0, num_samples=200, seed=0).run()


def test_one_draw_that_carries_all_of_few_is_not_silent():
    def program():
        return pyro.sample("x", dist.Normal(torch.tensor(0.0), torch.tensor(1.0)))

    with pytest.warns(SamplerWarning, match="effective sample size 1.0"):
        ImportanceSampler(program, reward=lambda x: 1e6 * x, num_samples=10, seed=0).run()


def test_a_shared_minibatch_is_declared():
    data = torch.linspace(-1.0, 2.0, 20)

    def program():
        x = pyro.sample("x", dist.Normal(torch.tensor(0.0), torch.tensor(1.0)))
        with pyro.plate("rows", 20, subsample_size=5) as rows:
            pyro.sample("y", dist.Normal(x, torch.tensor(5.0)), obs=data[rows])
        return x

    options = {"reward": rewards.Linear(torch.tensor(0.2)), "num_samples": 200, "seed": 0}
    shared = ImportanceSampler(program, **options).run()
    assert "minibatch of 'rows', shared by a whole block" in shared.certificate.excludes
    assert shared.log_normalizer_error.isnan()
    own = ImportanceSampler(program, vectorized=False, **options).run()
    assert "shared" not in own.certificate.excludes
    # The mean of exp(scaled minibatch) is not exp(all data): neither run aims at the posterior.
    for result in (shared, own):
        assert "not by all of the data" in result.certificate.excludes
    assert own.log_normalizer_error > 0


@pytest.mark.parametrize("vectorized", [True, False])
@pytest.mark.parametrize("num", [1, 2])
def test_factors_count_for_few_draws_and_where_they_are_constant(num, vectorized):
    def program():
        x = pyro.sample("x", dist.Normal(torch.tensor(0.0), torch.tensor(1.0)))
        pyro.factor("constant", torch.tensor(-3.0))
        return x

    result = ImportanceSampler(
        program, reward=lambda x: -x.abs(), num_samples=num, seed=0, vectorized=vectorized
    ).run()
    expected = -3.0 - result.samples["x"].abs()
    torch.testing.assert_close(result.log_weights, expected.double(), rtol=0, atol=1e-6)
    assert (result.base.log_factors == -3.0).all()
