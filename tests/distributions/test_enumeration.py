# SPDX-License-Identifier: Apache-2.0
"""Enumerable bases with any reward, against sums written out in numpy."""

import math

import numpy as np
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from torch.distributions import kl_divergence

from pyro_tilt import rewards
from pyro_tilt.distributions import Tilted

# Each goodness-of-fit test fails a right sampler with this probability; seeds are fixed.
GATE = 1e-6


def wiggle(x):
    return torch.sin(1.7 * x) + 0.3 * x


def bases(dtype):
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 3, 5, generator=generator).to(dtype)
    return {
        "Bernoulli": dist.Bernoulli(logits=logits),
        "Categorical": dist.Categorical(logits=logits),
        "Binomial": dist.Binomial(6, logits=logits[..., 0]),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["Bernoulli", "Categorical", "Binomial"])
def test_normaliser_moments_entropy_and_kl_are_sums(name, dtype):
    base = bases(dtype)[name]
    beta = torch.tensor([0.5, -2.0, 3.0], dtype=dtype)
    beta = beta[:, None] if name == "Bernoulli" else beta
    tilted = Tilted(base, lambda x: wiggle(x.to(dtype)), beta)
    assert tilted.exact_tilt().method == "enumeration"
    support = base.enumerate_support()
    log_p = base.log_prob(support).double()
    x = support.double()
    scores = log_p + tilted.beta.double() * wiggle(x)
    tol = 1e-5 if dtype == torch.float32 else 1e-12
    log_z = scores.numpy()
    log_z = np.log(np.exp(log_z).sum(0))
    q = np.exp(scores.numpy() - log_z)
    mean = (q * x.numpy()).sum(0)
    assert tilted.log_normalizer.dtype == dtype
    assert tilted.log_normalizer.shape == base.batch_shape
    np.testing.assert_allclose(tilted.log_normalizer, log_z, atol=tol)
    np.testing.assert_allclose(tilted.mean, mean, atol=tol)
    np.testing.assert_allclose(tilted.variance, (q * (x.numpy() - mean) ** 2).sum(0), atol=tol)
    np.testing.assert_allclose(tilted.entropy(), -(q * np.log(q)).sum(0), atol=tol)
    kl = (q * (np.log(q) - log_p.numpy())).sum(0)
    np.testing.assert_allclose(kl_divergence(tilted, base), kl, atol=tol)
    np.testing.assert_allclose(tilted.log_prob(support).exp().sum(0), 1.0, atol=tol)


def test_vector_events():
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    base = dist.OneHotCategorical(logits=logits)
    table = torch.tensor([0.0, 1.0, -2.0, 5.0], dtype=torch.float64)
    tilted = Tilted(base, rewards.BlackBox(lambda x: (x @ table) ** 2, 1), beta=0.2)
    expected = torch.softmax(logits + 0.2 * table**2, -1)
    torch.testing.assert_close(tilted.mean, expected)
    torch.testing.assert_close(
        tilted.log_prob(torch.eye(4, dtype=torch.float64)[:, None]).exp().T, expected
    )
    draws = tilted.sample((20_000,))
    assert draws.shape == (20_000, 3, 4)
    for k in range(3):
        counts = draws[:, k].sum(0).numpy()
        assert scipy.stats.chisquare(counts, 20_000 * expected[k].numpy()).pvalue > GATE


@pytest.mark.parametrize("expanded", [False, True])
def test_draws_follow_each_batch_element(expanded):
    base = dist.Binomial(4, torch.tensor([0.2, 0.7]))
    tilted = Tilted(base, lambda x: (x == 3) * 2.0, beta=torch.tensor([1.0, -1.0]))
    law = tilted
    if expanded:
        law = tilted.expand((3, 2))
        assert law.batch_shape == (3, 2)
        assert law.sample().shape == (3, 2)
    draws = law.sample((20_000,)).reshape(-1, 2)
    for k in range(2):
        probs = tilted.log_prob(torch.arange(5.0)[:, None]).exp()[:, k].double().numpy()
        counts = np.bincount(draws[:, k].long().numpy(), minlength=5)
        p_value = scipy.stats.chisquare(counts, counts.sum() * probs / probs.sum()).pvalue
        assert p_value > GATE


def test_forbidden_values_are_never_drawn():
    base = dist.Categorical(torch.tensor([0.4, 0.3, 0.2, 0.1]))
    tilted = Tilted(base, rewards.Constraint(lambda x: x >= 2))
    draws = tilted.sample((5000,))
    assert set(draws.tolist()) == {2, 3}
    assert tilted.log_normalizer.item() == pytest.approx(math.log(0.3), rel=1e-6)
    assert tilted.log_prob(torch.tensor(0)) == -math.inf
    assert kl_divergence(tilted, base).item() == pytest.approx(-math.log(0.3), rel=1e-5)


def test_gradients_flow_to_beta_and_base():
    logits = torch.tensor([0.3, -1.0, 0.5], dtype=torch.float64, requires_grad=True)
    beta = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    tilted = Tilted(dist.Categorical(logits=logits), lambda x: x.double() ** 2, beta)
    with torch.no_grad():
        tilted.sample()
    by_beta, by_logits = torch.autograd.grad(tilted.log_normalizer, [beta, logits])
    q = torch.softmax(logits + beta * torch.tensor([0.0, 1.0, 4.0]).double(), 0)
    torch.testing.assert_close(by_beta, q[1] + 4 * q[2])
    torch.testing.assert_close(by_logits, q - torch.softmax(logits, 0))


def test_no_mass_and_bad_rewards_are_refused():
    base = dist.Bernoulli(torch.tensor([0.5, 0.2]))
    with pytest.raises(ValueError, match="-inf on the whole support of Bernoulli"):
        Tilted(base, rewards.Constraint(lambda x: x > 2)).sample()
    with pytest.raises(ValueError, match="NaN"):
        Tilted(base, lambda x: x * math.nan).sample()
    with pytest.raises(ValueError, match=r"\(2, 2\).*\(2,\)"):
        Tilted(base, lambda x: x.sum(-1)).log_prob(torch.ones(2))
