# SPDX-License-Identifier: Apache-2.0
"""Bad programs and bad options, each refused by name; what was drawn before is kept."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_tilt import align, checkpoint, reward_factor, rewards, scan, twist
from pyro_tilt.infer import SMC, ZeroWeights
from pyro_tilt.infer.smc import LineageError, StepError, TwistError, check_lineage


def walk(steps=5, at=None, after=lambda x: x):
    def step(x, t):
        if t == at:
            raise ZeroDivisionError("the user's own error")
        return pyro.sample(f"x_{t}", dist.Normal(0.9 * x, 1.0))

    x = pyro.sample("start", dist.Normal(0.0, 1.0))
    return after(scan("walk", step, x, range(steps)))


def quiet(program, **options):
    options = {"num_particles": 40, "seed": 0, "check_lineage": False, **options}
    return SMC(program, progress=False, **options)


def test_a_program_that_raises_at_step_30_leaves_its_particles():
    def program(fail):
        return walk(40, fail["at"])

    fail = {"at": None}
    sampler = quiet(program, reward=lambda x: x, num_chains=1, ess_threshold=1.0)
    sampler.run(fail)
    fail["at"] = 30
    with pytest.raises(StepError, match="scan 'walk', step 30: ZeroDivisionError") as caught:
        sampler.run(fail)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    partial = caught.value.partial
    assert list(partial.samples) == ["start", "x_29"]
    assert partial.samples["x_29"].shape == (40,)
    assert len(partial.steps["ess"]) == 30
    assert "up to step 29" in partial.certificate.target
    assert partial.get_samples(5)["x_29"].shape == (5,)


def test_an_error_after_the_steps_keeps_them_too():
    fail = {"now": False}

    def program():
        return walk(3, after=lambda x: x / 0 if fail["now"] else x)

    sampler = quiet(program, max_plate_nesting=0)
    assert len(sampler.run()) == 40
    fail["now"] = True

    def broken():
        walk(3)
        raise KeyError("afterwards")

    with pytest.raises(StepError, match="after step 2.*KeyError") as caught:
        quiet(broken, max_plate_nesting=0).run()
    assert list(caught.value.partial.samples) == ["start", "x_2"]


def test_errors_before_the_first_step_are_the_programs_own():
    def broken():
        raise KeyError("beforehand")

    with pytest.raises(KeyError, match="beforehand"):
        quiet(broken, max_plate_nesting=0).run()


def test_all_weights_zero_names_the_step():
    def program():
        def step(x, t):
            x = pyro.sample(f"x_{t}", dist.Normal(x, 1.0))
            if t == 2:
                pyro.factor("impossible", torch.full_like(x, -math.inf))
            return x

        return scan("walk", step, torch.tensor(0.0), range(5))

    with pytest.raises(ZeroWeights, match="scan 'walk', step 2: all 40 weights are zero") as caught:
        quiet(program).run()
    assert caught.value.partial.samples["x_2"].shape == (40,)
    assert len(caught.value.partial.steps["ess"]) == 3


def test_chains_that_finished_survive_a_later_one():
    calls = {"count": 0}

    def program():
        calls["count"] += 1
        return walk(3, at=1 if calls["count"] > 2 else None)

    with pytest.raises(StepError) as caught:
        quiet(program, num_chains=3, max_plate_nesting=0).run()
    assert len(caught.value.partial) == 80
    assert caught.value.partial.certificate.target == "joint tilt"


def in_a_plate():
    with pyro.plate("items", 3):
        return walk()


def checkpoint_in_a_plate():
    with pyro.plate("items", 3):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        return checkpoint("c", x)


def one_name_twice():
    walk(2)
    return scan("walk", lambda x, t: x, torch.tensor(0.0), range(2))


def one_site_twice():
    def step(x, t):
        return pyro.sample("x", dist.Normal(x, 1.0))

    return scan("walk", step, torch.tensor(0.0), range(3))


def two_kinds():
    def step(x, t):
        return checkpoint(f"c_{t}", pyro.sample(f"x_{t}", dist.Normal(x, 1.0)))

    return scan("walk", step, torch.tensor(0.0), range(3))


def by_sampled_count():
    count = pyro.sample("count", dist.Poisson(3.0))
    return walk(int(count) + 1)


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (in_a_plate, "scan 'walk' stands inside plate 'items'"),
        (checkpoint_in_a_plate, "checkpoint 'c' stands inside plate 'items'"),
        (one_name_twice, "scan 'walk'"),
        (one_site_twice, "(?i)multiple.* sites? named 'x'"),
        (two_kinds, "checkpoint 'c_0'"),
        (by_sampled_count, "after site 'count'.*All particles go through the program together"),
    ],
)
@pytest.mark.parametrize("nesting", [None, 1])
def test_programs_that_cannot_be_stepped(program, words, nesting):
    with pytest.raises((ValueError, RuntimeError), match=words):
        quiet(program, max_plate_nesting=nesting).run()


def test_a_step_count_that_differs_between_particles():
    """Where the number of steps, or a branch inside a step, hangs on a sampled value."""
    with pytest.raises(ValueError, match="before the first step.*'count'.*pyro.poutine.mask"):
        quiet(by_sampled_count).run()

    def stops_early():
        def step(x, t):
            x = pyro.sample(f"x_{t}", dist.Normal(x, 1.0))
            pyro.factor(f"f_{t}", x)
            return x if t < 3 or x < 100.0 else torch.zeros_like(x)

        return scan("walk", step, torch.tensor(0.0), range(6))

    words = "scan 'walk', step 3.*ambiguous.*after site 'x_3'.*together"
    with pytest.raises(StepError, match=words) as caught:
        quiet(stops_early).run()
    assert list(caught.value.partial.samples) == ["x_2"]
    assert len(caught.value.partial.steps["ess"]) == 3


class NoDensity(dist.Normal):
    """A law that can be drawn from only."""

    def log_prob(self, value):
        raise NotImplementedError

    def expand(self, batch_shape, _instance=None):
        return super().expand(batch_shape, self._get_checked_instance(NoDensity, _instance))


def without_density(at=2, observed=False):
    def step(x, t):
        fn = NoDensity(x, 1.0) if t == at else dist.Normal(x, 1.0)
        x = pyro.sample(f"x_{t}", fn)
        if observed:
            pyro.sample(f"y_{t}", NoDensity(x, 1.0), obs=torch.tensor(0.0))
        return x

    return scan("walk", step, torch.tensor(0.0), range(4))


def test_a_law_without_density_is_named_where_a_density_is_needed():
    assert len(quiet(without_density, reward=lambda x: x).run()) == 40
    proposals = {
        "program": lambda name, fn, carry, t: dist.Normal(fn.loc, 1.5),
        "proposed": lambda name, fn, carry, t: NoDensity(fn.loc, 1.5) if t == 2 else None,
    }
    for proposal in proposals.values():
        with pytest.raises(StepError, match="step 2.*site 'x_2'.*no density") as caught:
            quiet(without_density, proposal=proposal, max_plate_nesting=0).run()
        assert list(caught.value.partial.samples) == ["x_1"]

    def guide():
        def step(x, t):
            return pyro.sample(f"x_{t}", dist.Normal(x, 1.5))

        return scan("walk", step, torch.tensor(0.0), range(4))

    with pytest.raises(StepError, match="step 2.*site 'x_2'.*no density"):
        quiet(without_density, guide=guide, max_plate_nesting=0).run()
    with pytest.raises(StepError, match="step 0.*site 'y_0'.*no density"):
        quiet(lambda: without_density(None, observed=True), max_plate_nesting=0).run()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("stated", [False, True])
def test_a_twist_that_breaks_at_a_step_keeps_the_particles(bad, stated):
    def value(x, t):
        return torch.where(x > -100.0, bad if t == 3 else 0.0, 0.0).expand_as(x)

    def program():
        def step(x, t):
            x = pyro.sample(f"x_{t}", dist.Normal(x, 1.0))
            if stated:
                twist(f"psi_{t}", value(x, t))
            return x

        return scan("walk", step, torch.tensor(0.0), range(6))

    kind = "NaN" if math.isnan(bad) else r"\+inf"
    words = f"scan 'walk', step 3: the twist is {kind} for 40 of 40"
    with pytest.raises(TwistError, match=words) as caught:
        quiet(program, twist=None if stated else value, max_plate_nesting=0).run()
    partial = caught.value.partial
    assert list(partial.samples) == ["x_2"]
    assert partial.log_weights.isfinite().all()
    assert len(partial.steps["ess"]) == 3


def test_a_bad_observation_names_its_step():
    def program():
        def step(x, t):
            x = pyro.sample(f"x_{t}", dist.Normal(x, 1.0))
            pyro.factor(f"f_{t}", torch.where(x > -100.0, math.nan if t == 2 else 0.0, 0.0))
            return x

        return scan("walk", step, torch.tensor(0.0), range(4))

    with pytest.raises(StepError, match="step 2.*40 of 40 particles are NaN") as caught:
        quiet(program, max_plate_nesting=0).run()
    assert list(caught.value.partial.samples) == ["x_1"]


def test_another_number_of_steps_in_another_run():
    lengths = iter([4, 5])

    def program():
        return walk(next(lengths))

    with pytest.raises(ValueError, match="vary between runs.*x_4.*number of steps"):
        quiet(program).run()


def test_a_carry_without_particles_is_named():
    def program():
        def step(carry, t):
            return {"x": pyro.sample(f"x_{t}", dist.Normal(carry["x"], 1.0)), "c": torch.ones(())}

        return scan("walk", step, {"x": torch.tensor(0.0)}, range(2))["x"]

    with pytest.raises(StepError, match=r"carry\['c'\].*lacks the leftmost axis"):
        quiet(program, ess_threshold=1.0).run()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"resampling": "ssp"}, "resampling must be one of multinomial"),
        ({"ess_threshold": 1.5}, "ess_threshold must lie"),
        ({"num_particles": 0}, "num_samples"),
        ({"max_batch": 10}, "max_batch"),
        ({"vectorized": False}, "vectorized"),
        ({"proposal": "optimal"}, "'gradient'"),
        ({"proposal": "gradient"}, "needs twist="),
        ({"proposal": lambda *a: None, "guide": walk}, "not both"),
    ],
)
def test_bad_options(options, words):
    with pytest.raises(ValueError, match=words):
        quiet(walk, **options)


def forgotten_scale():
    scale = pyro.sample("scale", dist.Exponential(1.0))

    def step(x, t):
        return pyro.sample(f"x_{t}", dist.Normal(x, scale))

    return scan("walk", step, torch.tensor(0.0), range(4))


def carried_scale():
    def step(carry, t):
        x, scale = carry
        return pyro.sample(f"x_{t}", dist.Normal(x, scale)), scale

    scale = pyro.sample("scale", dist.Exponential(1.0))
    return scan("walk", step, (torch.tensor(0.0), scale), range(4))[0]


def forgotten_in_a_loop():
    x = y = torch.tensor(0.0)
    for t in range(4):
        x = pyro.sample(f"x_{t}", dist.Normal(0.5 * x, 1.0))
        y = pyro.sample(f"y_{t}", dist.Normal(x + y, 1.0))
        x = checkpoint(f"c_{t}", x)
    return x


def forgotten_in_the_return():
    first = pyro.sample("first", dist.Normal(0.0, 1.0))
    return walk(3) + first


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (forgotten_scale, "site 'x_1': its log density"),
        (forgotten_in_a_loop, "site 'y_1': its log density"),
        (forgotten_in_the_return, "the return value"),
    ],
)
def test_a_forgotten_variable_is_found(program, words):
    with pytest.raises(LineageError, match=words):
        check_lineage(program)
    with pytest.raises(LineageError, match=words):
        SMC(program, num_particles=10, seed=0).run()
    assert len(quiet(program).run()) == 40


def test_the_preflight_passes_sound_programs_and_leaves_no_trace():
    pyro.set_rng_seed(0)
    state = torch.get_rng_state()
    for program in (walk, carried_scale):
        check_lineage(align(program, lambda x: x.abs()))
    assert torch.equal(state, torch.get_rng_state())
    plain = SMC(carried_scale, num_particles=30, seed=0, check_lineage=False).run()
    checked = SMC(carried_scale, num_particles=30, seed=0, check_lineage=True).run()
    assert torch.equal(plain.samples["x_3"], checked.samples["x_3"])


def test_a_reward_inside_the_steps_moves_with_its_particle():
    def program():
        def step(carry, t):
            x, total = carry
            x = pyro.sample(f"x_{t}", dist.Normal(x, 1.0))
            reward_factor(f"r_{t}", x, beta=0.5)
            return x, total + x

        zero = torch.tensor(0.0)
        return pyro.deterministic("total", scan("walk", step, (zero, zero), range(6))[1])

    result = quiet(program, ess_threshold=1.0).run()
    torch.testing.assert_close(result.stats["reward"], result.samples["total"])
    assert result.beta == 0.5
    assert result.cost.reward_calls == 6 * 40


def test_a_negative_bounded_reward_of_everyone():
    reward = rewards.Constraint(lambda x: torch.zeros_like(x, dtype=torch.bool))
    with pytest.raises(ZeroWeights, match="at the end") as caught:
        quiet(walk, reward=reward).run()
    assert list(caught.value.partial.samples) == ["start", "x_4"]
