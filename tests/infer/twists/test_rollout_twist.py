# SPDX-License-Identifier: Apache-2.0
"""Rollouts are unbiased for the exact values and leave samplers exact."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_tilt import scan
from pyro_tilt.infer import SMC
from pyro_tilt.infer.twists import RolloutTwist
from pyro_tilt.poutine import align
from pyro_tilt.testing.gates import Z_SCORE
from pyro_tilt.testing.linear_gaussian import linear_gaussian_chain
from pyro_tilt.testing.tabular_diffusion import tabular_masked_diffusion


@pytest.mark.parametrize("observed", [False, True])
def test_the_mean_of_rollouts_is_the_exact_value(observed):
    case = linear_gaussian_chain(beta=0.8, num_steps=4, observed=observed)
    twist = RolloutTwist(
        case.program, reward=case.reward, beta=case.beta, num_draws=3, max_plate_nesting=None
    )
    states = torch.tensor([[0.5, -0.3], [-1.0, 0.8]], dtype=torch.float64)
    count = 6000
    many = states.repeat_interleave(count, 0)
    for t in (3, 1):
        ratio = (twist(many, t).reshape(2, count) - case.log_soft_value(states, t)[:, None]).exp()
        error = ratio.std(1) / count**0.5
        # The test sees a missing factor of one step, or a mean of logarithms.
        assert error.max() < 0.05
        assert ((ratio.mean(1) - 1.0).abs() < Z_SCORE * error).all()
    torch.testing.assert_close(twist(states, 0), case.log_soft_value(states, 0))
    assert twist.value_calls == 3 * (2 * 2 * count + 2)


def test_evidence_stays_unbiased_and_varies_less():
    case = linear_gaussian_chain(beta=8.0)
    aligned = align(case.program, case.reward, case.beta)
    options = {"num_chains": 120, "ess_threshold": 1.0, "seed": 4, "progress": False}
    options |= {"num_particles": 32, "check_lineage": False, "max_plate_nesting": 0}
    found = {}
    for draws in (0, 32):
        twist = RolloutTwist(aligned, num_draws=draws) if draws else None
        result = SMC(aligned, twist=twist, **options).run()
        found[draws] = result.chain_log_normalizers - case.log_normalizer
    ratio = found[32].exp()
    assert abs(ratio.mean() - 1.0) < Z_SCORE * ratio.std() / len(ratio) ** 0.5
    assert found[32].std() < 0.8 * found[0].std()


def test_states_that_look_dead_keep_their_future():
    # One rollout often ends at a reward of -inf; a twist of zero there would lose its mass.
    case = tabular_masked_diffusion(beta=1.0)
    table = case.reward_table.clone()
    table[(case.digits < 3).all(-1).nonzero()[::2, 0]] = -math.inf
    aligned = align(case.program, lambda state: table[state], 1.0)
    log_z = float((case.marginals[0] * table.exp()).sum().log())
    twist = RolloutTwist(aligned, num_draws=1)
    result = SMC(
        aligned,
        twist=twist,
        num_particles=16,
        num_chains=250,
        ess_threshold=1.0,
        seed=6,
        progress=False,
        check_lineage=False,
        max_plate_nesting=0,
    ).run()
    ratio = (result.chain_log_normalizers - log_z).exp()
    assert abs(ratio.mean() - 1.0) < Z_SCORE * ratio.std() / len(ratio) ** 0.5
    assert ratio.std() / len(ratio) ** 0.5 < 0.04
    dead = (case.digits < 3).all(-1).nonzero()[:2, 0]
    assert twist(dead, 0).tolist() == [-math.inf, pytest.approx(float(table[dead[1]]))]


def _plated(xs):
    with pyro.plate("rows", 2):
        start = pyro.sample("start", dist.Normal(0.0, 1.0))

    def step(carry, t):
        count, x = carry["n"], carry["x"]
        with pyro.plate(f"rows_{t}", 2):
            x = pyro.sample(f"x_{t}", dist.Delta(x + 1.0))
            pyro.factor(f"f_{t}", x * 0.0 + 0.5 * t)
        return {"n": count, "x": x}

    last = scan("chain", step, {"n": 3, "x": start}, xs)
    with pyro.plate("end_rows", 2):
        pyro.factor("end", last["x"])


def test_plates_nested_carries_and_the_factors_still_to_come():
    twist = RolloutTwist(_plated, [1, 2, 5], num_draws=2)
    x = torch.tensor([[1.0, 2.0], [0.0, -1.0], [3.0, 3.0]])
    left = {1: 2 + 5 + 4.0, 2: 5 + 2.0, 5: 0.0}
    for t, extra in left.items():
        expected = (x.sum(-1) + extra).double()
        torch.testing.assert_close(twist({"n": 3, "x": x}, t), expected)


def test_bad_input():
    def no_steps():
        return pyro.sample("x", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="0 scans"):
        RolloutTwist(no_steps)
    with pytest.raises(ValueError, match="num_draws"):
        RolloutTwist(_plated, [1, 2], num_draws=0)
    with pytest.raises(ValueError, match="without a reward"):
        RolloutTwist(_plated, [1, 2], beta=2.0)
