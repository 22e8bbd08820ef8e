# SPDX-License-Identifier: Apache-2.0
"""Twists stated in a program, as a sampler over steps reads them."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_tilt import checkpoint, scan, twist
from pyro_tilt.infer import SMC
from pyro_tilt.infer.smc import TwistError

# x_t = x_{t-1} + N(0, 1), reward -(x_4 - 2)^2 / 2: v_t(x) is the log of N(2; x, 1 + 4 - t) up to
# a constant, so that the evidence is sqrt(2 pi) N(2; 0, 5).
STEPS = 4
LOG_Z = 0.5 * math.log(2 * math.pi) + float(
    dist.Normal(0.0, math.sqrt(5.0)).log_prob(torch.tensor(2.0))
)


def soft_value(x, t):
    left = torch.tensor(1.0 + STEPS - t).double()
    return -0.5 * (2.0 - x.double()).square() / left - 0.5 * left.log()


def program(parts=1, log_psi=soft_value):
    def step(x, t):
        x = pyro.sample(f"x_{t}", dist.Normal(x, 1.0))
        for k in range(parts):
            twist(f"psi_{t}_{k}", lambda: log_psi(x, t) / parts)
        return x

    return scan("walk", step, torch.tensor(0.0), range(1, STEPS + 1))


def loop():
    x = torch.tensor(0.0)
    for t in range(1, STEPS + 1):
        x = pyro.sample(f"x_{t}", dist.Normal(x, 1.0))
        twist(f"psi_{t}", soft_value(x, t))
        x = checkpoint(f"c_{t}", x)
    return x


def reward(x):
    return -0.5 * (x - 2.0).square()


def run(fn, *args, size=2000, **options):
    options = {"progress": False, "seed": 0, **options}
    return SMC(fn, reward=reward, num_particles=size, **options).run(*args)


def test_statements_and_the_option_and_checkpoints_weigh_alike():
    stated = run(program)
    assert float(stated.log_normalizer) == pytest.approx(LOG_Z, abs=0.05)
    for other in (run(program, 3), run(loop), run(program, 0, twist=soft_value)):
        torch.testing.assert_close(other.log_weights, stated.log_weights)
        assert torch.equal(other.samples["x_4"], stated.samples["x_4"])
    assert stated.cost.value_calls == STEPS * 2000


def test_a_twist_stays_where_a_step_states_none():
    def sparse(x, t):
        return soft_value(x, t)

    def every_other():
        def step(x, t):
            x = pyro.sample(f"x_{t}", dist.Normal(x, 1.0))
            if t % 2:
                twist(f"psi_{t}", sparse(x, t))
            return x

        return scan("walk", step, torch.tensor(0.0), range(1, STEPS + 1))

    ratios = [
        float(run(every_other, size=50, seed=seed, check_lineage=False).log_normalizer) - LOG_Z
        for seed in range(150)
    ]
    values = torch.tensor(ratios).exp()
    assert abs(float(values.mean()) - 1.0) < 4.5 * float(values.std()) / math.sqrt(150)


def test_minus_inf_is_legal_where_nothing_is_left():
    """A wall that the path may not cross, known to the twist; without resampling too."""

    def walled():
        def step(x, t):
            x = pyro.sample(f"x_{t}", dist.Normal(x, 1.0))
            state = x
            pyro.factor(f"wall_{t}", torch.where(x < -0.5, -torch.inf, 0.0))
            twist(f"psi_{t}", torch.where(state < -0.5, -torch.inf, soft_value(x, t)))
            return x

        return scan("walk", step, torch.tensor(0.0), range(1, STEPS + 1))

    plain = run(walled, size=40_000, ess_threshold=0.0)
    steered = run(walled, size=4000, seed=1)
    assert steered.get_samples()["x_4"].min() >= -0.5
    gap = float(plain.log_normalizer - steered.log_normalizer)
    assert abs(gap) < 4.5 * math.hypot(float(plain.log_normalizer_error), 0.04)


@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_minus_inf_minus_minus_inf_is_a_named_error(threshold):
    def wrong(x, t):
        return torch.where(x < 0.0, -torch.inf, 0.0)

    with pytest.raises(TwistError, match="-inf would be taken from -inf") as caught:
        run(program, 0, twist=wrong, ess_threshold=0.0, size=100)
    assert caught.value.partial.samples["x_1"].shape == (100,) or caught.value.partial
    if threshold:
        # Where the dead are replaced at once there is nothing left to take from.
        assert torch.isfinite(run(program, 0, twist=wrong, ess_threshold=1.0).log_normalizer)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (lambda x, t: torch.full_like(x, math.nan), "step 0.*NaN for 100 of 100"),
        (lambda x, t: torch.where(x > 0.0, torch.inf, 0.0), "step 0.*inf"),
        (lambda x, t: x.mean(), r"step 0.*shape \(\), expected \(100,\)"),
        (lambda x, t: x.expand(3, -1), r"shape \(3, 100\)"),
        (lambda x, t: 0.0, "float, not a tensor"),
    ],
)
def test_bad_twists_are_named(value, words):
    with pytest.raises(TwistError, match=words):
        run(program, 0, twist=value, size=100)


@pytest.mark.parametrize("bad", [lambda x, t: x.mean(), lambda x, t: x.expand(3, -1)])
def test_a_stated_twist_of_a_wrong_shape_is_named(bad):
    with pytest.raises(TwistError, match="psi_1_0.*shape"):
        run(program, 1, bad, size=100, check_lineage=False)


def test_two_twists_of_one_name():
    def twice():
        def step(x, t):
            x = pyro.sample(f"x_{t}", dist.Normal(x, 1.0))
            twist("psi", x)
            return x

        return scan("walk", step, torch.tensor(0.0), range(2))

    with pytest.raises(ValueError, match="twist 'psi'"):
        run(twice, size=10)
