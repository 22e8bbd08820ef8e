# SPDX-License-Identifier: Apache-2.0
"""Tilted sites inside Pyro programs: plates, enumeration, guides, gradients, NUTS."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import (
    SVI,
    Importance,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceMeanField_ELBO,
    config_enumerate,
)
from pyro.infer.mcmc import MCMC, NUTS

from pyro_tilt import rewards
from pyro_tilt.distributions import Tilted


def double(value):
    return torch.tensor(value, dtype=torch.float64)


def sine(x):
    return torch.sin(2 * x)


def test_a_site_in_plates_keeps_its_type_shapes_and_density():
    loc = double([0.0, 1.0, 2.0])

    def program():
        with pyro.plate("rows", 4, dim=-2), pyro.plate("columns", 3, dim=-1):
            return pyro.sample("x", Tilted(dist.Normal(loc, 1.0), sine, double(1.5)))

    trace = poutine.trace(program).get_trace()
    trace.compute_log_prob()
    site = trace.nodes["x"]
    assert isinstance(site["fn"], Tilted)
    assert site["value"].shape == (4, 3)
    alone = Tilted(dist.Normal(loc, 1.0), sine, double(1.5))
    torch.testing.assert_close(site["log_prob"], alone.log_prob(site["value"]))


def test_masks_and_scales_apply():
    def program():
        with poutine.mask(mask=torch.tensor([True, False])), poutine.scale(scale=3.0):
            pyro.sample("x", Tilted(dist.Normal(double([0.0, 1.0]), 1.0), sine).to_event(0))

    trace = poutine.trace(program).get_trace()
    x = trace.nodes["x"]["value"]
    expected = 3 * Tilted(dist.Normal(double([0.0, 1.0]), 1.0), sine).log_prob(x)[0]
    torch.testing.assert_close(trace.log_prob_sum(), expected)


def test_enumeration_of_a_tilted_site_gives_the_exact_evidence():
    logits, loc = double([0.2, -0.5, 1.0]), double([-1.0, 0.5, 2.0])
    table = double([0.0, 1.0, -1.0])
    data = double([0.3, 1.8])

    def model():
        parent = pyro.sample("parent", dist.Bernoulli(double(0.3)))
        base = dist.Categorical(logits=logits * (1 + parent.unsqueeze(-1)))
        beta = 1.0 + parent
        with pyro.plate("data", 2):
            z = pyro.sample("z", Tilted(base, lambda x: table[x.long()], beta))
            pyro.sample("y", dist.Normal(loc[z.long()], 1.0), obs=data)

    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    loss = elbo.loss(config_enumerate(model), lambda: None)
    evidence = torch.zeros((), dtype=torch.float64)
    for parent, mass in ((0.0, 0.7), (1.0, 0.3)):
        q = torch.softmax(logits * (1 + parent) + (1 + parent) * table, 0)
        per_datum = (q * dist.Normal(loc, 1.0).log_prob(data[:, None]).exp()).sum(-1)
        evidence = evidence + mass * per_datum.prod()
    assert loss == pytest.approx(-evidence.log().item(), abs=1e-9)


def conditional(observed):
    """z ~ N(0, 1); x | z ~ N(z, 1) tilted by e^x, a law whose Z depends on z."""

    def program():
        z = pyro.sample("z", dist.Normal(double(0.0), 1.0))
        tilt = Tilted(dist.Normal(z, double(1.0)), rewards.Linear(double(1.0)))
        return pyro.sample("x", tilt, obs=observed)

    return program


def test_an_observed_site_with_latent_parents_has_the_right_posterior():
    # x | z ~ N(z + 1, 1), so z | x = 1.5 ~ N(0.25, 1/2) and log p(x) = log N(1.5; 1, sqrt 2).
    torch.manual_seed(1)
    posterior = Importance(conditional(double(1.5)), num_samples=3000).run()
    weights = posterior.get_normalized_weights()
    z = torch.stack([t.nodes["z"]["value"] for t in posterior.exec_traces])
    mean = (weights * z).sum()
    assert mean.item() == pytest.approx(0.25, abs=0.08)
    evidence = dist.Normal(double(1.0), math.sqrt(2)).log_prob(double(1.5)).item()
    assert posterior.get_log_normalizer().item() == pytest.approx(evidence, abs=0.06)


def test_nuts_draws_the_conditional_tilt():
    # E z = 0 and E x = 1; the joint tilt would have 1 and 2.
    torch.manual_seed(2)
    kernel = NUTS(conditional(None))
    run = MCMC(kernel, num_samples=600, warmup_steps=200, disable_progbar=True)
    run.run()
    draws = run.get_samples()
    assert draws["z"].mean().item() == pytest.approx(0.0, abs=0.25)
    assert draws["x"].mean().item() == pytest.approx(1.0, abs=0.35)


def test_a_guide_with_a_tilt_has_the_right_elbo_and_gradient():
    # The guide is N(0.5, 1): the divergence to the prior N(0, 1) is 1/8, and its slope in beta 1/2.
    beta = double(0.5).requires_grad_()

    def model():
        pyro.sample("z", dist.Normal(double(0.0), 1.0))

    def guide():
        pyro.sample("z", Tilted(dist.Normal(double(0.0), 1.0), rewards.Linear(double(1.0)), beta))

    torch.manual_seed(3)
    elbo = Trace_ELBO(num_particles=40_000, vectorize_particles=True)
    loss = elbo.differentiable_loss(model, guide)
    assert loss.item() == pytest.approx(0.125, abs=0.02)
    (slope,) = torch.autograd.grad(loss, beta)
    assert slope.item() == pytest.approx(0.5, abs=0.03)


def test_a_guide_learns_beta():
    torch.manual_seed(4)

    def model():
        pyro.sample("z", dist.Normal(double(1.2), 1.0))

    def guide():
        beta = pyro.param("beta", double(0.0))
        pyro.sample("z", Tilted(dist.Normal(double(0.0), 1.0), rewards.Linear(double(1.0)), beta))

    elbo = Trace_ELBO(num_particles=200, vectorize_particles=True)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), elbo)
    for _ in range(150):
        svi.step()
    assert pyro.param("beta").item() == pytest.approx(1.2, abs=0.1)


def test_a_tilted_prior_meets_a_reparameterised_guide():
    # KL(N(0, 1) to N(1, 1)) is 1/2, of which the tilt's Z is a part.
    def model():
        pyro.sample("z", Tilted(dist.Normal(double(0.0), 1.0), rewards.Linear(double(1.0))))

    def guide():
        pyro.sample("z", dist.Normal(double(0.0), 1.0))

    torch.manual_seed(5)
    elbo = TraceMeanField_ELBO(num_particles=40_000, vectorize_particles=True)
    assert elbo.loss(model, guide) == pytest.approx(0.5, abs=0.03)


def test_an_unknown_normaliser_falls_back_to_an_error_not_to_a_wrong_law():
    def program():
        base = dist.MultivariateNormal(torch.zeros(2), torch.eye(2))
        return pyro.sample("x", Tilted(base, lambda x: 0.3 * x.prod(-1)))

    assert program().shape == (2,)
    with pytest.raises(NotImplementedError, match="joint_tilt"):
        poutine.trace(program).get_trace().compute_log_prob()
