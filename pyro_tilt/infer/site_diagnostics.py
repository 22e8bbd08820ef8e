# SPDX-License-Identifier: Apache-2.0
"""Effective sample sizes and R-hat by site, in the form of Pyro's MCMC."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from pyro.ops.stats import split_gelman_rubin
from torch import Tensor

from pyro_tilt.ops.autocorrelation import chain_effective_sample_size
from pyro_tilt.ops.importance import as_double, normalize

if TYPE_CHECKING:
    from pyro_tilt.infer.weighted_samples import WeightedSamples


def site_diagnostics(result: WeightedSamples) -> dict[str, Any]:
    r"""
    ``n_eff`` and ``r_hat`` of every site, with divergences (none) and acceptance rate by chain.

    For weights :math:`\bar w` that sum to one, :math:`n_\mathrm{eff} = \sum_i \bar w_i (f_i -
    \bar f)^2 / \sum_i \bar w_i^2 (f_i - \bar f)^2`; a Markov chain takes Pyro's estimate from
    autocorrelations. R-hat compares the weighted means of the chains with their variance.

    :param result: the draws.
    :returns: site name to ``{"n_eff": ..., "r_hat": ...}``, each of the site's shape.
    """
    log_weights = result.analysis_log_weights()
    if log_weights is None:
        log_weights = torch.zeros_like(result.log_weights)
    found: dict[str, Any] = {}
    for name, value in result.samples.items():
        value = as_double(value)
        if result.kind == "chain":
            found[name] = _of_chain(value, result.chain_sizes)
        else:
            found[name] = _of_particles(value, log_weights.to(value.device), result.chain_sizes)
    chains = range(result.num_chains)
    found["divergences"] = {f"chain {chain}": [] for chain in chains}
    if "acceptance_rate" in result.info:
        rate = result.info["acceptance_rate"]
        found["acceptance rate"] = {f"chain {chain}": rate for chain in chains}
    return found


def _moments(value: Tensor, log_weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weighted mean and variance, and the effective sample size of the mean."""
    probs = normalize(log_weights)
    value, probs = value[probs > 0], probs[probs > 0]
    mean = torch.tensordot(probs, value, dims=1)
    squares = (value - mean) ** 2
    variance = torch.tensordot(probs, squares, dims=1)
    return mean, variance, variance / torch.tensordot(probs * probs, squares, dims=1)


def _of_particles(value: Tensor, log_weights: Tensor, sizes: tuple[int, ...]) -> dict[str, Tensor]:
    _, variance, n_eff = _moments(value, log_weights)
    if len(sizes) == 1:
        return {"n_eff": n_eff, "r_hat": torch.full_like(variance, torch.nan)}
    parts = zip(torch.split(value, list(sizes)), torch.split(log_weights, list(sizes)))
    chains = [_moments(part, weights) for part, weights in parts]
    means, variances, counts = (torch.stack(list(column)) for column in zip(*chains))
    within = variances.mean(0)
    r_hat = (1.0 - 1.0 / counts.mean(0) + means.var(0) / within).sqrt()
    return {"n_eff": n_eff, "r_hat": r_hat}


def _of_chain(value: Tensor, sizes: tuple[int, ...]) -> dict[str, Tensor]:
    shortest = min(sizes)
    if shortest < 4:
        nan = torch.full_like(value[0], torch.nan)
        return {"n_eff": nan, "r_hat": nan.clone()}
    chains = torch.stack([part[-shortest:] for part in torch.split(value, list(sizes))])
    return {"n_eff": chain_effective_sample_size(chains), "r_hat": split_gelman_rubin(chains)}
