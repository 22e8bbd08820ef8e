# SPDX-License-Identifier: Apache-2.0
"""Every exact tilt as a pair (base, reward) with random parameters; add a row to test one more."""

from contextlib import contextmanager

import pyro
import pyro.distributions as dist
import torch
from scalar_cases import SCALAR, Case, linear, positive, randn, slopes, triangular

import pyro_tilt.distributions.exact  # noqa: F401
from pyro_tilt.distributions.registry import find_tilt
from pyro_tilt.rewards import LinearIn, Quadratic


def plane_mixture():
    parts = dist.MultivariateNormal(2 * randn(3, 2), scale_tril=triangular(3, 2, 2))
    return dist.MixtureSameFamily(dist.Categorical(logits=randn(3)), parts)


def indefinite():
    return torch.tensor([[0.11, -0.2], [-0.2, -1.3]])


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
