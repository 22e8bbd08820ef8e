# SPDX-License-Identifier: Apache-2.0
import math
import pickle

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive

from pyro_tilt import rewards
from pyro_tilt.poutine import align, reward_factor


def pair():
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    return pyro.sample("x", dist.Normal(z, 1.0))


def square(x):
    return x.square()


def run(program, *args):
    return poutine.trace(program).get_trace(*args)


def test_emits_one_auxiliary_factor_with_beta_times_the_reward():
    trace = run(align(pair, square, 2.5))
    site = trace.nodes["reward"]
    x = trace.nodes["x"]["value"]
    assert list(trace.nodes)[1:-1] == ["z", "x", "reward"]
    assert site["is_observed"] and site["infer"]["is_auxiliary"]
    assert poutine.util.site_is_factor(site)
    assert torch.equal(site["fn"].log_factor, 2.5 * x.square())
    term = site["infer"]["tilt"]
    assert torch.equal(term.reward, x.square()) and term.beta == 2.5
    assert trace.nodes["_RETURN"]["value"] is x


def test_reward_reads_a_site_several_sites_or_the_trace():
    by_site = run(align(pair, square, of="z"))
    z = by_site.nodes["z"]["value"]
    assert torch.equal(by_site.nodes["reward"]["infer"]["tilt"].reward, z.square())

    by_sites = run(align(pair, lambda v: v["x"] - 2 * v["z"], of=["z", "x"]))
    z, x = (by_sites.nodes[name]["value"] for name in "zx")
    assert torch.equal(by_sites.nodes["reward"]["infer"]["tilt"].reward, x - 2 * z)

    by_trace = run(
        align(pair, lambda t: t.nodes["x"]["fn"].loc + t.nodes["_RETURN"]["value"], of="trace")
    )
    z, x = (by_trace.nodes[name]["value"] for name in "zx")
    assert torch.equal(by_trace.nodes["reward"]["infer"]["tilt"].reward, z + x)


def test_a_site_named_trace_is_reached_through_a_list():
    def program():
        return pyro.sample("trace", dist.Normal(3.0, 1.0))

    trace = run(align(program, lambda v: v["trace"], of=["trace"]))
    assert trace.nodes["reward"]["infer"]["tilt"].reward == trace.nodes["trace"]["value"]


def test_unknown_site_is_an_error_that_names_the_known_ones():
    with pytest.raises(ValueError, match=r"(?s)'w'.*'z', 'x'"):
        run(align(pair, square, of="w"))


def test_program_without_a_return_value_is_an_error():
    def program():
        pyro.sample("x", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="returns None"):
        run(align(program, square))


def test_names_are_unique_under_nesting_and_against_the_program():
    def program():
        x = pair()
        pyro.factor("reward", -x)
        return x

    trace = run(align(align(program, square, 2.0), lambda x: x, 3.0))
    x = trace.nodes["x"]["value"]
    assert list(trace.nodes)[1:-1] == ["z", "x", "reward", "reward_2", "reward_3"]
    assert trace.nodes["reward_2"]["fn"].log_factor == 2.0 * x.square()
    assert trace.nodes["reward_3"]["fn"].log_factor == 3.0 * x
    assert "taste" in run(align(pair, square, name="taste")).nodes


def test_subsampled_plate_does_not_scale_the_reward():
    def program():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 100, subsample_size=10):
            pyro.sample("y", dist.Normal(z, 1.0), obs=torch.zeros(10))
        return z

    trace = run(align(program, square, 2.0))
    trace.compute_log_prob()
    assert trace.nodes["y"]["scale"] == 10.0
    assert trace.nodes["reward"]["scale"] == 1.0
    z = trace.nodes["z"]["value"]
    torch.testing.assert_close(trace.nodes["reward"]["log_prob_sum"], 2.0 * z.square())


def test_reward_is_not_evaluated_under_predictive_or_outside_inference():
    calls = []

    def reward(x):
        calls.append(x)
        return x

    aligned = align(pair, reward, 5.0)
    draws = Predictive(aligned, num_samples=2000, parallel=True, return_sites=["x"])()
    aligned()
    assert not calls
    # Base draws: the mean of x is 0 (standard error sqrt(2 / 2000)), far from the tilted 10.
    assert abs(float(draws["x"].mean())) < 5 * math.sqrt(2 / 2000)


@pytest.mark.parametrize("plate", ["num_particles_vectorized", "mine"])
def test_shape_follows_the_particle_plates_around(plate):
    aligned = align(pair, square)
    with pyro.plate(plate, 7, dim=-2):
        site = run(aligned).nodes["reward"]
    assert site["infer"]["tilt"].reward.shape == (7, 1)
    with pyro.plate(plate, 7, dim=-2):
        site = run(align(pair, lambda x: x.squeeze(-1))).nodes["reward"]
    assert site["infer"]["tilt"].reward.shape == (7, 1)


def test_two_particle_plates_need_their_full_shape():
    with pyro.plate("a", 3, dim=-1), pyro.plate("b", 2, dim=-2):
        assert run(align(pair, square)).nodes["reward"]["fn"].batch_shape == (2, 3)
    with (
        pytest.raises(ValueError, match=r"(?s)\(3,\), expected \(2, 3\)"),
        pyro.plate("a", 3, dim=-1),
        pyro.plate("b", 2, dim=-2),
    ):
        run(align(pair, lambda x: x.sum(0)))


def test_reward_per_plate_element_is_an_error_that_says_what_to_do():
    def program():
        with pyro.plate("data", 5):
            return pyro.sample("x", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match=r"(?s)'reward'.*\(5,\), expected \(\).*Sum the reward"):
        run(align(program, square))
    assert run(align(program, lambda x: x.sum(-1))).nodes["reward"]["fn"].batch_shape == ()


