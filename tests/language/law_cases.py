# SPDX-License-Identifier: Apache-2.0
"""Random models and brute force for the tests of the laws."""

import itertools
import math

import torch

from pyro_tilt.testing.gates import chi_square

__all__ = ["chi_square"]

# Gate of chi-square tests of 200,000 draws, at fixed seeds.
P_VALUE = 1e-4
DRAWS = 200_000


def random_models(count, size, seed, *, ties=False):
    """Laws (count, size), a second set of laws, and rewards in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)

    def law():
        scores = 1.5 * torch.randn(count, size, generator=generator, dtype=torch.float64)
        return scores.softmax(-1)

    rewards = torch.rand(count, size, generator=generator, dtype=torch.float64)
    if ties:
        rewards = (4.0 * rewards).floor() / 3.0
    return law(), law(), rewards


def by_enumeration(base, n, choose):
    """The law of a choice among n draws; ``choose`` gives (place, probability) pairs."""
    law = torch.zeros_like(base)
    for draws in itertools.product(range(len(base)), repeat=n):
        chance = math.prod(float(base[i]) for i in draws)
        for place, kept in choose(draws):
            law[draws[place]] += chance * kept
    return law


def kl(law, base):
    terms = torch.where(law > 0, law * (law.log() - base.log()), torch.zeros_like(law))
    return terms.sum(-1)
