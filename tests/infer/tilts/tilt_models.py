# SPDX-License-Identifier: Apache-2.0
"""A mixture with exact draws of its tilts, and what the tests compare against."""

import contextlib
from unittest import mock

import pyro.distributions as dist
import torch
from scipy import stats

from pyro_tilt import diffusion
from pyro_tilt.testing.gates import P_VALUE

F64 = torch.float64
WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=F64)
LOCS = torch.tensor([[-2.0, 0.0, 0.4], [1.5, 1.5, -0.3], [1.0, -2.0, 0.8]], dtype=F64)
SCALES = torch.tensor([[0.6, 0.5, 0.7], [0.4, 0.6, 0.9], [0.5, 0.3, 0.8]], dtype=F64)


def mixture(dims=2):
    parts = dist.Normal(LOCS[:, :dims], SCALES[:, :dims]).to_event(1)
    return dist.MixtureSameFamily(dist.Categorical(WEIGHTS), parts)


def model(dims=2, steps=20, schedule=None):
    return diffusion.MixtureDiffusion(mixture(dims), schedule or diffusion.VP.linear(steps))


def network(dims=2, steps=40):
    """The same law behind a network, of which neither normalisers nor tilted laws are known."""
    schedule = diffusion.VP.linear(steps)
    base = diffusion.MixtureDiffusion(mixture(dims), schedule)
    return diffusion.NetworkDiffusion(
        lambda x, t: base.denoise(x, schedule.level(float(t.reshape(-1)[0]))),
        schedule,
        (dims,),
        prediction="x0",
        dtype=F64,
    )


def tilted_draws(base, theta, n=None, **_):
    """Exact draws of the linear tilts in place of runs of the diffusion."""
    law = base.mixture
    parts = law.component_distribution
    loc, variance = parts.mean.to(F64), parts.variance.to(F64)
    theta = theta.to(F64)
    logits = law.mixture_distribution.logits.to(F64) + theta @ loc.T
    logits = logits + 0.5 * theta.square() @ variance.T
    picks = torch.distributions.Categorical(logits=logits).sample()
    spread = variance[picks]
    return (loc[picks] + spread * theta + spread.sqrt() * torch.randn_like(theta)).to(base.dtype)


@contextlib.contextmanager
def exact_draws():
    """Inside, every family draws its tilts exactly: no discretisation of time."""
    with mock.patch("pyro_tilt.infer.tilts.convex_family.linear_tilt_draws", tilted_draws):
        yield


def gate_bins(values, probabilities, edges):
    """Chi-square of one-dimensional draws against bin probabilities, gate P_VALUE."""
    counts = torch.histogram(values.double().cpu(), edges.double())[0]
    outside = len(values) - counts.sum()
    expected = probabilities * len(values)
    rest = max(float(len(values) - expected.sum()), 0.0)
    statistic = float(((counts - expected).square() / expected).sum())
    freedom = len(counts) - 1
    if rest > 1.0:
        statistic += (float(outside) - rest) ** 2 / rest
        freedom += 1
    assert stats.chi2.sf(statistic, freedom) > P_VALUE


def gate_mixture(draws, law, direction, bins=20):
    """Chi-square of a projection of draws against that of a Gaussian mixture."""
    parts = law.component_distribution
    weights = law.mixture_distribution.probs
    mean = parts.mean @ direction
    if hasattr(parts, "covariance_matrix"):
        spread = torch.einsum("d,kde,e->k", direction, parts.covariance_matrix, direction).sqrt()
    else:
        spread = (parts.variance @ direction.square()).sqrt()

    def cdf(x):
        return (weights * torch.special.ndtr((x[:, None] - mean) / spread)).sum(-1)

    values = draws.double() @ direction
    p = cdf(values)
    edges = torch.linspace(0.0, 1.0, bins + 1, dtype=F64)
    gate_bins(p, torch.full((bins,), 1.0 / bins, dtype=F64), edges)
