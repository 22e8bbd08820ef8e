# SPDX-License-Identifier: Apache-2.0
"""The Riccati recursion against dense algebra over whole paths, a Kalman filter and draws."""

import math

import pyro
import pytest
import torch
from pyro import poutine
from scipy import stats

from pyro_tilt.poutine import ParticlePlate
from pyro_tilt.testing.linear_gaussian import linear_gaussian_chain

STEPS = 4
OPTIONS = [(1, False), (2, False), (3, False), (1, True), (3, True)]


@pytest.fixture(scope="module", params=OPTIONS, ids=str)
def case(request):
    dim, observed = request.param
    return linear_gaussian_chain(
        beta=1.2, dim=dim, num_steps=STEPS, observed=observed, seed=dim + 5
    )


def test_dense_path_algebra(case):
    """The log joint of all states at once is quadratic: its pieces from the program's own sites."""
    dim = case.means.shape[-1]
    size = (STEPS + 1) * dim

    def log_joint(path, beta):
        values = {f"x_{t}": path.reshape(STEPS + 1, dim)[t] for t in range(STEPS + 1)}
        trace = poutine.trace(poutine.condition(case.program, data=values)).get_trace()
        return trace.log_prob_sum() + beta * case.reward(values["x_0"])

    zero = torch.zeros(size, dtype=torch.float64)
    results = {}
    for beta in (0.0, case.beta):
        value = log_joint(zero, beta)
        slope = torch.autograd.functional.jacobian(lambda x, b=beta: log_joint(x, b), zero)
        precision = -torch.autograd.functional.hessian(lambda x, b=beta: log_joint(x, b), zero)
        covariance = precision.inverse()
        mean = covariance @ slope
        log_z = value + slope @ mean / 2 + torch.logdet(2 * math.pi * covariance) / 2
        results[beta] = float(log_z), mean.reshape(-1, dim), covariance
    log_z, means, covariance = results[case.beta]
    assert case.log_normalizer == pytest.approx(log_z, abs=1e-9)
    assert case.log_evidence == pytest.approx(results[0.0][0], abs=1e-9)
    torch.testing.assert_close(case.means, means, rtol=0, atol=1e-9)
    blocks = covariance.reshape(STEPS + 1, dim, STEPS + 1, dim)
    diagonal = torch.stack([blocks[t, :, t] for t in range(STEPS + 1)])
    torch.testing.assert_close(case.covariances, diagonal, rtol=0, atol=1e-9)
    laws = [
        torch.distributions.MultivariateNormal(mean.flatten(), spread)
        for _, mean, spread in (results[case.beta], results[0.0])
    ]
    kl = torch.distributions.kl_divergence(*laws)
    assert case.kl == pytest.approx(float(kl), abs=1e-9)
    for beta, claimed in ((case.beta, case.reward_mean), (0.0, case.base_reward_mean)):
        _, mean, spread = results[beta]
        last = case.reward(mean[0]) + (case.reward.A * spread[:dim, :dim]).sum()
        assert claimed == pytest.approx(float(last), abs=1e-9)


def test_kalman_evidence():
    case = linear_gaussian_chain(beta=0.0, dim=3, num_steps=6, observed=True, seed=3)
    A, b, noise, mean, covariance, H, scale = case.system
    total = 0.0
    for t in range(5, -1, -1):
        mean, covariance = A @ mean + b, A @ covariance @ A.mT + noise @ noise.mT
        spread = H @ covariance @ H.mT + scale.square().diag()
        law = torch.distributions.MultivariateNormal(H @ mean, spread)
        total += float(law.log_prob(case.observations[t]))
        gain = covariance @ H.mT @ spread.inverse()
        mean = mean + gain @ (case.observations[t] - H @ mean)
        covariance = covariance - gain @ H @ covariance
    assert case.log_normalizer == pytest.approx(total, abs=1e-10)
    assert case.log_evidence == pytest.approx(total, abs=1e-10)
    torch.testing.assert_close(case.means[0], mean, rtol=0, atol=1e-10)


def test_every_step_of_the_guide_is_optimal(case):
    r"""At each step :math:`M \psi_t / (K \psi_{t+1})` is one, at states far from likely too."""
    pyro.set_rng_seed(0)
    dim = case.means.shape[-1]
    values = {f"x_{t}": 3.0 * torch.randn(50, dim).double() for t in range(STEPS + 1)}
    base, guide = (
        poutine.trace(poutine.condition(program, data=values)).get_trace()
        for program in (case.program, case.guide)
    )
    exact, total = case.twist(), 0.0
    for t in range(STEPS, -1, -1):
        x = values[f"x_{t}"]
        before = case.log_normalizer if t == STEPS else exact(values[f"x_{t + 1}"], t + 1)
        ratio = base.nodes[f"x_{t}"]["fn"].log_prob(x) - guide.nodes[f"x_{t}"]["fn"].log_prob(x)
        if f"y_{t}" in base.nodes:
            site = base.nodes[f"y_{t}"]
            ratio = ratio + site["fn"].log_prob(site["value"])
        increment = ratio + exact(x, t) - before
        assert float(increment.abs().max()) < 1e-8
        total = total + ratio
    weights = total + case.beta * case.reward(values["x_0"])
    assert float((weights - case.log_normalizer).abs().max()) < 1e-8


def test_guide_draws_the_aligned_law(case):
    """Mean of 20,000 guided draws of x_0; Hotelling's test, false alarm 1e-5."""
    pyro.set_rng_seed(8)
    with ParticlePlate(20_000, dim=-1):
        last = case.guide()
    centred = last - case.means[0]
    mean = centred.mean(0)
    statistic = len(last) * mean @ torch.linalg.solve(case.covariances[0], mean)
    assert stats.chi2.sf(float(statistic), last.shape[-1]) > 1e-5
    whitened = torch.linalg.solve_triangular(
        torch.linalg.cholesky(case.covariances[0]), centred.mT, upper=False
    )
    scatter = stats.chi2(whitened.numel()).cdf(float(whitened.square().sum()))
    assert 0.5e-5 < scatter < 1 - 0.5e-5


def test_plain_program_estimates_the_evidence():
    """Weights of 50,000 plain runs; two-sided z gate, false alarm 1e-5."""
    case = linear_gaussian_chain(beta=0.4, dim=2, num_steps=3, seed=1)
    pyro.set_rng_seed(2)
    with ParticlePlate(50_000, dim=-1):
        weights = (case.beta * case.reward(case.program())).exp()
    error = float(weights.mean()) - math.exp(case.log_normalizer)
    score = error / float(weights.std() / math.sqrt(len(weights)))
    assert abs(score) < stats.norm.isf(0.5e-5)


def test_beta_zero_is_the_base():
    case = linear_gaussian_chain(beta=0.0, dim=2)
    assert case.kl == pytest.approx(0.0, abs=1e-12)
    assert case.reward_mean == case.base_reward_mean
    assert bool((case.hessians == 0).all())
