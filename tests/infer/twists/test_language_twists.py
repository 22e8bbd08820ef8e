# SPDX-License-Identifier: Apache-2.0
"""Twisted SMC on language programs: evidence and law by enumeration."""

import math

import pytest
import torch

from pyro_tilt import align
from pyro_tilt.infer import SMC
from pyro_tilt.infer.twists import RolloutTwist, learn_twists, load_twist
from pyro_tilt.language import Decoding, NeuralLM, TabularLM
from pyro_tilt.ops import effective_sample_size
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


FAST = {"num_particles": 1000, "rounds": 1, "steps": 150, "seed": 0, "progress": False}


@pytest.mark.parametrize("network", ["heads", "shared"])
def test_default_features_make_good_twists(network, tmp_path):
    """The effective share of 400 draws nears that of exact values, and the evidence is right."""
    aligned = align(LM.program(), reward, BETA)
    twist = learn_twists(aligned, network=network, seed=0, progress=False)
    assert twist.widths == [6, 9, 12, 15]
    twist.save(tmp_path / "twist.pt")
    exact = LM.value_function(LM.soft_values(TABLE, BETA))
    shares = []
    for each in (None, load_twist(tmp_path / "twist.pt"), exact):
        options = {"num_particles": 400, "twist": each, "ess_threshold": 1.0, "progress": False}
        runs = [SMC(aligned, seed=seed, check_lineage=False, **options).run() for seed in range(20)]
        ratios = torch.stack([run.log_normalizer for run in runs]).sub(LOG_Z).exp()
        assert abs(float(ratios.mean()) - 1.0) < 5.0 * float(ratios.std()) / math.sqrt(20)
        sizes = [float(effective_sample_size(run.log_weights)) for run in runs]
        shares.append(sum(sizes) / (20 * 400))
    none, found, best = shares
    assert best - found < 0.1 * (best - none)


class Recurrent(torch.nn.Module):
    """Logits of three tokens from a state that decays."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Parameter(torch.randn(3, 3, generator=torch.manual_seed(5)))

    def initial_state(self, batch):
        return torch.zeros(batch, 3)

    def forward(self, tokens, state):
        states = []
        for token in tokens.unbind(-1):
            state = 0.5 * state + torch.nn.functional.one_hot(token, 3)
            states.append(state)
        return torch.stack(states, 1) @ self.table, state


@pytest.mark.parametrize("prompt", [[], [2, 0]])
def test_default_features_serve_networks_that_write(prompt):
    """Values after three tokens, against those by enumeration."""
    lm = NeuralLM(Recurrent(), max_tokens=5, begin_token=0)

    def score(tokens):
        return torch.tensor([0.0, 1.0, 0.2])[tokens].sum(-1)

    twist = learn_twists(align(lm.program(prompt), score, 2.0), **FAST)
    tokens = torch.cartesian_prod(*[torch.arange(3)] * 5)
    whole = torch.cat([torch.tensor(prompt).long().expand(243, -1), tokens], -1)
    law = lm.log_prob(whole, prompt_length=len(prompt)).detach().reshape(27, 9).double()
    beginnings, mass = whole[::9, :-2], law.logsumexp(-1)
    right = (law + 2.0 * score(whole).reshape(27, 9)).logsumexp(-1) - mass
    share = mass.exp()
    gap = twist(Decoding(beginnings, None, 3), len(prompt) + 2) - right
    around = right - share @ right
    assert float(share @ gap.square()) < 0.05 * float(share @ around.square())


def test_widths_that_a_network_cannot_read_are_named():
    def shrinking(carry):
        return carry.tokens[:, -2:].float() if carry.tokens.shape[1] < 4 else one_hot(carry)[:, :1]

    learn_twists(LM.program(), reward=reward, features=shrinking, **{**FAST, "steps": 2})
    with pytest.raises(ValueError, match=r"features= returned 2 columns at step 2 and 1 at step 3"):
        learn_twists(LM.program(), reward=reward, features=shrinking, network="shared", **FAST)
    calls = []

    def random(carry):
        calls.append(1)
        return carry.tokens[:, :1].float().expand(-1, 1 + len(calls) // 6)

    with pytest.raises(ValueError, match=r"features= returned 1 columns at step 1 in one run"):
        learn_twists(LM.program(), reward=reward, features=random, **FAST)
    twist = learned()
    twist.features = lambda carry: carry.tokens.float()
    with pytest.raises(ValueError, match=r"features= must .* \(N, 12\) at step 1, got \(5, 2\)"):
        twist(Decoding(torch.zeros(5, 2).long()), 1)


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
