# SPDX-License-Identifier: Apache-2.0
"""Small networks whose laws are known."""

import torch
from torch import nn

from pyro_tilt.language import NeuralLM, TabularLM

BEGIN, STOP, SIZE = 3, 1, 4


class TwoBack(nn.Module):
    """Logits are a table of the last two tokens; the state is the one before the last, one-hot."""

    def __init__(self, seed=0, scale=1.5):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        table = scale * torch.randn(SIZE, SIZE, SIZE, generator=generator, dtype=torch.float64)
        table[..., BEGIN] = -torch.inf
        self.table = nn.Parameter(table, requires_grad=False)

    def initial_state(self, batch):
        state = self.table.new_zeros(batch, SIZE)
        state[:, BEGIN] = 1.0
        return {"before": (state,)}

    def forward(self, tokens, state):
        before = torch.cat([state["before"][0].argmax(-1, keepdim=True), tokens[:, :-1]], -1)
        last = nn.functional.one_hot(tokens[:, -1], SIZE).to(self.table)
        return self.table[before, tokens], {"before": (last,)}


def both(length=4, seed=0, temperature=1.0, stop=True):
    """The same law as a network and as a table."""
    net = TwoBack(seed)
    stop_token = STOP if stop else None
    options = {"temperature": temperature, "stop_token": stop_token}
    neural = NeuralLM(net, max_tokens=length, begin_token=BEGIN, **options)
    tables = [net.table[BEGIN, BEGIN], net.table[BEGIN], net.table][: min(3, length)]
    return neural, TabularLM(tables, length, **options)


def tiny_gpt2(seed=0, context=16, size=11):
    """A GPT-2 with random weights, large enough that the past matters."""
    transformers = __import__("transformers")
    torch.manual_seed(seed)
    config = transformers.GPT2Config(
        vocab_size=size, n_positions=context, n_embd=24, n_layer=2, n_head=3,
        initializer_range=0.5, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    # In training mode its dropout is on, as the class comes.
    return transformers.GPT2LMHeadModel(config).train()
