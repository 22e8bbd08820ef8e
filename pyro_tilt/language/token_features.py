# SPDX-License-Identifier: Apache-2.0
"""What was written, as numbers that a network can read."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["token_features"]

# A larger vocabulary is told by the binary digits of its tokens.
MAX_INDICATORS = 64
# Columns for the places of tokens; those further back are only counted.
MAX_COLUMNS = 512


def token_features(tokens: Tensor, vocabulary_size: int) -> Tensor:
    """
    Sequences as features: how often each token occurs, and which one stands where.

    The number of a token says nothing by its size. Up to 64 tokens there are the counts of all of
    them, then indicators of the last one, of the one before it, and so on back, as far as 512
    columns reach. Of a larger vocabulary there are, in the same order, the binary digits of the
    tokens instead, and no counts.

    :param tokens: shape ``(N, ..., t)``, whose axes between the particles and t are of size one.
    :param vocabulary_size: number of tokens V.
    :returns: shape ``(N, d)``, float32, where d grows with t until the columns are full.

    >>> token_features(torch.tensor([[0, 2]]), 3)  # counts, the last token, the one before
    tensor([[1., 0., 1., 0., 0., 1., 1., 0., 0.]])
    >>> token_features(torch.tensor([[5]]), 1000)
    tensor([[1., 0., 1., 0., 0., 0., 0., 0., 0., 0.]])
    """
    rows = tokens.reshape(-1, tokens.shape[-1])
    if vocabulary_size > MAX_INDICATORS:
        width = (vocabulary_size - 1).bit_length()
        last = rows.flip(-1)[:, : MAX_COLUMNS // width].unsqueeze(-1)
        digits = (last >> torch.arange(width, device=rows.device)) & 1
        return digits.flatten(1).float()
    last = rows.flip(-1)[:, : MAX_COLUMNS // vocabulary_size]
    counts = torch.zeros(len(rows), vocabulary_size, device=rows.device)
    counts.scatter_add_(1, rows, torch.ones(rows.shape, device=rows.device))
    places = nn.functional.one_hot(last, vocabulary_size).flatten(1)
    return torch.cat([counts, places.float()], -1)
