# SPDX-License-Identifier: Apache-2.0
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_tilt import Tilted, rewards
from pyro_tilt.infer import Rejection
from pyro_tilt.infer.proposal import ProgramProposal
from pyro_tilt.poutine import align, reward_factor


def bounded(low=-1.0, high=2.0):
    return rewards.Bounded(lambda x: x.sin().clamp(low, high), low, high)


def latent():
    return pyro.sample("x", dist.Normal(0.0, 1.0))


@pytest.mark.parametrize("beta, bound", [(3.0, 6.0), (-3.0, 3.0), (0.0, 0.0)])
def test_bound_of_a_tilt(beta, bound):
    proposal = ProgramProposal(align(latent, bounded(), beta))
    assert proposal.log_bound == bound and proposal.unbounded == []
    assert proposal.draw(1000).log_weights.max() <= bound


def test_bounds_of_several_tilts_add():
    def program():
        x = latent()
        with pyro.plate("rows", 3), poutine.scale(scale=2.0):
            reward_factor("rows_tilt", -x.abs(), 5.0, upper_bound=0.25)
        return x

    assert ProgramProposal(align(program, bounded(), 3.0)).log_bound == 6.0 + 5 * 0.25 * 3 * 2


def test_unknown_bounds_are_named():
    def program():
        x = latent()
        pyro.sample("y", dist.Normal(x, 1.0), obs=torch.tensor(0.0))
        pyro.factor("extra", -x)
        return x

    proposal = ProgramProposal(align(align(program, bounded()), lambda x: x, name="free"))
    assert proposal.log_bound == math.inf
    assert proposal.unbounded == ["y", "extra", "free"]


def test_discrete_observations_and_masked_sites_add_nothing():
    def program():
        x = latent()
        with pyro.plate("rows", 4), poutine.scale(scale=3.0):
            pyro.sample("count", dist.Poisson(x.exp()), obs=torch.ones(4))
        pyro.sample("class", dist.Categorical(logits=torch.zeros(3)), obs=torch.tensor(1))
        pyro.sample("bits", dist.Bernoulli(torch.full((5,), 0.5)).to_event(1), obs=torch.ones(5))
        with poutine.mask(mask=False):
            pyro.sample("skipped", dist.Normal(x, 1e-6), obs=x.detach())
        return x

    proposal = ProgramProposal(align(program, bounded(), 2.0))
    assert proposal.log_bound == 4.0 and proposal.unbounded == []
    assert proposal.draw(500).log_weights.max() <= 4.0


def test_a_mask_may_take_a_negative_bound_away():
    def program():
        x = latent()
        with poutine.mask(mask=torch.tensor(False)):
            reward_factor("r", -1.0 - x.abs(), upper_bound=-1.0)

    proposal = ProgramProposal(program)
    assert proposal.log_bound == 0.0
    assert proposal.draw(10).log_weights.max() == 0.0


def test_a_scale_that_may_vary_bounds_nothing():
    def program(high):
        x = latent()
        with poutine.scale(scale=x.exp()):
            reward_factor("r", high - x.abs(), upper_bound=high)

    assert ProgramProposal(program, (0.0,)).log_bound == 0.0
    assert ProgramProposal(program, (1.0,)).log_bound == math.inf


def test_sites_drawn_by_quadrature_are_named_in_the_certificate():
    def kinked(x):
        return -(x - 1.0).abs()

    def program():
        law = Tilted(dist.Gamma(torch.tensor(3.0), torch.tensor(1.5)), kinked)
        z = pyro.sample("z", law)
        exact = Tilted(dist.Normal(z, torch.tensor(1.0)), rewards.Linear(torch.tensor(0.5)))
        return pyro.sample("x", exact)

    reward = rewards.Bounded(torch.sigmoid, low=0.0, high=1.0)
    result = Rejection(program, reward=reward, num_samples=10, seed=0).run()
    assert "'z'" in result.certificate.excludes
    assert "'x'" not in result.certificate.excludes
