# SPDX-License-Identifier: Apache-2.0
"""How many independent draws the draws of a Markov chain are worth."""

import math

import torch
from torch import Tensor

from .importance import as_double

__all__ = ["chain_effective_sample_size"]


def chain_effective_sample_size(values: Tensor) -> Tensor:
    r"""
    Effective sample size of the mean over Markov chains.

    .. math:: n_\mathrm{eff} = \frac{Cn}{\hat\tau}, \qquad
        \hat\tau = -1 + 2 \sum_k \hat P_k, \qquad \hat P_k = \hat\rho_{2k} + \hat\rho_{2k+1},

    with the autocorrelations :math:`\hat\rho` of Stan, which fall less where the chains differ,
    and the sum cut at the first negative :math:`\hat P_k` and made monotone (Geyer 1992). As in
    Stan, antithetic chains count at most :math:`Cn \log_{10}(Cn)` draws. The numbers are otherwise
    those of ``pyro.ops.stats.effective_sample_size``, in linear memory: Pyro builds a square
    matrix of the lags, 20 GB for a chain of 100,000 draws.

    :param Tensor values: draws of shape ``(chains, n, ...)`` with ``n`` of at least 4.
    :return: a float64 tensor of shape ``(...)``; nan for a constant.
    :raises ValueError: for fewer than 4 draws.

    >>> once = torch.tensor([[0.3, 1.2, -0.5, -1.0, 0.6, 0.9, -1.3, 0.1]])
    >>> twice = once.repeat_interleave(2, dim=1)
    >>> bool(chain_effective_sample_size(twice) < chain_effective_sample_size(once) * 2)
    True
    """
    if values.dim() < 2 or values.shape[1] < 4:
        raise ValueError(f"values must be (chains, n >= 4, ...); got {tuple(values.shape)}")
    values = as_double(values)
    chains, num = values.shape[:2]
    centered = values - values.mean(1, keepdim=True)
    spectrum = torch.fft.rfft(centered, n=2 * num, dim=1)
    power = spectrum.real**2 + spectrum.imag**2
    products = torch.fft.irfft(power, n=2 * num, dim=1)[:, :num]
    pairs = torch.arange(num, 0, -1, dtype=values.dtype, device=values.device)
    covariance = products / pairs.reshape(1, num, *[1] * (values.dim() - 2))
    within = centered.square().sum(1).mean(0) / (num - 1)
    spread = within * (num - 1) / num
    if chains > 1:
        total = spread + values.mean(1).var(0)
        correlation = (total - within + covariance.mean(0)) / total
    else:
        correlation = covariance[0] / spread
    correlation[0] = correlation[0] / correlation[0]
    sums = correlation[: num // 2 * 2].unflatten(0, (num // 2, 2)).sum(1)
    tail = sums[1:].clamp(min=0.0).cummin(0).values.sum(0)
    time = 2.0 * (sums[0] + tail) - 1.0
    return chains * num / time.clamp(min=1.0 / math.log10(chains * num))
