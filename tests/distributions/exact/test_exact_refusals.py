# SPDX-License-Identifier: Apache-2.0
"""Tilts that do not exist raise with the bound and the offending value; others are declined."""

import pyro.distributions as dist
import pytest
import torch

import pyro_tilt.distributions.exact  # noqa: F401
from pyro_tilt.distributions.exact import heavy_tails, normal
from pyro_tilt.distributions.generalized_logistic import GeneralizedGumbel
from pyro_tilt.distributions.registry import find_tilt
from pyro_tilt.rewards import Linear, LinearIn, Quadratic

tensor = torch.tensor
pair = tensor([0.5, 3.0])


def slope(theta):
    return Linear(theta, 0)


MISSING = [
    (dist.Gamma(2.0, tensor(1.5)), slope(1.5), "theta < rate, but theta = 1.5, rate = 1.5"),
    (dist.Exponential(tensor([9.0, 2.0])), slope(pair), r"theta = 3, rate = 2 at index \(1,\)"),
    (dist.Chi2(tensor(3.0)), slope(0.6), "rate = 0.5"),
    (dist.Laplace(0.0, tensor(0.5)), slope(-2.0), "theta > -1 / left scale.*bound = -2"),
    (dist.Laplace(0.0, tensor([1.0, 0.5])), slope(pair), r"bound = 2 at index \(1,\)"),
    (dist.AsymmetricLaplace(0.0, tensor(1.0), 0.5), slope(0.5), "bound = 0.5"),
    (dist.Logistic(0.0, tensor(0.5)), slope(2.5), "theta = 2.5, rate = 2"),
    (dist.SkewLogistic(0.0, tensor(1.0), 0.5), slope(-0.5), "left tail.*rate = 0.5"),
    (dist.SoftLaplace(0.0, tensor(1.0)), slope(1.0), "rate = 1"),
    (dist.Gumbel(0.0, tensor([0.5, 0.5])), slope(pair), r"theta = 3, rate = 2 at index \(1,\)"),
    (GeneralizedGumbel(0.0, 1.0, tensor(0.3)), slope(0.3), "rate = 0.3"),
    (dist.NegativeBinomial(3, tensor(0.5)), slope(0.7), "theta = 0.7, bound = 0.693147"),
    (dist.Geometric(tensor(0.5)), slope(0.7), "bound = 0.693147"),
    (dist.Poisson(tensor(1.0)), slope(89.0), "bound = 88.7"),
    (dist.Cauchy(0.0, tensor(1.0)), slope(-1e-3), "bound is 0.*theta = -0.001"),
    (dist.StudentT(tensor(30.0)), slope(0.1), "power laws"),
    (dist.MultivariateStudentT(3.0, torch.zeros(2), torch.eye(2)), Linear(pair), "power laws"),
    (dist.HalfCauchy(tensor(1.0)), slope(0.1), "theta <= 0 .*theta = 0.1"),
    (dist.LogNormal(0.0, tensor(1.0)), slope(0.1), "theta <= 0"),
    (dist.Pareto(1.0, tensor(9.0)), slope(0.1), "theta <= 0"),
    (dist.InverseGamma(2.0, tensor(1.0)), slope(0.1), "theta <= 0"),
    (dist.FisherSnedecor(2.0, tensor(3.0)), slope(0.1), "theta <= 0"),
    (dist.Weibull(1.0, tensor(0.5)), slope(0.1), "theta <= 0.*concentration = 0.5"),
    (dist.Weibull(0.5, tensor(1.0)), slope(2.0), "theta = 2, bound = 2"),
    (dist.Gamma(2.0, tensor(1.0)), LinearIn(log=-2.0), "coefficient = -2, concentration = 2"),
    (dist.Beta(0.5, tensor(1.0)), LinearIn(log1m=-1.0), r"log\(1 - x\) > -concentration"),
    (dist.Dirichlet(torch.ones(2)), LinearIn(1, log=-pair), r"-3, concentration = 1 at index"),
    (dist.InverseGamma(2.0, tensor(1.0)), LinearIn(reciprocal=1.0), "rate = 1"),
    (dist.Pareto(1.0, tensor(0.7)), LinearIn(log=0.7), "alpha = 0.7"),
    (dist.Normal(0.0, tensor([1.0, 2.0])), Quadratic(tensor(0.125)), r"bound = 0.125 at index"),
    (dist.HalfNormal(tensor(1.0)), Quadratic(tensor(0.6)), "bound = 0.5"),
    (
        dist.MultivariateNormal(torch.zeros(2), torch.eye(2)),
        Quadratic(torch.stack([-torch.eye(2), torch.diag(tensor([0.2, 0.6]))])),
        r"smallest eigenvalue = -0.2 at index \(1,\) of shape \(2,\)",
    ),
    (dist.Normal(0.0, torch.ones(2)).to_event(1), Quadratic(torch.eye(2)), "eigenvalue = -1"),
    (dist.Wishart(tensor(4.0), torch.eye(2)), Linear(torch.eye(2)), "eigenvalue = -1"),
    (
        dist.MixtureSameFamily(
            dist.Categorical(torch.ones(2)), dist.Gamma(2.0, tensor([1.0, 0.5]))
        ),
        slope(0.7),
        r"component of MixtureSameFamily.*theta = 0.7, rate = 0.5 at index \(1,\)",
    ),
    (dist.Gumbel(torch.zeros(2), 0.5).to_event(1), Linear(pair), r"theta = 3, rate = 2 at index"),
    (dist.Delta(tensor(0.0)), LinearIn(log=1.0), "point is -inf"),
    (dist.Normal(torch.zeros(2), 1.0).to_event(1), Linear(torch.ones(3)), r"\(3,\).*\(2,\)"),
    (dist.Normal(torch.zeros(2), 1.0), slope(torch.ones(3)), "does not broadcast"),
]


@pytest.mark.parametrize("base, reward, message", MISSING, ids=lambda part: type(part).__name__)
def test_refused(base, reward, message):
    with pytest.raises(ValueError, match=message):
        find_tilt(base, reward)


@pytest.mark.parametrize(
    "base",
    [
        dist.HalfCauchy(tensor(1.0)),
        dist.LogNormal(0.0, tensor(1.0)),
        dist.Pareto(1.0, tensor(2.0)),
        dist.InverseGamma(2.0, tensor(1.0)),
        dist.FisherSnedecor(2.0, tensor(3.0)),
        dist.Weibull(1.0, tensor(0.5)),
    ],
    ids=lambda base: type(base).__name__,
)
def test_falling_tilt_of_heavy_tail_has_no_closed_form(base):
    rule = heavy_tails.weibull_linear if isinstance(base, dist.Weibull) else None
    rule = rule or heavy_tails.right_heavy_linear
    assert rule(base, slope(-0.5)) is None
    unmoved = rule(base, Linear(0.0, 0, offset=0.7))
    assert unmoved.law is base
    assert unmoved.log_normalizer.item() == pytest.approx(0.7)


def test_rewards_of_other_event_dimensions_are_declined():
    base, reward = dist.Normal(torch.zeros(3), 1.0), Linear(torch.ones(3))
    assert normal.normal_linear(base, reward) is None
