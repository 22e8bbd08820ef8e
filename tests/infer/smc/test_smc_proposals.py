# SPDX-License-Identifier: Apache-2.0
"""Steering the particles: proposals, gradients, guides."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormalMessenger

from pyro_tilt import scan
from pyro_tilt.infer import SMC
from pyro_tilt.testing.hidden_markov import two_state_hmm

STEPS = 4
LOG_Z = -0.5 * math.log(5.0) - 0.5 * 9.0 / 5.0


def walk():
    def step(x, t):
        return pyro.sample(f"x_{t}", dist.Normal(x, torch.tensor(1.0)))

    return scan("walk", step, torch.tensor(0.0, dtype=torch.float64), range(1, STEPS + 1))


def reward(x):
    return -0.5 * (x - 3.0).square()


def soft_value(x, t):
    left = torch.tensor(1.0 + STEPS - t, dtype=torch.float64)
    return -0.5 * (3.0 - x).square() / left - 0.5 * left.log()


def optimal(name, fn, carry, t):
    if carry is None:
        return None
    left = 1.0 + STEPS - t
    mean = fn.mean + (3.0 - fn.mean) / (1.0 + left)
    return dist.Normal(mean, math.sqrt(left / (1.0 + left)))


def ratios(runs=60, size=30, program=walk, **options):
    sampler = SMC(
        program, reward=reward, num_particles=size, check_lineage=False, progress=False, **options
    )
    return torch.stack([sampler.run().log_normalizer for _ in range(runs)]).sub(LOG_Z).exp()


def unbiased(values):
    return abs(float(values.mean()) - 1.0) < 4.8 * float(values.std()) / math.sqrt(len(values))


def test_optimal_proposals_and_twists_leave_no_variance():
    result = SMC(
        walk, reward=reward, num_particles=20, seed=0, twist=soft_value, proposal=optimal
    ).run()
    expected = torch.full_like(result.log_weights, LOG_Z)
    torch.testing.assert_close(result.log_weights, expected, rtol=0.0, atol=1e-10)


def test_a_poor_proposal_is_corrected():
    def poor(name, fn, carry, t):
        return dist.Normal(fn.mean + 0.7, 1.5)

    assert unbiased(ratios(300, proposal=poor))
    assert unbiased(ratios(300, proposal=poor, twist=soft_value, ess_threshold=1.0))


def test_gradients_of_the_twist_steer_and_are_corrected():
    assert unbiased(ratios(200, twist=soft_value, proposal="gradient"))
    wrong = ratios(300, twist=lambda x, t: torch.sin(3.0 * x), proposal="gradient")
    assert unbiased(wrong)


def test_gradients_of_a_linear_soft_value_are_the_optimal_kernels():
    result = SMC(
        walk,
        reward=lambda x: 0.7 * x,
        num_particles=20,
        seed=0,
        twist=lambda x, t: 0.7 * x + 0.245 * (STEPS - t),
        proposal="gradient",
    ).run()
    expected = torch.full_like(result.log_weights, 0.245 * STEPS)
    torch.testing.assert_close(result.log_weights, expected, rtol=0.0, atol=1e-10)


@pytest.mark.parametrize("full", [False, True])
def test_gradients_in_several_dimensions(full):
    scale = torch.tensor([[1.0, 0.0], [0.6, 0.5]], dtype=torch.float64)
    goal = torch.tensor([1.0, -0.5], dtype=torch.float64)

    def program():
        def step(x, t):
            if full:
                law = dist.MultivariateNormal(x, scale_tril=scale)
            else:
                law = dist.Normal(x, scale.diagonal()).to_event(1)
            return pyro.sample(f"x_{t}", law)

        return scan("walk", step, torch.zeros(2, dtype=torch.float64), range(2))

    noise = scale @ scale.T if full else torch.diag(scale.diagonal().square())
    law = dist.MultivariateNormal(
        torch.zeros(2, dtype=torch.float64), 2.0 * noise + torch.eye(2, dtype=torch.float64)
    )
    exact = float(law.log_prob(goal)) + math.log(2 * math.pi)
    sampler = SMC(
        program,
        reward=lambda x: -0.5 * (x - goal).square().sum(-1),
        num_particles=30,
        twist=lambda x, t: -0.4 * (x - goal).square().sum(-1),
        proposal="gradient",
        check_lineage=False,
    )
    values = torch.stack([sampler.run().log_normalizer for _ in range(200)]).sub(exact).exp()
    assert unbiased(values)


def test_gradients_ask_for_gaussian_kernels_and_smooth_twists():
    def laplace():
        def step(x, t):
            return pyro.sample(f"x_{t}", dist.Laplace(x, 1.0))

        return scan("walk", step, torch.tensor(0.0), range(2))

    options = {"num_particles": 5, "proposal": "gradient", "check_lineage": False}
    with pytest.raises(ValueError, match="site 'x_0'.*Gaussian.*Laplace"):
        SMC(laplace, twist=soft_value, **options).run()
    with pytest.raises(ValueError, match="site 'x_1'.*no gradient"):
        SMC(walk, twist=lambda x, t: torch.zeros_like(x).detach(), **options).run()


@pytest.mark.parametrize(
    "law", [dist.Normal(torch.zeros(3), 1.0), dist.Normal(torch.zeros(5, 2), 1.0).to_event(1), 3.0]
)
def test_a_proposal_that_does_not_fit_is_named(law):
    with pytest.raises(ValueError, match="site 'x_1'.*proposal"):
        SMC(walk, num_particles=5, proposal=lambda *a: law, check_lineage=False).run()


def test_guides_of_pyro_are_asked_site_by_site():
    guide = AutoNormalMessenger(walk)
    guide.get_posterior("x_1", dist.Normal(torch.zeros(()), 1.0))
    asked = []

    class Guide:
        def get_posterior(self, name, prior):
            asked.append(name)
            return dist.Normal(prior.mean + 0.5, 1.2)

    assert unbiased(ratios(200, guide=Guide()))
    assert asked[:4] == [f"x_{t}" for t in range(1, 5)]


def test_a_guide_proposes_what_comes_before_the_steps_too():
    case = two_state_hmm(length=4)
    sampler = SMC(
        case.aligned(),
        num_particles=6,
        guide=case.guide,
        twist=case.twist("wrong"),
        check_lineage=False,
    )
    values = torch.stack([sampler.run().log_normalizer for _ in range(400)])
    assert unbiased(values.sub(case.log_normalizer).exp())


def test_a_guide_that_proposes_what_is_not_there():
    def guide():
        def step(x, t):
            return pyro.sample(f"z_{t}", dist.Normal(x, 1.0))

        return scan("walk", step, torch.tensor(0.0), range(1, 5))

    with pytest.raises(ValueError, match="guide.*z_1"):
        SMC(walk, num_particles=5, guide=guide).run()

    def other_name():
        return scan("other", lambda x, t: x, torch.tensor(0.0), range(1, 5))

    with pytest.raises(ValueError, match="guide.*'other'.*'walk'"):
        SMC(walk, num_particles=5, guide=other_name).run()
