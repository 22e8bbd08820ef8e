# SPDX-License-Identifier: Apache-2.0
import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_tilt.infer.particle_check import check_particles
from pyro_tilt.infer.proposal import ProgramProposal
from pyro_tilt.poutine import align


def honest():
    z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("rows", 8, subsample_size=3) as rows:
        x = pyro.sample("x", dist.Normal(z.sum(-1), 1.0))
        pyro.sample("y", dist.Normal(x, 1.0), obs=torch.arange(8.0)[rows])
    return x.sum(-1, keepdim=True) if x.dim() > 1 else x.sum()


def test_a_program_that_keeps_particles_apart_passes_and_leaves_the_random_state():
    proposal = ProgramProposal(align(honest, lambda x: x.square()))
    before = torch.get_rng_state()
    check_particles(proposal)
    assert torch.equal(before, torch.get_rng_state())


def test_pooling_in_a_parent_an_observation_or_a_reward_is_found():
    def parent():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        return pyro.sample("x", dist.Normal(z.mean(), 1.0))

    def observed():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z - z.mean(), 1.0), obs=torch.tensor(1.0))

    def plain():
        return pyro.sample("z", dist.Normal(0.0, 1.0))

    rank = align(plain, lambda z: z / (1 + z.abs().max()), name="rank")
    for program, site in ((parent, "x"), (observed, "y"), (rank, "rank")):
        with pytest.raises(ValueError, match=f"site '{site}'.*mixes its particles"):
            check_particles(ProgramProposal(program))


def test_randomness_outside_pyro_is_no_verdict():
    def program():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z + torch.randn(()), 0.01))

    check_particles(ProgramProposal(program))


def test_one_particle_shows_nothing():
    with pytest.raises(ValueError, match="at least 2"):
        check_particles(ProgramProposal(honest), 1)
