# SPDX-License-Identifier: Apache-2.0
"""Forward-backward against the sum over all hidden paths of the program itself."""

import itertools
import math

import pyro
import pytest
import torch
from pyro import poutine
from scipy import stats

from pyro_tilt.poutine import ParticlePlate
from pyro_tilt.testing.hidden_markov import two_state_hmm

LENGTH = 7


@pytest.fixture(scope="module")
def case():
    return two_state_hmm(beta=1.4, length=LENGTH, seed=2)


def test_evidence_and_smoothing_against_all_paths(case):
    paths, log_joint = _path_law(case.program)
    assert case.log_evidence == pytest.approx(float(log_joint.logsumexp(0)), abs=1e-10)
    log_tilted = log_joint + case.beta * case.reward(paths[f"z_{LENGTH}"])
    assert case.log_normalizer == pytest.approx(float(log_tilted.logsumexp(0)), abs=1e-10)
    law, base = log_tilted.softmax(0), log_joint.softmax(0)
    for t in range(LENGTH + 1):
        ones = (law * paths[f"z_{t}"]).sum()
        assert float(case.smoothing[t, 1]) == pytest.approx(float(ones), abs=1e-12)
    for t in range(LENGTH):
        for i, j in itertools.product(range(2), repeat=2):
            both = law[(paths[f"z_{t}"] == i) & (paths[f"z_{t + 1}"] == j)].sum()
            assert float(case.pairs[t, i, j]) == pytest.approx(float(both), abs=1e-12)
    kl = (law * (law / base).log()).sum()
    assert case.kl == pytest.approx(float(kl), abs=1e-12)
    rewards = case.reward(paths[f"z_{LENGTH}"])
    assert case.reward_mean == pytest.approx(float(law @ rewards), abs=1e-12)
    assert case.base_reward_mean == pytest.approx(float(base @ rewards), abs=1e-12)


def test_filtering_is_the_smoothing_of_the_past(case):
    for t in range(1, LENGTH):
        past = two_state_hmm(beta=0.0, observations=case.observations[:t])
        torch.testing.assert_close(case.filtering[t], past.smoothing[t])


def test_guide_makes_all_weights_equal(case):
    paths, log_joint = _path_law(case.program)
    _, log_guide = _path_law(case.guide)
    weights = log_joint + case.beta * case.reward(paths[f"z_{LENGTH}"]) - log_guide
    assert float((weights - case.log_normalizer).abs().max()) < 1e-12


def test_soft_values_against_the_rest_of_the_paths(case):
    """Paths that pass through a state at t, over the mass of the paths up to t."""
    paths, log_joint = _path_law(case.program)
    log_tilted = log_joint + case.beta * case.reward(paths[f"z_{LENGTH}"])
    for t in range(1, LENGTH):
        past, log_past = _path_law(case.program, stop=t)
        for state in range(2):
            whole = log_tilted[paths[f"z_{t}"] == state].logsumexp(0)
            start = log_past[past[f"z_{t}"] == state].logsumexp(0) - math.log(2 ** (LENGTH - t))
            twist = case.twist()(torch.tensor(state), t)
            assert float(twist) == pytest.approx(float(whole - start), abs=1e-10)


def test_plain_program_estimates_the_evidence():
    """Likelihood weighting of 40,000 plain runs; two-sided z gate of 4.42, false alarm 1e-5."""
    case = two_state_hmm(beta=0.8, length=3)
    pyro.set_rng_seed(1)
    with ParticlePlate(40_000, dim=-1):
        trace = poutine.trace(case.program).get_trace()
    trace.compute_log_prob()
    log_weights = sum(trace.nodes[f"y_{t}"]["log_prob"] for t in range(1, 4))
    weights = (log_weights + case.beta * case.reward(trace.nodes["_RETURN"]["value"])).exp()
    exact = math.exp(case.log_normalizer)
    score = float(weights.mean() - exact) / float(weights.std() / math.sqrt(len(weights)))
    assert abs(score) < stats.norm.isf(0.5e-5)


def test_beta_zero_is_the_base():
    case = two_state_hmm(beta=0.0)
    assert case.kl == 0.0
    assert case.log_normalizer == case.log_evidence
    assert case.reward_mean == pytest.approx(case.base_reward_mean, abs=1e-12)


def _path_law(program, stop=LENGTH):
    """Every hidden path and its log joint with the observations up to ``stop``."""
    states = torch.tensor(list(itertools.product(range(2), repeat=LENGTH + 1)))
    paths = {f"z_{t}": states[:, t] for t in range(LENGTH + 1)}
    trace = poutine.trace(poutine.condition(program, data=paths)).get_trace()
    kept = {f"{kind}_{t}" for kind in "zy" for t in range(stop + 1)} & set(trace.nodes)
    sites = [trace.nodes[name] for name in sorted(kept)]
    return paths, sum(site["fn"].log_prob(site["value"]) for site in sites)
