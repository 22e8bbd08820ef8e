# SPDX-License-Identifier: Apache-2.0
"""What every program with steps claims, seen through a sampler that knows nothing of steps."""

import math

import pyro
import pytest
import torch
from pyro import poutine
from scipy import stats

from pyro_tilt.infer import ImportanceSampler
from pyro_tilt.poutine import ParticlePlate
from pyro_tilt.testing.hidden_markov import two_state_hmm
from pyro_tilt.testing.linear_gaussian import linear_gaussian_chain
from pyro_tilt.testing.mixture_diffusion import mixture_diffusion
from pyro_tilt.testing.tabular_diffusion import tabular_masked_diffusion
from pyro_tilt.testing.two_mode_toy import two_mode_toy

Z_SCORE = stats.norm.isf(0.5e-5)
CASES = {
    "tabular": lambda: tabular_masked_diffusion(beta=0.9),
    "mixture": mixture_diffusion,
    "linear": lambda: linear_gaussian_chain(beta=0.3, num_steps=3),
    "observed": lambda: linear_gaussian_chain(beta=0.3, dim=1, num_steps=2, observed=True),
    "hmm": lambda: two_state_hmm(length=4),
    "toy": lambda: two_mode_toy(beta=3.0),
}


@pytest.fixture(scope="module", params=CASES)
def case(request):
    return CASES[request.param]()


def test_evidence_and_reward_by_importance_sampling(case):
    """Two z gates at a false alarm of 1e-5 each."""
    result = ImportanceSampler(case.aligned(), num_samples=40_000, seed=5, progress=False).run()
    weights = (result.log_weights - case.log_normalizer).exp()
    score = float(weights.mean() - 1.0) / float(weights.std()) * math.sqrt(len(weights))
    assert abs(score) < Z_SCORE
    alive = weights > 0
    excess = torch.zeros_like(weights)
    excess[alive] = weights[alive] * (result.stats["reward"][alive] - case.reward_mean)
    score = float(excess.mean()) / float(excess.std()) * math.sqrt(len(excess))
    assert abs(score) < Z_SCORE


def test_sites_and_initial_step(case):
    names = list(poutine.trace(case.program).get_trace().stochastic_nodes)
    assert len(names) == case.num_steps + 1
    assert names[0].endswith(f"_{case.initial_step}")
    if case.guide is not None:
        assert names == list(poutine.trace(case.guide).get_trace().stochastic_nodes)


def test_kl_follows_from_its_parts(case):
    """KL to the program with its observations: the tilt's mean minus the gain in evidence."""
    base = getattr(case, "log_evidence", 0.0)
    expected = case.beta * case.reward_mean - (case.log_normalizer - base)
    assert case.kl == pytest.approx(expected, abs=1e-9)
    assert case.kl > 0.0
    assert case.reward_mean > case.base_reward_mean


def test_twists_have_one_number_per_particle(case):
    pyro.set_rng_seed(0)
    with ParticlePlate(7, dim=-1):
        trace = poutine.trace(case.program).get_trace()
    for name in trace.stochastic_nodes:
        state, step = trace.nodes[name]["value"], int(name.split("_")[1])
        for kind in ("exact", "half", "wrong"):
            potential = case.twist(kind)(state, step)
            assert potential.shape == (7,)
            assert potential.dtype == torch.float64
        assert torch.isfinite(case.twist("wrong")(state, step)).all()
    start = trace.nodes[trace.stochastic_nodes[0]]["value"]
    exact = case.twist()
    torch.testing.assert_close(exact(start), exact(start, case.initial_step))
