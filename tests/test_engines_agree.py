# SPDX-License-Identifier: Apache-2.0
"""
One program, many engines: they must sample one law.

The program is z ~ N(0, 1), x | z ~ N(z, 1), tilted by exp(x). The joint tilt has E z = 1,
E x = 2 and log Z = 1; the conditional tilt of x has E z = 0 and E x = 1. Monte Carlo means are
gated at five standard errors (a false alarm once in 1.7 million) with fixed seeds.
"""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import (
    MCMC,
    NUTS,
    SVI,
    EmpiricalMarginal,
    Importance,
    Trace_ELBO,
    TraceEnum_ELBO,
)
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from pyro.ops.stats import effective_sample_size
from pyro.optim import ClippedAdam

from pyro_tilt import rewards
from pyro_tilt.distributions import Tilted
from pyro_tilt.infer.proposal import ProgramProposal
from pyro_tilt.poutine import TiltReparam, align, joint_tilt, reward_factor

GATE = 5.0
IDENTITY = rewards.Linear(torch.tensor(1.0))


def base_pair():
    z = pyro.sample("z", dist.Normal(0.0, torch.tensor(1.0)))
    return pyro.sample("x", dist.Normal(z, 1.0))


def stated_pair():
    x = base_pair()
    reward_factor("taste", x)
    return x


def tilted_pair():
    z = pyro.sample("z", dist.Normal(0.0, torch.tensor(1.0)))
    return pyro.sample("x", Tilted(dist.Normal(z, 1.0), IDENTITY))


def unnormalised_pair():
    z = pyro.sample("z", dist.Normal(0.0, torch.tensor(1.0)))
    return pyro.sample("x", Tilted(dist.Normal(z, 1.0), IDENTITY, log_normalizer="constant"))


JOINT = {
    "align": align(base_pair, IDENTITY),
    "reward_factor": stated_pair,
    "joint_tilt": joint_tilt(tilted_pair),
}
CONDITIONAL = {
    "tilted": tilted_pair,
    "reparam": poutine.reparam(tilted_pair, config={"x": TiltReparam()}),
}
LAWS = {
    **{name: (program, 1.0, 2.0, 1.0) for name, program in JOINT.items()},
    **{name: (program, 0.0, 1.0, 0.0) for name, program in CONDITIONAL.items()},
}
every_law = pytest.mark.parametrize("law", LAWS)


def weighted_mean(values, log_weights):
    """Self-normalised mean with its standard error."""
    weights = torch.softmax(log_weights.double(), 0)
    mean = (weights * values).sum()
    return float(mean), float((weights * (values - mean)).square().sum().sqrt())


def assert_near(value, error, truth):
    assert error > 0 and abs(value - truth) < GATE * error, (value, error, truth)


def check_weighted(samples, log_weights, law):
    _, mean_z, mean_x, log_z = LAWS[law]
    assert_near(*weighted_mean(samples["z"], log_weights), mean_z)
    assert_near(*weighted_mean(samples["x"], log_weights), mean_x)
    weights = log_weights.double().exp()
    error = float(weights.std() / weights.mean() / math.sqrt(len(weights)))
    assert abs(float(weights.mean().log()) - log_z) <= GATE * error + 1e-6


@every_law
def test_vectorised_importance_sampling(law):
    draws = ProgramProposal(LAWS[law][0]).draw(100_000)
    check_weighted(draws.samples, draws.log_weights, law)


@every_law
def test_pyro_importance(law):
    posterior = Importance(LAWS[law][0], num_samples=1000).run()
    log_weights = torch.stack(posterior.log_weights)
    samples = {
        name: torch.stack([t.nodes[name]["value"] for t in posterior.exec_traces]) for name in "zx"
    }
    check_weighted(samples, log_weights, law)
    mean = EmpiricalMarginal(posterior, sites="z").mean
    torch.testing.assert_close(float(mean), weighted_mean(samples["z"], log_weights)[0])


def nuts(program, num_samples=200):
    mcmc = MCMC(NUTS(program), num_samples=num_samples, warmup_steps=80, disable_progbar=True)
    mcmc.run()
    return mcmc.get_samples()


def check_chain(values, truth):
    size = float(effective_sample_size(values[None].double(), chain_dim=0, sample_dim=1))
    assert_near(
        float(values.mean()), float(values.std()) / math.sqrt(min(size, len(values))), truth
    )


@pytest.mark.parametrize("law", ["align", "joint_tilt", "tilted", "reparam"])
def test_nuts(law):
    program, mean_z, mean_x, _ = LAWS[law]
    samples = nuts(program)
    check_chain(samples["z"], mean_z)
    check_chain(samples["x_base" if law == "reparam" else "x"], mean_x)


