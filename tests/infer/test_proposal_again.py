# SPDX-License-Identifier: Apache-2.0
"""A second run of an importance sampler does without the plain run where its pass can check."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_tilt import align
from pyro_tilt.infer import ImportanceSampler
from pyro_tilt.infer.proposal import ProgramProposal
from pyro_tilt.rewards import Linear


class Chain:
    """A Gaussian program that counts its runs and whose parts can be changed."""

    def __init__(self):
        self.calls = 0
        self.names = "x", "y"
        self.scale = torch.tensor(0.5)
        self.observed = torch.tensor(0.3)
        self.law = dist.Normal

    def __call__(self, shift=0.0):
        self.calls += 1
        x = pyro.sample(self.names[0], self.law(torch.tensor(0.2), torch.tensor(1.0)))
        y = pyro.sample(self.names[1], dist.Normal(x + shift, self.scale))
        pyro.sample("z", dist.Normal(y, torch.tensor(1.5)), obs=self.observed)
        return y


def reward(y):
    return torch.sin(2.0 * y)


def sampler(program, **options):
    options = {"beta": 0.7, "num_samples": 200, "seed": 3, **options}
    return ImportanceSampler(program, reward=reward, **options)


def assert_same(first, second):
    assert first.samples.keys() == second.samples.keys()
    for name, values in first.samples.items():
        assert torch.equal(values, second.samples[name])
    assert torch.equal(first.log_weights, second.log_weights)
    assert first.beta == second.beta and first.cost.reward_calls == second.cost.reward_calls


def test_a_second_run_is_the_first_without_its_plain_run():
    program = Chain()
    once = sampler(program)
    first = once.run()
    assert program.calls == 2
    assert_same(first, once.run())
    assert program.calls == 3


def test_chains_share_a_plain_run():
    program = Chain()
    together = sampler(program, num_chains=3, max_batch=64).run()
    assert program.calls == 1 + 3 * 4
    alone = sampler(Chain(), num_chains=3, max_batch=64)
    alone._proposal = lambda args, kwargs: ProgramProposal(alone.program, args, kwargs)
    assert_same(together, alone.run())


def test_other_arguments_are_run_plainly():
    program, shift = Chain(), torch.tensor(1.0)
    once = sampler(program)
    for count, arguments in ((2, ()), (4, (shift,)), (5, (shift,)), (7, (torch.tensor(1.0),))):
        result = once.run(*arguments)
        assert program.calls == count
        assert_same(result, sampler(Chain()).run(*arguments))
    once.run(shift=shift), once.run(shift=shift)
    assert program.calls == 10


def test_a_changed_program_is_learned_anew():
    program = Chain()
    once = sampler(program)
    once.run()
    program.names = "x", "w"
    renamed = once.run()
    assert set(renamed.samples) == {"x", "w"}
    program.law = dist.Laplace
    fresh = Chain()
    fresh.names, fresh.law = program.names, program.law
    assert_same(once.run(), sampler(fresh).run())


def test_a_changed_beta_counts():
    beta = torch.tensor(0.5)
    once = sampler(Chain(), beta=beta)
    once.run()
    beta.fill_(2.0)
    again = once.run()
    assert again.beta == 2.0
    assert_same(again, sampler(Chain(), beta=2.0).run())


@pytest.mark.parametrize("scale", [-1.0, 0.0, math.nan])
def test_arguments_are_validated_in_every_run(scale):
    program = Chain()
    once = sampler(program)
    once.run()
    program.scale = torch.tensor(scale)
    with pytest.raises(ValueError, match="Expected parameter scale"):
        once.run()
    program.scale = torch.tensor(0.5)
    assert_same(once.run(), sampler(Chain()).run())


def test_observations_are_validated_in_every_run():
    program = Chain()
    once = sampler(program)
    once.run()
    program.observed = torch.tensor(math.nan)
    with pytest.raises(ValueError, match="within the support"):
        once.run()


def test_an_error_of_the_reward_is_raised_once_more():
    broken = []

    def fragile(y):
        if broken:
            raise RuntimeError("the reward is broken")
        return y

    once = ImportanceSampler(Chain(), reward=fragile, num_samples=50, seed=0)
    once.run()
    broken.append(True)
    with pytest.raises(RuntimeError, match="the reward is broken"):
        once.run()


def vector():
    with pyro.plate("three", 3):
        return pyro.sample("x", dist.Normal(0.0, 1.0)).sum(-1)


def discrete():
    return pyro.sample("x", dist.Bernoulli(0.3))


def tilted():
    from pyro_tilt import Tilted

    return pyro.sample("x", Tilted(dist.Normal(0.0, 1.0), Linear(torch.tensor(0.5))))


def normal():
    return pyro.sample("x", dist.Normal(0.0, 1.0))


@pytest.mark.parametrize(
    ("program", "options"),
    [
        (vector, {}),
        (discrete, {}),
        (tilted, {}),
        (normal, {"guide": normal}),
        (normal, {"vectorized": False}),
    ],
)
def test_other_programs_are_always_run_plainly(program, options):
    proposal = ProgramProposal(align(program, reward, 1.0), **options)
    assert proposal.again((), {}) is None
    assert ProgramProposal(align(normal, reward, 1.0)).again((), {}) is not None


def test_a_location_of_nan_is_found_among_all_particles():
    """The first pass checks every particle, where a plain run would check one."""
    turned = []

    def program():
        x = pyro.sample("x", dist.Normal(torch.tensor(0.0), torch.tensor(1.0)))
        loc = torch.where(x > 1.0, math.nan, x) if turned else x
        pyro.sample("y", dist.Normal(loc, torch.tensor(1.0)))
        return x

    proposal = ProgramProposal(align(program, reward, 1.0))
    turned.append(True)
    other = proposal.again((), {})
    with pytest.raises(ValueError, match="site 'y'"):
        other._draw(100, checked=True)
