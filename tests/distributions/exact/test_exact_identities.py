# SPDX-License-Identifier: Apache-2.0
"""What holds of every exact tilt pointwise: the density identity, shapes, gradients, order."""

import pytest
import torch
from exact_cases import CASES, make
from exact_reference import batch_of, mean_of
from torch.distributions import kl_divergence

from pyro_tilt.distributions.registry import find_tilt
from pyro_tilt.rewards import Linear

pytestmark = pytest.mark.filterwarnings("ignore:Singular sample detected")
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@every_case
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_density_identity(case, dtype):
    base, reward, found = make(case, dtype)
    values = torch.cat([found.law.sample((40,)), base.expand(batch_of(base, reward)).sample((40,))])
    gain = reward(values)
    expected = base.log_prob(values) + gain - found.log_normalizer
    tolerance = 1e-8 if dtype == torch.float64 else 1e-4
    scale = 1 + gain.abs() + base.log_prob(values).abs() + found.log_normalizer.abs()
    assert ((found.law.log_prob(values) - expected).abs() <= tolerance * scale).all()
    assert values.dtype == found.log_normalizer.dtype == dtype or not values.is_floating_point()


@every_case
def test_shapes_support_and_expand(case):
    base, reward, found = make(case)
    law, batch = found.law, batch_of(base, reward)
    assert law.batch_shape == found.log_normalizer.shape == batch
    assert law.event_shape == base.event_shape
    values = law.sample((20,))
    assert values.shape == (20, *batch, *base.event_shape)
    assert base.support.check(values).all()
    assert law.support.check(values).all()
    assert law.support.event_dim == base.support.event_dim
    assert law.support.is_discrete == base.support.is_discrete
    wide = law.expand((2, *batch))
    assert wide.sample((20,)).shape == (20, 2, *batch, *base.event_shape)
    torch.testing.assert_close(wide.log_prob(values.unsqueeze(1))[:, 1], law.log_prob(values))


@every_case
def test_two_steps_make_one(case):
    base, reward, found = make(case)
    first = find_tilt(base, reward * 0.4)
    second = find_tilt(first.law, reward * 0.6)
    torch.testing.assert_close(
        first.log_normalizer + second.log_normalizer, found.log_normalizer, atol=1e-8, rtol=1e-8
    )
    values = found.law.sample((10,))
    torch.testing.assert_close(
        second.law.log_prob(values), found.law.log_prob(values), atol=1e-8, rtol=1e-8
    )


LINEAR = [
    case for case in CASES if isinstance(make(case)[1], Linear) and "mixture" not in case.name
]
linear_case = pytest.mark.parametrize("case", LINEAR, ids=lambda case: case.name)


@linear_case
def test_gradient_of_log_normalizer_is_the_tilted_mean(case):
    base, reward, _ = make(case)
    theta = reward.theta.clone().requires_grad_()
    found = find_tilt(base, Linear(theta, reward.event_dim, offset=reward.offset))
    (gradient,) = torch.autograd.grad(found.log_normalizer.sum(), theta)
    mean = mean_of(found.law)
    torch.testing.assert_close(gradient, mean.sum_to_size(theta.shape), atol=1e-8, rtol=1e-7)


@linear_case
def test_raising_theta_raises_the_mean_reward(case):
    base, reward, _ = make(case)
    gains = [
        (mean_of(find_tilt(base, scaled).law) * reward.theta).detach()
        for scaled in (reward * -0.5, reward * 0.5, reward)
    ]
    events = tuple(range(-reward.event_dim, 0))
    gains = [gain.sum(events) if events else gain for gain in gains]
    moving = ~torch.isclose(gains[2], gains[0], atol=1e-9)
    assert moving.any() or "certain" in case.name
    assert (gains[0] <= gains[1] + 1e-12).all() and (gains[1] <= gains[2] + 1e-12).all()
    assert (gains[0] < gains[1])[moving].all() and (gains[1] < gains[2])[moving].all()


def divergence_of(case):
    """torch's own KL divergence of tilt from base, None where torch knows none or clamps zeros."""
    base, _, found = make(case)
    try:
        return None if "certain" in case.name else kl_divergence(found.law, base)
    except NotImplementedError:
        return None


@pytest.mark.parametrize(
    "case",
    [case for case in LINEAR if divergence_of(case) is not None],
    ids=lambda case: case.name,
)
def test_kl_from_the_normalizer(case):
    base, reward, _ = make(case)
    theta = reward.theta.clone().requires_grad_()
    found = find_tilt(base, Linear(theta, reward.event_dim))
    (gradient,) = torch.autograd.grad(found.log_normalizer.sum(), theta)
    kl = (theta * gradient).sum() - found.log_normalizer.sum()
    torch.testing.assert_close(kl, divergence_of(case).sum(), atol=1e-8, rtol=1e-7)