@pytest.mark.parametrize("law", ["align", "joint_tilt", "tilted", "reparam"])
def test_svi_with_a_full_rank_guide(law):
    program, mean_z, mean_x, log_z = LAWS[law]
    guide = AutoMultivariateNormal(program, init_scale=0.5)
    elbo = Trace_ELBO(num_particles=32, vectorize_particles=True, max_plate_nesting=0)
    svi = SVI(program, guide, ClippedAdam({"lr": 0.05, "lrd": 0.99}), elbo)
    for _ in range(400):
        svi.step()
    # The guide can be exact, where the ELBO is log Z and its variance zero. What is left is
    # the optimiser's distance: a KL below 0.02 nats, hence means within sqrt(2 * 0.02 * var).
    draws = ProgramProposal(program, guide=guide).draw(10_000)
    gap = log_z - draws.log_weights.mean()
    assert -0.01 < float(gap) < 0.02
    loc = guide.loc.detach()
    assert abs(float(loc[0]) - mean_z) < math.sqrt(0.04)
    assert abs(float(loc[1]) - mean_x) < math.sqrt(0.08)


def test_unnormalised_log_prob_means_another_law_in_another_engine():
    """What a distribution without its normaliser silently does, and why Tilted refuses it."""
    joint = nuts(unnormalised_pair)
    check_chain(joint["z"], 1.0)
    conditional = Importance(unnormalised_pair, num_samples=1000).run()
    z = torch.stack([t.nodes["z"]["value"] for t in conditional.exec_traces])
    assert not torch.stack(conditional.log_weights).any()
    assert_near(float(z.mean()), 1 / math.sqrt(1000), 0.0)


def hidden_states(reward, plates=False):
    probs = torch.tensor([0.2, 0.5, 0.3])
    means = torch.tensor([-1.0, 0.5, 2.0])
    data = torch.tensor([0.3, 1.4])

    def program():
        a = pyro.sample("a", dist.Categorical(probs), infer={"enumerate": "parallel"})
        b = pyro.sample("b", dist.Bernoulli(0.2 + 0.25 * a), infer={"enumerate": "parallel"})
        if plates:
            with pyro.plate("rows", 2):
                pyro.sample("y", dist.Normal(means[a], 1.0), obs=data)
        return a - 2.5 * b

    def log_evidence(beta):
        a = torch.arange(3.0)[:, None]
        b = torch.arange(2.0)
        log_p = probs.log()[:, None] + dist.Bernoulli(0.2 + 0.25 * a).log_prob(b)
        if plates:
            log_p = log_p + dist.Normal(means[:, None], 1.0).log_prob(data).sum(-1)[:, None]
        return float((log_p + beta * reward(a - 2.5 * b)).flatten().logsumexp(0))

    return program, log_evidence


@pytest.mark.parametrize("plates", [False, True])
@pytest.mark.parametrize("beta", [1.3, -0.7])
def test_enumeration_gives_the_exact_evidence(beta, plates):
    def reward(v):
        return v.square() + v

    program, log_evidence = hidden_states(reward, plates)
    aligned = align(program, reward, beta)
    elbo = TraceEnum_ELBO(max_plate_nesting=int(plates))
    loss = elbo.loss(aligned, lambda: None)
    assert loss == pytest.approx(-log_evidence(beta), abs=1e-5)
    # No reward at all is another number, so that a factor left out would show.
    assert abs(log_evidence(beta) - log_evidence(0.0)) > 0.1
    if not plates:
        draws = ProgramProposal(aligned).draw(50_000)
        weights = draws.log_weights.exp()
        error = float(weights.std() / weights.mean() / math.sqrt(50_000))
        assert_near(float(weights.mean().log()), error, log_evidence(beta))


def test_enumeration_of_a_tilt_inside_a_plate():
    logits = torch.tensor([0.3, -0.2, 0.9])
    data = torch.tensor([0.5, -1.0, 0.1, 2.0])

    def program():
        with pyro.plate("rows", 4):
            k = pyro.sample("k", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})
            pyro.sample("y", dist.Normal(k * 1.0, 1.0), obs=data)
            reward_factor("r", k * data, -0.6)

    k = torch.arange(3.0)[:, None]
    log_joint = logits.log_softmax(0)[:, None] + dist.Normal(k, 1.0).log_prob(data) - 0.6 * k * data
    loss = TraceEnum_ELBO(max_plate_nesting=1).loss(program, lambda: None)
    assert loss == pytest.approx(-float(log_joint.logsumexp(0).sum()), abs=1e-5)


def regression(y=2.0):
    z = pyro.sample("z", dist.Normal(0.0, torch.tensor(1.0)))
    pyro.sample("y", dist.Normal(z, 1.0), obs=torch.tensor(y))
    return z


