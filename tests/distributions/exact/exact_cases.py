# SPDX-License-Identifier: Apache-2.0
"""Every exact tilt as a pair (base, reward) with random parameters; add a row to test one more."""

import math
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch

import pyro_tilt.distributions.exact  # noqa: F401
from pyro_tilt.distributions.generalized_logistic import GeneralizedGumbel, GeneralizedLogistic
from pyro_tilt.distributions.registry import find_tilt
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


def plane_mixture():
    parts = dist.MultivariateNormal(2 * randn(3, 2), scale_tril=triangular(3, 2, 2))
    return dist.MixtureSameFamily(dist.Categorical(logits=randn(3)), parts)


def indefinite():
    return torch.tensor([[0.11, -0.2], [-0.2, -1.3]])


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

DISCRETE = [
    Case(
        "bernoulli",
        lambda: (
            dist.Bernoulli(torch.tensor([0.01, 0.5])),
            linear(torch.tensor([6.0, -2.0])),
        ),
        "finite",
    ),
    Case(
        "bernoulli, certain",
        lambda: (dist.Bernoulli(torch.tensor([0.0, 1.0])), linear(torch.tensor([20.0, -20.0]))),
        "other",
    ),
    Case(
        "binomial",
        lambda: (dist.Binomial(5, logits=randn(3)), linear(randn(3))),
        "finite",
    ),
    Case(
        "categorical",
        lambda: (dist.Categorical(torch.tensor([0.2, 0.0, 0.8])), linear(randn(2))),
        "finite",
    ),
    Case(
        "one hot",
        lambda: (dist.OneHotCategorical(logits=randn(2, 4)), linear(2 * randn(2, 4), 1)),
        "finite",
    ),
    Case(
        "one hot, straight through",
        lambda: (dist.OneHotCategoricalStraightThrough(logits=randn(4)), linear(randn(4), 1)),
        "finite",
    ),
    Case(
        "multinomial",
        lambda: (
            dist.Multinomial(4, probs=torch.tensor([0.2, 0.5, 0.0, 0.3])),
            linear(2 * randn(4), 1),
        ),
        "multinomial",
    ),
    Case("poisson", lambda: (dist.Poisson(3 * positive(3)), linear(randn(3))), "count"),
    Case(
        "negative binomial",
        lambda: (
            dist.NegativeBinomial(torch.tensor([3.0, 1.5]), torch.tensor([0.3, 0.6])),
            linear(torch.tensor([0.8, -1.0])),
        ),
        "count",
    ),
    Case(
        "geometric",
        lambda: (dist.Geometric(torch.tensor([0.3, 0.6])), linear(torch.tensor([0.2, -1.0]))),
        "count",
    ),
    Case(
        "zero inflated",
        lambda: (
            dist.ZeroInflatedPoisson(3 * positive(2), gate=torch.tensor([0.2, 0.7])),
            linear(slopes(2)),
        ),
        "count",
    ),
]

PLANE = [
    Case(
        "multivariate normal",
        lambda: (
            dist.MultivariateNormal(randn(3, 2), scale_tril=triangular(2, 2)),
            linear(randn(3, 2), 1),
        ),
        "plane",
    ),
    Case(
        "low rank normal",
        lambda: (
            dist.LowRankMultivariateNormal(randn(2), randn(2, 1), positive(2)),
            linear(randn(2, 2), 1),
        ),
        "plane",
    ),
    Case(
        "multivariate normal, quadratic",
        lambda: (
            dist.MultivariateNormal(randn(2, 2), scale_tril=0.8 * triangular(2, 2)),
            Quadratic(torch.stack([indefinite(), -indefinite().mT @ indefinite()]), randn(2), 0.2),
        ),
        "plane",
    ),
    Case(
        "low rank normal, quadratic",
        lambda: (
            dist.LowRankMultivariateNormal(randn(2), 0.5 * randn(2, 1), 0.5 * positive(2)),
            Quadratic(indefinite(), randn(2)),
        ),
        "plane",
    ),
    Case(
        "independent normal, quadratic",
        lambda: (
            dist.Normal(randn(2, 2), 0.8 * positive(2)).to_event(1),
            Quadratic(indefinite(), randn(2)),
        ),
        "plane",
    ),
    Case("mixture of planes", lambda: (plane_mixture(), linear(randn(2), 1)), "plane"),
    Case(
        "mixture of planes, quadratic",
        lambda: (plane_mixture(), Quadratic(0.5 * indefinite(), randn(2))),
        "plane",
    ),
    Case(
        "diagonal mixture",
        lambda: (
            dist.MixtureOfDiagNormals(randn(3, 2), positive(3, 2), randn(3)),
            linear(randn(2), 1),
        ),
        "plane",
    ),
    Case(
        "diagonal mixture, quadratic",
        lambda: (
            dist.MixtureOfDiagNormals(randn(3, 2), 0.8 * positive(3, 2), randn(3)),
            Quadratic(indefinite(), randn(2)),
        ),
        "plane",
    ),
    Case(
        "shared mixture",
        lambda: (
            dist.MixtureOfDiagNormalsSharedCovariance(randn(3, 2), positive(2), randn(3)),
            linear(randn(2), 1),
        ),
        "plane",
    ),
    Case(
        "independent gumbels",
        lambda: (dist.Gumbel(randn(3, 2), 0.3 * positive(2)).to_event(1), linear(slopes(2), 1)),
        "plane",
    ),
]

OTHER = [
    Case(
        "dirichlet",
        lambda: (
            dist.Dirichlet(1 + positive(2, 3)),
            LinearIn(1, log=torch.tensor([0.5, -0.7, 3.0])),
        ),
        "other",
    ),
    Case(
        "wishart",
        lambda: (
            dist.Wishart(torch.tensor([4.0, 5.5]), scale_tril=0.5 * triangular(2, 3, 3)),
            linear(0.1 * randn(3, 3), 2),
        ),
        "other",
    ),
    Case(
        "independent gammas, two event dimensions",
        lambda: (
            dist.Gamma(2 * positive(2, 3, 4), positive(3, 4)).to_event(2),
            LinearIn(2, x=slopes(3, 4), log=slopes(2, 3, 4)),
        ),
        "other",
    ),
    Case(
        "independent multivariate normals",
        lambda: (
            dist.MultivariateNormal(randn(2, 3, 4), torch.eye(4)).to_event(1),
            linear(randn(3, 4), 2),
        ),
        "other",
    ),
    Case(
        "independent categoricals",
        lambda: (dist.OneHotCategorical(logits=randn(5, 3)).to_event(1), linear(randn(5, 3), 2)),
        "other",
    ),
    Case(
        "affine vector",
        lambda: (
            dist.TransformedDistribution(
                dist.Normal(randn(2, 3), 1.0).to_event(1),
                dist.transforms.AffineTransform(randn(3), positive(3), event_dim=1),
            ),
            linear(randn(3), 1),
        ),
        "other",
    ),
]

CASES = SCALAR + DISCRETE + PLANE + OTHER


@contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def make(case, dtype=torch.float64, seed=7):
    """Base, reward and their exact tilt."""
    pyro.set_rng_seed(seed)
    with default_dtype(dtype):
        base, reward = case.build()
    found = find_tilt(base, reward)
    assert found is not None, case.name
    assert found.method == "closed form"
    return base, reward, found
