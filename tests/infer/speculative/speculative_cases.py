# SPDX-License-Identifier: Apache-2.0
"""Pairs of enumerable models, and the exact laws of block-by-block rules over them."""

import math

import torch

from pyro_tilt.language import TabularLM
from pyro_tilt.testing.gates import chi_square as p_value

__all__ = ["p_value"]

DRAWS, LEAST = 200_000, 1e-4

# Temperatures other than 1, so that a ratio of untempered probabilities is wrong.
TARGET = TabularLM.random(3, 3, seed=1, temperature=0.8)
DRAFT = TabularLM.random(3, 3, seed=2, temperature=1.6)
TABLE = torch.rand(27, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
# Ties, and one excluded sequence.
TABLE[4::9] = TABLE[4]
TABLE[11] = -math.inf
BETA = 3.0


def reward(tokens):
    return TABLE[TARGET.index(tokens)]


def rows(result):
    return TARGET.index(result.samples["tokens"])


def two_model_blocks(draft, target, values, block, rule):
    """The law of blocks, where ``rule`` maps two block laws and values to the law of a block."""
    size, length = target.vocabulary_size, target.length
    laws = [model.law().reshape((size,) * length) for model in (draft, target)]
    law = torch.ones(1, dtype=torch.float64)
    for start in range(0, length, block):
        end = min(start + block, length)
        given = []
        for each in laws:
            upto = each.reshape(size**end, -1).sum(-1).reshape(size**start, -1)
            given.append(upto / upto.sum(-1, keepdim=True))
        law = (law[:, None] * rule(*given, values[end].reshape(size**start, -1))).flatten()
    return law