def test_reward_that_pools_the_particles_is_an_error():
    with (
        pytest.raises(ValueError, match=r"(?s)has shape \(\), expected \(4,\)"),
        pyro.plate("particles", 4),
    ):
        run(align(pair, lambda x: x.sum()))


def test_bad_rewards_name_the_factor_and_the_count():
    def half_nan(x):
        return torch.where(torch.arange(6) < 2, math.nan, x)

    with pytest.raises(ValueError, match="taste.*NaN.*2 of 6"), pyro.plate("particles", 6):
        run(align(pair, half_nan, name="taste"))
    with pytest.raises(ValueError, match="inf"):
        run(align(pair, lambda x: x + math.inf))
    site = run(align(pair, lambda x: x - math.inf, 2.0)).nodes["reward"]
    assert site["fn"].log_factor == -math.inf
    site = run(align(pair, lambda x: x - math.inf, 0.0)).nodes["reward"]
    assert site["fn"].log_factor == 0.0


@pytest.mark.parametrize(
    "beta, error", [(math.nan, ValueError), (torch.ones(2), ValueError), ("1", TypeError)]
)
def test_bad_beta_is_refused_at_once(beta, error):
    with pytest.raises(error, match="beta"):
        align(pair, square, beta)


def test_beta_may_be_a_number_of_numpy():
    beta = align(pair, square, np.float32(0.5)).beta
    assert beta == 0.5 and type(beta) is float


def test_other_bad_arguments_are_refused_at_once():
    with pytest.raises(TypeError, match="program"):
        align(3, square)
    for bad in ([], 3, ["z", 3]):
        with pytest.raises(TypeError, match="of must be"):
            align(pair, square, of=bad)
    with pytest.raises(TypeError):
        align(pair, 3)


def test_tensor_beta_gets_its_gradient():
    beta = torch.tensor(2.0, requires_grad=True)
    trace = run(align(pair, square, beta))
    trace.log_prob_sum().backward()
    torch.testing.assert_close(beta.grad, trace.nodes["x"]["value"].square())


def test_pickles_and_shows_itself():
    aligned = align(pair, rewards.Linear(torch.tensor(1.5)), 2.0, of="x")
    again = pickle.loads(pickle.dumps(aligned))
    assert (again.program, again.beta, again.of) == (pair, 2.0, "x")
    assert "beta=2.0" in repr(aligned) and "of='x'" in repr(aligned)
    pyro.set_rng_seed(1)
    first = run(aligned).log_prob_sum()
    pyro.set_rng_seed(1)
    assert run(again).log_prob_sum() == first


def test_bounds_travel_with_the_factor():
    bounded = rewards.Bounded(square, 0.0, 4.0)
    term = run(align(pair, bounded, 2.0, of="z")).nodes["reward"]["infer"]["tilt"]
    assert (term.lower_bound, term.upper_bound, term.log_bound) == (0.0, 4.0, 8.0)
    term = run(align(pair, bounded, -2.0, of="z")).nodes["reward"]["infer"]["tilt"]
    assert term.log_bound == 0.0
    term = run(align(pair, square, -1.0)).nodes["reward"]["infer"]["tilt"]
    assert term.log_bound == math.inf


def test_enumeration_dims_are_allowed_to_the_left_only():
    @pyro.infer.config_enumerate
    def program():
        a = pyro.sample("a", dist.Categorical(torch.ones(3)))
        b = pyro.sample("b", dist.Bernoulli(0.5))
        return a + b

    handler = poutine.enum(first_available_dim=-1)
    with handler:
        assert run(align(program, lambda v: v * 1.0)).nodes["reward"]["fn"].batch_shape == (2, 3)
    with pyro.plate("particles", 4, dim=-1), poutine.enum(first_available_dim=-2):
        assert run(align(program, lambda v: v * 1.0)).nodes["reward"]["fn"].batch_shape == (2, 3, 4)
    with (
        pytest.raises(ValueError, match=r"expected \(4,\)"),
        pyro.plate("particles", 4, dim=-1),
        poutine.enum(first_available_dim=-2),
    ):
        run(align(program, lambda v: torch.ones(3)))


def test_reward_factor_is_a_statement_in_the_program():
    def program():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 10, subsample_size=5):
            x = pyro.sample("x", dist.Normal(z, 1.0))
            reward_factor("local", -x.square(), 2.0, upper_bound=0.0)
            reward_factor("constant", z)
        reward_factor("whole", z, -3.0)

    trace = run(program)
    trace.compute_log_prob()
    z, x = (trace.nodes[name]["value"] for name in "zx")
    expected = {"local": -4.0 * x.square().sum(), "constant": 10 * z, "whole": -3.0 * z}
    for name, value in expected.items():
        torch.testing.assert_close(trace.nodes[name]["log_prob_sum"], value)
    assert trace.nodes["constant"]["infer"]["tilt"].reward.shape == (5,)
    assert trace.nodes["local"]["infer"]["tilt"].log_bound == 0.0


def test_reward_factor_checks_its_bound_and_its_shape():
    def above():
        reward_factor("taste", torch.tensor(1.5), upper_bound=1.0)

    with pytest.raises(ValueError, match="taste.*1.5.*upper_bound 1"):
        run(above)

    def misaligned():
        with pyro.plate("data", 3):
            reward_factor("taste", torch.ones(4))

    with pytest.raises(ValueError, match=r"(?s)taste.*\(4,\), expected \(3,\)"):
        run(misaligned)


def test_reward_factor_is_silent_outside_inference_and_under_mask_false():
    reward_factor("taste", torch.tensor(math.nan))
    with poutine.trace() as tracer, poutine.mask(mask=False):
        reward_factor("taste", torch.tensor(math.nan))
    assert not tracer.trace.nodes
