# SPDX-License-Identifier: Apache-2.0
"""The warning of twists that learned nothing: where it is due, and where it would cry wolf."""

import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_tilt import scan
from pyro_tilt.infer import SamplerWarning
from pyro_tilt.infer.twists import learn_twists
from pyro_tilt.infer.twists.verdict import future_depends

FAST = {"num_particles": 600, "rounds": 1, "steps": 40, "progress": False}


def walk():
    def step(x, t):
        return pyro.sample(f"x_{t}", dist.Normal(x, 0.6))

    return scan("walk", step, torch.zeros(()), range(4, -1, -1))


def independent():
    """What a step adds to the weight does not look at the carry, nor does the return value."""

    def step(x, t):
        x = pyro.sample(f"x_{t}", dist.Normal(0.0, 1.0))
        pyro.factor(f"f_{t}", 0.8 * x)
        return x

    scan("apart", step, torch.zeros(()), range(5))


def noise(carry):
    return torch.randn(len(carry), 3)


def corrected():
    """Weights of mean one whose spread alone depends on the state."""

    def step(x, t):
        x = pyro.sample(f"x_{t}", dist.Normal(0.5 * x, 1.0))
        z = pyro.sample(f"z_{t}", dist.Normal(0.0, 1.0))
        scale = torch.sigmoid(2.0 * x)
        pyro.factor(f"f_{t}", scale * z - 0.5 * scale**2)
        return x

    scan("corrected", step, torch.zeros(()), range(3))


def learn(program, reward=None, beta=None, **options):
    return learn_twists(program, reward=reward, beta=beta, **{**FAST, **options})


def identity(x):
    return x


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("network", ["heads", "shared"])
def test_noise_for_features_is_told(network, seed):
    state = torch.get_rng_state()
    with pytest.warns(SamplerWarning, match="at no step, though .* after step 4") as told:
        twist = learn(walk, identity, 1.0, features=noise, network=network, seed=seed)
    assert len(told) == 1 and told[0].filename == __file__
    for way in ("num_particles=", "features=", "steps=", "weaker tilt"):
        assert way in str(told[0].message)
    # Two runs on either side of the fit, and the one whose paths fork.
    assert twist.report.paths == 3 * 600
    assert torch.equal(torch.get_rng_state(), state)


def test_what_is_learned_is_not_complained_of():
    for seed in range(3):
        learn(walk, identity, 1.0, seed=seed)


def test_one_step_with_something_to_learn_is_enough():
    def last_alone(carry):
        return carry[:, None] if learn_calls() else torch.zeros(len(carry), 1)

    calls = iter(range(10_000))

    def learn_calls():
        return next(calls) % 5 == 4

    twist = learn(walk, identity, 1.0, features=last_alone, seed=0)
    gain = twist.report.constant_loss - twist.report.loss
    assert float(gain[0, :4].max()) < 0.05 < float(gain[0, 4])


@pytest.mark.parametrize("value", [0.0, 3.0, 1e4])
def test_constant_rewards_have_nothing_to_learn(value):
    learn(walk, lambda x: 0.0 * x + value, 1.0, seed=0)


def test_tilts_too_weak_to_matter_are_not_complained_of():
    learn(walk, identity, 1e-4, features=noise, seed=0)


@pytest.mark.parametrize("program", [independent, corrected])
def test_futures_that_do_not_depend_on_the_state_have_constant_values(program):
    """Ten chances at one in a thousand each."""
    for seed in range(5):
        learn(program, seed=seed)
        learn(program, features=noise, seed=seed)


def test_factors_on_the_way_are_seen_too():
    """Nothing is ahead of the last step; what depends on the state lies before."""

    def step(x, t):
        pyro.factor(f"f_{t}", x)
        return pyro.sample(f"x_{t}", dist.Normal(0.7 * x, 1.0))

    def program():
        scan("on the way", step, torch.zeros(()), range(4))

    with pytest.warns(SamplerWarning, match="after step [02]"):
        learn(program, features=noise, seed=1, ess_threshold=0.0)


def test_states_that_do_not_matter_are_not_what_is_complained_of():
    """The future depends on the state where it is above one, and nowhere else."""

    def step(x, t):
        if t < 4:
            pyro.factor(f"f_{t}", 1.5 * (x > 1.0))
        return pyro.sample(f"x_{t}", dist.Normal(0.0, 1.0))

    def program():
        scan("jumps", step, torch.zeros(()), range(4, -1, -1))

    options = {"features": noise, "ess_threshold": 0.0, "seed": 0}
    learn(program, where=lambda x: x < 1.0, **options)
    with pytest.warns(SamplerWarning, match="at no step"):
        learn(program, **options)


def test_too_few_paths_say_nothing():
    learn(walk, identity, 1.0, features=noise, num_particles=30, seed=0)


def test_the_last_round_decides():
    """A network that is useless at first and finds its way later is not complained of."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learn(walk, identity, 1.0, rounds=2, seed=3)


def draws(kind, n, generator):
    first, second = torch.randn(2, n, generator=generator, dtype=torch.float64)
    if kind == "dead":
        return tuple(each.masked_fill(each < 0.0, -math.inf) for each in (first, second))
    if kind == "spread":
        scale = torch.rand(n, generator=generator, dtype=torch.float64)
        return tuple(scale * each - 0.5 * scale**2 for each in (first, second))
    return first, second


@pytest.mark.parametrize("kind", ["plain", "dead", "spread"])
def test_false_alarms_come_at_no_more_than_the_level(kind):
    """At level .02, 1000 tests: more than 42 alarms have a chance of 1e-5 (binomial)."""
    generator = torch.Generator().manual_seed(0)
    found = [future_depends(*draws(kind, 200, generator), level=0.02) for _ in range(1000)]
    assert sum(found) <= 42


def test_dependence_is_found_where_noise_hides_half_of_it():
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        common, *own = 0.7 * torch.randn(3, 400, generator=generator, dtype=torch.float64)
        assert future_depends(common + own[0], common + own[1], level=1e-3)
        assert not future_depends(common, torch.full_like(common, -math.inf), level=1e-3)
    assert not future_depends(torch.zeros(200), torch.zeros(200), level=1e-3)
