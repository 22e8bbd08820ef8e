# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from pyro_tilt.infer import LCB
from pyro_tilt.infer.stepwise.baselines import StateRule, baselines_from_mgf
from pyro_tilt.ops import ClippedLaw
from pyro_tilt.testing.gates import Z_SCORE
from pyro_tilt.testing.grid_chain import interpolate
from pyro_tilt.testing.two_mode_toy import two_mode_toy


@pytest.fixture(scope="module")
def toy():
    return two_mode_toy(beta=5.0)


def _log_mgf(toy):
    """Exact log-MGFs of the first coordinate on the grid; the last step in closed form."""
    grid, tables = toy.chain.grid, {}

    def orders(s, t):
        if t:
            return torch.stack([toy.chain.log_mgf(float(each), t) for each in s])
        rewarded = torch.expm1(toy.chain.log_soft_values[1]) / math.expm1(toy.beta)
        return torch.log1p(torch.expm1(toy.beta * s).unsqueeze(-1) * rewarded)

    def log_mgf(x, t, s):
        if t not in tables:
            tables[t] = orders(s, t)
        return torch.stack([interpolate(grid, each, x[..., 0]) for each in tables[t]], -1)

    return log_mgf


@pytest.fixture(scope="module")
def result(toy):
    return LCB(
        toy.program,
        reward=toy.reward,
        beta=toy.beta,
        value=toy.twist("exact"),
        log_mgf=_log_mgf(toy),
        epsilon=0.05,
        value_bound=(0.0, 5.0 + 1e-6),
        num_samples=20_000,
        seed=0,
        progress=False,
        check_lineage=False,
    ).run()


def test_three_proposals_a_step(toy, result):
    # Known from the grid: 2.93 for the sharpened bound at this epsilon, against an envelope of 71.
    assert 2.5 < result.info["proposals_per_step"] < 3.0
    assert toy.envelope_proposals > 65.0
    assert result.info["clipping"] < 0.05


def test_the_draws_are_near_the_target(toy, result):
    """The estimate of the law's distance, within the noise of the draws."""
    rewarded = (result.samples["x_0"][:, 0] < -7.0).double()
    noise = Z_SCORE * 0.5 / len(rewarded) ** 0.5
    assert abs(float(rewarded.mean()) - toy.mass) < 0.005 + noise


def test_the_final_law_is_within_a_two_hundredth(toy):
    """The law of the clipped chain itself, without draws, by the same baselines on the grid."""
    chain, log_mgf = toy.chain, _log_mgf(toy)
    rule = StateRule("chernoff", 0.05 / 20, 1.0, 0.0)
    states = torch.stack([chain.grid, torch.zeros_like(chain.grid)], -1)
    sampler = chain.densities[-1] * chain.log_soft_values[-1].exp()
    sampler = aim = sampler / sampler.sum()
    cost = []
    for t in range(toy.num_steps - 1, -1, -1):
        b = baselines_from_mgf(rule, log_mgf, states, t, len(states), "grid").clamp(0.0, 5.0)
        A = chain.log_soft_values[t].expand(len(b), -1)
        law = ClippedLaw(chain.transitions[t].log(), A, b)
        cost.append(float(sampler @ law.expected_proposals))
        sampler = sampler @ law.log_prob.exp()
        aim = aim @ law.target_log_prob.exp()
    assert sum(cost) / len(cost) < 3.0
    assert 0.5 * float((sampler - aim).abs().sum()) < 0.005
