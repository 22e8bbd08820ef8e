# SPDX-License-Identifier: Apache-2.0
"""A language model of short sentences that can be written out in full."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_tilt.language import TabularLM

WORDS = (
    ("hungry", "sleepy", "brave", "tiny", "wealthy", "careful", "noisy", "clever"),
    ("cat", "banker", "child", "river", "engine", "teacher", "bird", "storm"),
    ("sings", "sleeps", "waits", "argues", "counts money", "runs", "dreams", "shouts"),
    (
        "on the mat",
        "at the office",
        "in the forest",
        "under the bridge",
        "at school",
        "by the sea",
        "in the garden",
        "at night",
    ),
)


def phrase_model() -> TabularLM:
    """
    Sentences like "the sleepy cat sleeps on the mat", one of eight words at each of four places.

    Each place looks at the one before, by fixed preferences, so that the sentences are not
    equally likely and :meth:`~pyro_tilt.language.TabularLM.law` holds all 4,096 of them.

    >>> phrase_model().law().shape
    torch.Size([4096])
    """
    return TabularLM.random(8, 4, order=1, scale=0.7, seed=1, dtype=torch.float32)


def sentences(tokens: Tensor) -> list[str]:
    """
    The sentences of sequences of tokens.

    :param tokens: shape ``(n, 4)``.

    >>> sentences(torch.tensor([[1, 0, 1, 0]]))
    ['the sleepy cat sleeps on the mat']
    """
    chosen = ([words[i] for words, i in zip(WORDS, row)] for row in tokens.tolist())
    return [" ".join(["the", *words]) for words in chosen]
