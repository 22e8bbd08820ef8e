# SPDX-License-Identifier: Apache-2.0
"""Weighted means with errors, for the tables of the examples."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_tilt.infer import WeightedSamples

Pair = tuple[float, float]


def mean_of(values: Tensor, weights: Tensor) -> Pair:
    """
    A weighted mean and its standard error by the delta method.

    :param values: shape ``(n,)``.
    :param weights: that sum to one.

    >>> mean_of(torch.tensor([1.0, 3.0]), torch.tensor([0.5, 0.5]))[0]
    2.0
    """
    mean = (weights * values).sum()
    return float(mean), float((weights * (values - mean)).square().sum().sqrt())


def mean_by_chain(values: Tensor, result: WeightedSamples, *, dependent: bool = True) -> Pair:
    """
    The weighted mean; its error from the spread of independent runs where there are several.

    :param values: shape ``(n,)``.
    :param result: whose weights and runs they are.
    :param dependent: whether draws of one run depend on each other, so that only runs compare.
    """
    weights = result.normalized_weights
    mean, error = mean_of(values, weights)
    chains = result.num_chains
    if chains > 1 and dependent:
        parts = (weights * (values - mean)).split(list(result.chain_sizes))
        spread = torch.stack([part.sum() for part in parts]).square().sum()
        error = float((spread * chains / (chains - 1)).sqrt())
    return mean, error
