# SPDX-License-Identifier: Apache-2.0
"""Exact tilts of scalar continuous laws, as pairs of base and reward with random parameters."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import pyro.distributions as dist
import torch

from pyro_tilt.distributions.generalized_logistic import GeneralizedGumbel, GeneralizedLogistic
from pyro_tilt.distributions.truncated_exponential import TruncatedExponential
from pyro_tilt.distributions.truncated_normal import TruncatedNormal
from pyro_tilt.rewards import Linear, LinearIn, Quadratic


@dataclass(frozen=True)
class Case:
    """
    One row: ``build`` returns base and reward in the current default dtype and random state.

    ``kind``: "scalar" (continuous), "count" (integers), "finite" (enumerable), "plane" (two real
    coordinates), "other" (identities only). ``kink`` is where a scalar density is not smooth.
    """

    name: str
    build: Callable[[], tuple]
    kind: str
    kink: float | None = None


def randn(*shape):
    return torch.randn(shape)


def positive(*shape):
    return 0.5 + torch.rand(shape)


def triangular(*shape):
    return 0.4 * torch.randn(shape).tril(-1) + torch.diag_embed(positive(*shape[:-1]))


def slopes(*shape):
    """Slopes of both signs below 0.45 in size, within every radius of the laws below."""
    return 0.9 * (torch.rand(shape) - 0.5)


def linear(theta, event_dim=0, offset=0.3):
    return Linear(theta, event_dim, offset=offset)


def mixture(*batch):
    weights = dist.Categorical(logits=randn(*batch, 3))
    return dist.MixtureSameFamily(weights, dist.Normal(randn(*batch, 3), positive(*batch, 3)))


SCALAR = [
    Case("normal", lambda: (dist.Normal(randn(2, 1), positive(3)), linear(randn(3))), "scalar"),
    Case(
        "normal, reward of more batch dimensions",
        lambda: (dist.Normal(randn(3), 0.7), linear(2 * randn(2, 1))),
        "scalar",
    ),
    Case(
        "normal, quadratic of both signs",
        lambda: (
            dist.Normal(randn(2), positive(2)),
            Quadratic(torch.tensor([0.15, -2.0]), randn(2), 0.4, event_dim=0),
        ),
        "scalar",
    ),
    Case("gamma", lambda: (dist.Gamma(positive(3), positive(3)), linear(slopes(3))), "scalar"),
    Case("exponential", lambda: (dist.Exponential(positive(2)), linear(slopes(2))), "scalar"),
    Case("chi2", lambda: (dist.Chi2(4 * positive(3)), linear(0.8 * slopes(3))), "scalar"),
    Case(
        "laplace",
        lambda: (dist.Laplace(0.2, positive(3)), linear(slopes(3))),
        "scalar",
        kink=0.2,
    ),
    Case(
        "asymmetric laplace",
        lambda: (dist.AsymmetricLaplace(0.2, positive(2), positive(2)), linear(0.5 * slopes(2))),
        "scalar",
        kink=0.2,
    ),
    Case("logistic", lambda: (dist.Logistic(randn(3), positive(3)), linear(slopes(3))), "scalar"),
    Case(
        "skew logistic",
        lambda: (dist.SkewLogistic(randn(2), positive(2), positive(2)), linear(0.7 * slopes(2))),
        "scalar",
    ),
    Case(
        "soft laplace",
        lambda: (dist.SoftLaplace(randn(3), positive(3)), linear(slopes(3))),
        "scalar",
    ),
    Case(
        "generalized logistic",
        lambda: (GeneralizedLogistic(randn(2), 0.5, positive(2), 2.0), linear(slopes(2))),
        "scalar",
    ),
    Case("gumbel", lambda: (dist.Gumbel(randn(3), positive(3)), linear(slopes(3))), "scalar"),
    Case(
        "generalized gumbel",
        lambda: (GeneralizedGumbel(randn(2), 0.5, positive(2)), linear(slopes(2))),
        "scalar",
    ),
    Case(
        "uniform, slopes through zero",
        lambda: (dist.Uniform(-1.0, 0.5 + positive(5)), linear([-30.0, -1e-3, 0.0, 1e-9, 8.0])),
        "scalar",
    ),
    Case(
        "truncated exponential",
        lambda: (TruncatedExponential(randn(2), -1.0, 2.0), linear(3 * randn(2))),
        "scalar",
    ),
    Case(
        "continuous bernoulli",
        lambda: (dist.ContinuousBernoulli(logits=randn(3)), linear(4 * randn(3))),
        "scalar",
    ),
    Case("half normal", lambda: (dist.HalfNormal(positive(3)), linear(3 * randn(3))), "scalar"),
    Case(
        "half normal, quadratic",
        lambda: (
            dist.HalfNormal(positive(2)),
            Quadratic(torch.tensor([-3.0, 0.1]), randn(2), event_dim=0),
        ),
        "scalar",
    ),
    Case(
        "truncated normal",
        lambda: (
            TruncatedNormal(
                3 * randn(4),
                positive(4),
                torch.tensor([0.0, -1.0, -0.3, -9.0]),
                torch.tensor([math.inf, 2.0, 0.3, -3.0]),
            ),
            linear(3 * randn(4)),
        ),
        "scalar",
    ),
    Case(
        "von mises",
        lambda: (dist.VonMises(randn(3), positive(3)), LinearIn(cos=randn(3), sin=randn(3))),
        "scalar",
    ),
    Case(
        "gamma, log",
        lambda: (
            dist.Gamma(1 + positive(3), positive(3)),
            LinearIn(x=slopes(3), log=randn(3).clamp(-1, 2), offset=0.2),
        ),
        "scalar",
    ),
    Case(
        "exponential, log",
        lambda: (dist.Exponential(positive(2)), LinearIn(log=torch.tensor([-0.5, 1.5]))),
        "scalar",
    ),
    Case(
        "inverse gamma",
        lambda: (
            dist.InverseGamma(4 + positive(2), positive(2)),
            LinearIn(reciprocal=torch.tensor([0.3, -2.0]), log=torch.tensor([0.5, -1.0])),
        ),
        "scalar",
    ),
    Case(
        "beta",
        lambda: (
            dist.Beta(1 + positive(3), 1 + positive(3)),
            LinearIn(log=slopes(3), log1m=3 * positive(3), offset=-0.2),
        ),
        "scalar",
    ),
    Case(
        "log normal",
        lambda: (dist.LogNormal(randn(3), 0.5 * positive(3)), LinearIn(log=2 * randn(3))),
        "scalar",
    ),
    Case(
        "pareto",
        lambda: (dist.Pareto(positive(1), 4 + positive(2)), LinearIn(log=slopes(2))),
        "scalar",
    ),
    Case("mixture", lambda: (mixture(2), linear(randn(2))), "scalar"),
    Case("mixture, one slope", lambda: (mixture(), linear(torch.tensor(1.5))), "scalar"),
    Case(
        "mixture, quadratic",
        lambda: (mixture(2), Quadratic(torch.tensor([-2.0, 0.1]), 0.5, event_dim=0)),
        "scalar",
    ),
    Case(
        "mixture of gammas, log",
        lambda: (
            dist.MixtureSameFamily(
                dist.Categorical(logits=randn(2)), dist.Gamma(1 + positive(2), positive(2))
            ),
            LinearIn(x=torch.tensor(0.3), log=torch.tensor(0.5)),
        ),
        "scalar",
    ),
    Case(
        "masked mixture",
        lambda: (
            dist.MaskedMixture(
                torch.tensor([True, False]), dist.Normal(0.0, 1.0), dist.Laplace(0.0, 0.5)
            ),
            linear(torch.tensor([-0.7, 1.0])),
        ),
        "scalar",
        kink=0.0,
    ),
    Case(
        "expanded",
        lambda: (
            dist.torch_distribution.ExpandedDistribution(dist.Normal(0.3, positive(2)), (3, 2)),
            linear(randn(2)),
        ),
        "scalar",
    ),
    Case(
        "affine",
        lambda: (
            dist.TransformedDistribution(
                dist.Gumbel(randn(2), 0.5),
                [
                    dist.transforms.AffineTransform(1.0, 0.5),
                    dist.transforms.AffineTransform(0.3, -1.5),
                ],
            ),
            linear(slopes(2)),
        ),
        "scalar",
    ),
]
