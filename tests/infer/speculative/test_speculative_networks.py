# SPDX-License-Identifier: Apache-2.0
"""Speculation with networks: laws by enumeration, caches that move with the chosen rows."""

import itertools
import math

import pytest
import torch
from speculative_cases import LEAST, p_value, two_model_blocks
from torch import nn

from pyro_tilt.infer import GSI, RewardShifted, SpeculativeRejection
from pyro_tilt.language import NeuralLM, laws

V, T = 3, 3
STOP = 2
BETA, N, U = 3.0, 3, 0.5


class Recurrent(nn.Module):
    """A GRU of a few units."""

    def __init__(self, seed, units=4):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.embedding = nn.Embedding(V, 3)
            self.recurrent = nn.GRU(3, units, batch_first=True)
            self.head = nn.Linear(units, V)
            nn.init.normal_(self.head.weight, std=1.5)
        self.double()

    def initial_state(self, batch):
        return self.head.weight.new_zeros(batch, 1, self.recurrent.hidden_size)

    def forward(self, tokens, state):
        output, last = self.recurrent(self.embedding(tokens), state.transpose(0, 1).contiguous())
        return self.head(output), last.transpose(0, 1)


OPTIONS = {"max_tokens": T, "begin_token": 0, "stop_token": STOP}
TARGET = NeuralLM(Recurrent(1), temperature=0.7, **OPTIONS)
DRAFT = NeuralLM(Recurrent(2, units=2), temperature=1.3, **OPTIONS)
CODE = torch.tensor([V**2, V, 1])
GRID = torch.tensor(list(itertools.product(range(V), repeat=T)))
TABLE = torch.rand(V**T, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def reward(tokens):
    return TABLE[(tokens * CODE).sum(-1)]


def law(model):
    with torch.no_grad():
        return model.log_prob(GRID).double().exp()


class Enumerated:
    """A model as :func:`two_model_blocks` asks for it."""

    vocabulary_size, length = V, T

    def __init__(self, model):
        self.model = model

    def law(self):
        return law(self.model)


def soft_values():
    values = [BETA * TABLE.reshape((V,) * T)]
    joint = law(TARGET).reshape((V,) * T)
    for _ in range(T):
        mass = joint.sum(-1)
        # What cannot occur is never looked up.
        inner = (values[-1] + (joint / mass.unsqueeze(-1)).log()).logsumexp(-1).nan_to_num()
        values.append(inner)
        joint = mass
    return values[::-1]


@pytest.mark.parametrize("block", [None, 1, 2])
@pytest.mark.parametrize("fallback", ["published", "debiased"])
def test_gsi_of_networks_with_stop_tokens(block, fallback):
    options, soft = {}, soft_values()
    if block is not None:

        def value(carry, t):
            return soft[carry.tokens.shape[-1]][tuple(carry.tokens.unbind(-1))]

        options = {"block": block, "value": value}
    result = GSI(
        TARGET.program(),
        draft=DRAFT.program(),
        reward=reward,
        beta=BETA,
        n=N,
        threshold=U,
        fallback=fallback,
        num_samples=30_000,
        seed=1,
        progress=False,
        **options,
    ).run()

    def rule(draft, target, values):
        keep = ~draft.isnan().any(-1)
        out = torch.zeros_like(draft)
        out[keep] = laws.gsi(
            draft[keep], target[keep], values[keep] / BETA, BETA, N, U, fallback=fallback
        )
        return out

    models = Enumerated(DRAFT), Enumerated(TARGET)
    exact = two_model_blocks(*models, soft, block or T, rule)
    found = (result.samples["tokens"] * CODE).sum(-1)
    assert p_value(found, exact) > LEAST
    ended = result.samples["tokens_finished"]
    assert torch.equal(ended, (result.samples["tokens"] == STOP).any(-1))
    info = result.info
    assert info["draft_network_rows"] + info["target_network_rows"] == result.cost.network_rows


def test_caches_move_with_the_rows_that_are_kept():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=5, n_positions=16, n_embd=8, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=4
    )
    networks = []
    for seed in range(3):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = transformers.GPT2LMHeadModel(config)
            for weight in network.parameters():
                nn.init.normal_(weight, std=0.4)
            networks.append(network.double())

    def programs(cache):
        made = (
            NeuralLM(net, max_tokens=4, begin_token=0, stop_token=4, use_cache=cache)
            for net in networks
        )
        return [each.program(prompt=[1, 3]) for each in made]

    def count(tokens):
        return (tokens == 2).double().sum(-1)

    found = []
    for cache in (True, False):
        target, draft, other = programs(cache)
        options = {"num_samples": 60, "seed": 0, "progress": False}
        guided = GSI(
            target,
            draft=draft,
            reward=count,
            beta=1.0,
            n=3,
            threshold=0.5,
            block=1,
            value=lambda carry, t: count(carry.tokens),
            **options,
        ).run()
        assert 0.0 < guided.info["acceptance_rate"] < 1.0
        shifted = RewardShifted(target, aligned=draft, reference=other, **options).run()
        cut = SpeculativeRejection(
            target, reward=count, score=lambda carry, t: count(carry.tokens), n=8, **options
        ).run()
        found.append([each.samples["tokens"] for each in (guided, shifted, cut)])
    for with_cache, without in zip(*found, strict=True):
        assert torch.equal(with_cache, without)
        assert bool((with_cache[:, :2] == torch.tensor([1, 3])).all())


def test_truncated_drafts_are_refused_where_they_are_weighed():
    options = {"max_tokens": T, "begin_token": 0}
    narrow = NeuralLM(Recurrent(2), top_k=2, **options)
    wide = NeuralLM(Recurrent(1), **options)
    arguments = {"reward": reward, "beta": BETA, "n": N, "num_samples": 50, "seed": 0}
    with pytest.raises(ValueError, match="draft has no mass at 1 values"):
        GSI(wide.program(), draft=narrow.program(), **arguments).run()
    # The other way round the ratio is zero where the target excludes a token.
    result = GSI(narrow.program(), draft=wide.program(), threshold=-5.0, **arguments).run()
    assert bool((narrow.log_prob(result.samples["tokens"]) > -math.inf).all())
