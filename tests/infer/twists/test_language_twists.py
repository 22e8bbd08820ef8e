# SPDX-License-Identifier: Apache-2.0
"""Twisted SMC on language programs: evidence and law by enumeration."""

import math

import pytest
import torch

from pyro_tilt import align
from pyro_tilt.infer import SMC
from pyro_tilt.infer.twists import RolloutTwist, learn_twists
from pyro_tilt.language import Decoding, TabularLM
from pyro_tilt.testing.gates import hotelling

LM = TabularLM.random(3, 4, seed=7, scale=1.2)
TABLE = torch.rand(81, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
BETA = 4.0
LOG_Z = float((LM.log_law() + BETA * TABLE).logsumexp(0))
TILT = (LM.log_law() + BETA * TABLE).softmax(0)


def reward(tokens):
    return TABLE[LM.index(tokens)]


def one_hot(carry):
    """Which of three tokens stands where, (N, 12)."""
    tokens = carry.tokens
    filled = torch.nn.functional.one_hot(tokens, 3).flatten(-2)
    return torch.nn.functional.pad(filled, (0, 12 - filled.shape[-1])).float()


def learned(beta=BETA):
    return learn_twists(
        LM.program(),
        reward=reward,
        beta=beta,
        features=one_hot,
        num_particles=1000,
        rounds=1,
        steps=150,
        seed=0,
        progress=False,
    )


@pytest.mark.parametrize("kind", ["rollout", "learned"])
def test_evidence_and_law(kind):
    """Unnormalised masses of the first two tokens, unbiased by any twist, gated jointly."""
    aligned = align(LM.program(), reward, BETA)
    twist = RolloutTwist(aligned, num_draws=2) if kind == "rollout" else learned()
    rows = []
    for seed in range(150):
        result = SMC(
            aligned, num_particles=100, twist=twist, seed=seed, check_lineage=False, progress=False
        ).run()
        found = LM.index(result.samples["tokens"]) // 9
        weights = result.log_weights.softmax(0) * math.exp(float(result.log_normalizer) - LOG_Z)
        rows.append(torch.zeros(9).double().index_add_(0, found, weights))
    hotelling(torch.stack(rows), TILT.reshape(9, 9).sum(-1))


def test_learned_twists_are_near_the_soft_values():
    twist, values = learned(), LM.value_function(LM.soft_values(TABLE, BETA))
    errors, spread = [], []
    for t in (1, 2, 3):
        tokens = torch.cartesian_prod(*[torch.arange(3)] * t).reshape(-1, t)
        law = LM.log_prob(tokens).exp()
        right = values(Decoding(tokens), t - 1)
        gap = twist(Decoding(tokens), t - 1) - right
        errors.append(float((law * gap.square()).sum()))
        spread.append(float((law * (right - (law * right).sum()).square()).sum()))
    assert sum(errors) < 0.3 * sum(spread)


@pytest.mark.slow
def test_twists_cut_the_variance_of_the_evidence_of_a_strong_tilt():
    beta = 10.0
    aligned = align(LM.program(), reward, beta)
    options = {"num_particles": 60, "ess_threshold": 1.0, "check_lineage": False}

    def variance(twist):
        runs = [SMC(aligned, twist=twist, seed=s, progress=False, **options) for s in range(100)]
        return float(torch.stack([run.run().log_normalizer for run in runs]).var())

    plain = variance(None)
    # Of 100 runs each, equal variances have a ratio below .6 once in 150, below .7 once in 25.
    assert variance(LM.value_function(LM.soft_values(TABLE, beta))) < 0.6 * plain
    assert variance(learned(beta)) < 0.7 * plain