def test_observations_stay_in_every_engine():
    # Posterior N(1, 1/2); tilted by exp(3 z): N(5/2, 1/2), log Z = log N(2; 0, 2) + 3 + 9/4.
    aligned = align(regression, IDENTITY, 3.0)
    draws = ProgramProposal(aligned).draw(200_000)
    assert_near(*weighted_mean(draws.samples["z"], draws.log_weights), 2.5)
    log_z = float(dist.Normal(0.0, math.sqrt(2.0)).log_prob(torch.tensor(2.0))) + 5.25
    weights = draws.log_weights.exp()
    error = float(weights.std() / weights.mean() / math.sqrt(len(weights)))
    assert_near(float(weights.mean().log()), error, log_z)
    check_chain(nuts(aligned, 150)["z"], 2.5)
    guide = AutoNormal(aligned, init_scale=math.sqrt(0.5))
    guide()
    pyro.param("AutoNormal.locs.z").data.fill_(2.5)
    exact = ProgramProposal(aligned, guide=guide).draw(100)
    torch.testing.assert_close(
        exact.log_weights, torch.full_like(exact.log_weights, log_z), rtol=0, atol=1e-5
    )


def test_nested_aligns_and_several_factors_multiply():
    def stated():
        z = regression()
        reward_factor("first", z, 2.0)
        reward_factor("second", -z.square(), 0.5)
        return z

    nested = align(align(regression, IDENTITY, 2.0), lambda z: -z.square(), 0.5)
    single = align(regression, lambda z: 2.0 * z - 0.5 * z.square())
    mixed = align(stated, IDENTITY, 0.0)
    value = {"z": torch.tensor(0.7)}
    expected = poutine.trace(poutine.condition(single, data=value)).get_trace().log_prob_sum()
    for program in (nested, mixed):
        trace = poutine.trace(poutine.condition(program, data=value)).get_trace()
        torch.testing.assert_close(trace.log_prob_sum(), expected)
    # Prior precision 1, likelihood 1, tilt 1: N(4/3, 1/3).
    for program in (nested, single, mixed):
        draws = ProgramProposal(program).draw(50_000)
        assert_near(*weighted_mean(draws.samples["z"], draws.log_weights), 4 / 3)
    check_chain(nuts(nested, 150)["z"], 4 / 3)


def test_subsampled_plate_is_unbiased_and_leaves_the_reward_alone():
    data = torch.tensor([0.5, -1.0, 3.0, 2.0])

    def program(rows):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 4, subsample=rows):
            pyro.sample("y", dist.Normal(z, 1.0), obs=data[rows])
        return z

    def log_joint(z, rows):
        aligned = poutine.condition(align(program, IDENTITY, 3.0), data={"z": z})
        return poutine.trace(aligned).get_trace(rows).log_prob_sum()

    pairs = torch.combinations(torch.arange(4))
    for z in torch.tensor([-0.4, 1.7]):
        average = torch.stack([log_joint(z, rows) for rows in pairs]).mean()
        torch.testing.assert_close(average, log_joint(z, torch.arange(4)))
    # Posterior with all rows: precision 5, mean (4.5 + 3) / 5.
    draws = ProgramProposal(align(program, IDENTITY, 3.0), (torch.arange(4),)).draw(100_000)
    assert_near(*weighted_mean(draws.samples["z"], draws.log_weights), 1.5)


def guided(log_normalizer=None):
    """A guide N(m + 1.5, 1), written as a tilt of N(m, 1)."""
    m = pyro.param("m", torch.tensor(-0.5))
    theta = rewards.Linear(torch.tensor(0.75))
    pyro.sample("z", Tilted(dist.Normal(m, 1.0), theta, 2.0, log_normalizer=log_normalizer))


def test_elbo_and_gradient_of_a_tilted_guide():
    def model():
        pyro.sample("z", dist.Normal(0.0, 1.0))

    mean = 1.0  # of the guide: -0.5 + 1.5; the ELBO is -mean^2 / 2 and its gradient -mean
    elbo = Trace_ELBO(num_particles=4000, vectorize_particles=True, max_plate_nesting=0)
    losses, gradients = [], []
    for _ in range(30):
        losses.append(elbo.loss(model, guided))
        pyro.param("m").unconstrained().grad = None
        elbo.loss_and_grads(model, guided)
        gradients.append(pyro.param("m").unconstrained().grad.clone())
    for values, truth in ((torch.tensor(losses), mean**2 / 2), (torch.stack(gradients), mean)):
        assert_near(float(values.mean()), float(values.std()) / math.sqrt(30), truth)


def test_a_guide_without_its_normaliser_is_off_by_log_z():
    def model():
        pyro.sample("z", dist.Normal(0.0, 1.0))

    def loss(log_normalizer):
        pyro.set_rng_seed(0)
        return Trace_ELBO(num_particles=50).loss(model, lambda: guided(log_normalizer))

    log_z = 1.5 * -0.5 + 1.5**2 / 2
    assert loss("constant") - loss(None) == pytest.approx(log_z, abs=1e-4)
