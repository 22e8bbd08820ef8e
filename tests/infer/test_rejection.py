# SPDX-License-Identifier: Apache-2.0
import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_tilt import rewards
from pyro_tilt.infer import AcceptanceTooLow, Rejection
from pyro_tilt.testing.exact_programs import conjugate_gaussian, two_categoricals
from pyro_tilt.testing.sampler_case import SamplerTestCase


class TestRejection(SamplerTestCase):
    sampler = Rejection


def _normal():
    return pyro.sample("x", dist.Normal(torch.tensor(0.0), torch.tensor(1.0)))


def test_certificate_is_exact_and_the_bound_is_reported():
    case = conjugate_gaussian()
    result = Rejection(case.aligned(), num_samples=200, seed=0).run()
    assert result.certificate.law == "exact"
    assert result.kind == "iid"
    # The sup of the reward is 0, up to the rounding of the quadratic's own maximum.
    assert result.info["log_bound"] == pytest.approx(0.0, abs=1e-5)
    assert torch.equal(result.log_weights, result.log_normalizer.expand(200))


def test_proposals_are_geometric_with_the_exact_acceptance():
    case = conjugate_gaussian()
    result = Rejection(case.aligned(), num_samples=20_000, seed=0).run()
    rate = math.exp(case.log_normalizer)
    proposals = result.stats["proposals"].double()
    spread = math.sqrt(1 - rate) / rate / math.sqrt(20_000)
    assert abs(float(proposals.mean()) - 1 / rate) < 4.5 * spread
    ones = float((proposals == 1).double().mean())
    assert abs(ones - rate) < 4.5 * math.sqrt(rate * (1 - rate) / 20_000)
    assert result.info["total_proposals"] == float(proposals.sum())


def test_unknown_bound_is_refused_before_any_work():
    with pytest.raises(ValueError, match="log_bound"):
        Rejection(_normal, reward=lambda x: x, num_samples=10).run()


def test_continuous_observation_needs_a_bound_and_is_named():
    def program():
        x = _normal()
        pyro.sample("height", dist.Normal(x, torch.tensor(1.0)), obs=torch.tensor(0.4))
        return x

    reward = rewards.Bounded(torch.sigmoid, low=0.0, high=1.0)
    with pytest.raises(ValueError, match="height"):
        Rejection(program, reward=reward, num_samples=10).run()
    bound = 1.0 - 0.5 * math.log(2 * math.pi)
    result = Rejection(program, reward=reward, num_samples=4000, log_bound=bound, seed=0).run()
    grid = torch.linspace(-9, 9, 20001, dtype=torch.float64)
    density = -0.5 * grid**2 - 0.5 * (grid - 0.4) ** 2 + torch.sigmoid(grid)
    mean = float((grid * density.softmax(0)).sum())
    spread = float(((grid - mean).square() * density.softmax(0)).sum().sqrt())
    assert abs(float(result.samples["x"].double().mean()) - mean) < 4.5 * spread / 4000**0.5


def test_wrong_bound_is_caught_while_running():
    with pytest.raises(ValueError, match="above the bound"):
        Rejection(_normal, reward=lambda x: x, log_bound=0.5, num_samples=1000, seed=0).run()


def test_too_low_acceptance_stops_with_what_it_has():
    reward = rewards.Bounded(lambda x: -(x.square()), low=-math.inf, high=40.0)
    with pytest.raises(AcceptanceTooLow, match="min_acceptance"):
        Rejection(
            _normal, reward=reward, num_samples=10, min_acceptance=1e-5, max_batch=50_000, seed=0
        ).run()
    case = two_categoricals()
    with pytest.raises(AcceptanceTooLow, match="partial") as caught:
        Rejection(case.aligned(), num_samples=500, max_draws=400, seed=0).run()
    partial = caught.value.partial
    assert 0 < len(partial) < 400
    assert partial.certificate.law == "exact"
    assert partial.cost.base_draws == 400


@pytest.mark.parametrize("rate", [0.1, 0.01])
def test_wasted_proposals_are_few(rate):
    reward = rewards.Bounded(lambda x: torch.full_like(x, math.log(rate)), low=-50.0, high=0.0)
    result = Rejection(_normal, reward=reward, num_samples=100_000, seed=0).run()
    assert result.info["wasted"] <= 0.02 * result.cost.base_draws
