# SPDX-License-Identifier: Apache-2.0
"""How many independent draws the draws of a Markov chain are worth."""

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
    and the sum cut at the first negative :math:`\hat P_k` and made monotone (Geyer 1992). The
    numbers are those of ``pyro.ops.stats.effective_sample_size``, in linear memory: Pyro builds
    a square matrix of the lags, 20 GB for a chain of 100,000 draws.

    :param Tensor values: draws of shape ``(chains, n, ...)`` with ``n`` of at least 4.
    :return: a float64 tensor of shape ``(...)``; nan for a constant.
    :raises ValueError: for fewer than 4 draws.

    >>> chain_effective_sample_size(torch.tensor([[1.0, -1.0, 1.0, -1.0, 1.0, -1.0]])) > 6
    tensor(True)
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
    total = within * (num - 1) / num
    if chains > 1:
        total = total + values.mean(1).var(0)
    correlation = (total - within + covariance.mean(0)) / total
    correlation[0] = correlation[0] / correlation[0]
    sums = correlation[: num // 2 * 2].unflatten(0, (num // 2, 2)).sum(1)
    positive = (sums[1:] > 0).cumprod(0, dtype=sums.dtype)
    kept = torch.cat([sums[:1], sums[1:].clamp(min=0.0) * positive]).cummin(0).values
    return chains * num / (2.0 * kept.sum(0) - 1.0)
