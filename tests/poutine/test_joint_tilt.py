# SPDX-License-Identifier: Apache-2.0
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from pyro.infer.autoguide.initialization import InitMessenger, init_to_value

from pyro_tilt import rewards
from pyro_tilt.distributions import Tilted
from pyro_tilt.infer.proposal import ProgramProposal
from pyro_tilt.poutine import TiltReparam, joint_tilt

SLOPE = torch.tensor(1.5)


def tilted(loc, beta=2.0, **options):
    return Tilted(dist.Normal(loc, torch.ones(())), rewards.Linear(SLOPE), beta, **options)


def unknown(loc):
    """A tilt of two dimensions that nothing exact applies to."""
    base = dist.Normal(loc, torch.ones(2)).to_event(1)
    return Tilted(base, lambda x: (x[..., 0] * x[..., 1]).sin(), 2.0)


def pair():
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    return pyro.sample("x", tilted(z))


def trace_of(program, *args):
    trace = poutine.trace(program).get_trace(*args)
    trace.compute_log_prob()
    return trace


def test_joint_tilt_is_base_plus_factor_with_names_kept():
    trace = trace_of(joint_tilt(pair))
    x, z = trace.nodes["x"]["value"], trace.nodes["z"]["value"]
    assert list(trace.nodes)[1:-1] == ["z", "x", "x_tilt"]
    torch.testing.assert_close(trace.nodes["x"]["log_prob"], dist.Normal(z, 1.0).log_prob(x))
    torch.testing.assert_close(trace.nodes["x_tilt"]["log_prob"], 3.0 * x)
    term = trace.nodes["x_tilt"]["infer"]["tilt"]
    assert term.beta == 2.0
    torch.testing.assert_close(term.reward, 1.5 * x)


def test_joint_tilt_needs_no_normaliser():
    def program():
        return pyro.sample("x", unknown(torch.zeros(2)))

    trace = trace_of(joint_tilt(program))
    x = trace.nodes["x"]["value"]
    torch.testing.assert_close(trace.nodes["x_tilt"]["log_prob"], 2 * (x[0] * x[1]).sin())


def test_joint_tilt_in_plates_independents_and_masks():
    keep = torch.tensor([True, False])

    def program():
        with pyro.plate("rows", 10, subsample_size=2, dim=-1):
            pyro.sample("plain", tilted(torch.zeros(2)))
            pyro.sample("event", tilted(torch.zeros(2, 3)).to_event(1))
            pyro.sample("masked", tilted(torch.zeros(2)).mask(keep))
            pyro.sample("both", tilted(torch.zeros(2, 3)).to_event(1).mask(keep))

    trace = trace_of(joint_tilt(program))
    plain, event, masked, both = (
        trace.nodes[name]["value"] for name in ("plain", "event", "masked", "both")
    )
    expected = {
        "plain": 5 * 3.0 * plain,
        "event": 5 * 3.0 * event.sum(-1),
        "masked": 5 * 3.0 * masked * keep,
        "both": 5 * 3.0 * both.sum(-1) * keep,
    }
    for name, value in expected.items():
        torch.testing.assert_close(trace.nodes[f"{name}_tilt"]["log_prob"], value)
        base = dist.Normal(0.0, 1.0).log_prob(trace.nodes[name]["value"])
        base = base.sum(-1) if base.dim() > 1 else base
        base = base * keep if name in ("masked", "both") else base
        torch.testing.assert_close(trace.nodes[name]["log_prob"], 5 * base)


def test_joint_tilt_with_a_beta_for_each_element():
    beta = torch.tensor([1.0, -2.0])

    def program():
        with pyro.plate("rows", 2):
            pyro.sample("x", tilted(torch.zeros(2), beta))

    trace = trace_of(joint_tilt(program))
    expected = 1.5 * beta * trace.nodes["x"]["value"]
    torch.testing.assert_close(trace.nodes["x_tilt"]["log_prob"], expected)


def test_joint_tilt_leaves_observed_sites_and_follows_conditioning_from_outside():
    def program():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", tilted(z), obs=torch.tensor(0.5))
        return pyro.sample("x", tilted(z))

    trace = trace_of(poutine.condition(joint_tilt(program), data={"x": torch.tensor(2.0)}))
    z = trace.nodes["z"]["value"]
    assert "y_tilt" not in trace.nodes
    torch.testing.assert_close(trace.nodes["y"]["log_prob"], tilted(z).log_prob(torch.tensor(0.5)))
    torch.testing.assert_close(trace.nodes["x_tilt"]["log_prob"], torch.tensor(6.0))


def test_joint_tilt_inside_initialisation_and_autoguides():
    init = InitMessenger(init_to_value(values={"x": torch.tensor(0.25)}))
    trace = trace_of(init(joint_tilt(pair)))
    torch.testing.assert_close(trace.nodes["x_tilt"]["log_prob"], torch.tensor(0.75))
    guide = AutoNormal(joint_tilt(pair))
    assert set(guide()) == {"z", "x"}


def test_joint_tilt_is_silent_under_mask_false():
    with poutine.mask(mask=False):
        assert "x_tilt" not in trace_of(joint_tilt(pair)).nodes


def test_joint_tilt_bounds():
    bounded = rewards.Bounded(torch.sin, -1.0, 1.0)

    def program():
        with pyro.plate("rows", 2):
            base = dist.Normal(torch.zeros(2, 3), 1.0)
            pyro.sample("x", Tilted(base, bounded, 2.0).to_event(1))

    proposal = ProgramProposal(joint_tilt(program))
    assert proposal.log_bound == 2.0 * 6
    assert proposal.draw(100).log_weights.max() <= 12.0


def test_reparam_keeps_the_density():
    program = poutine.reparam(pair, config={"x": TiltReparam()})
    trace = trace_of(program)
    x, z = trace.nodes["x"]["value"], trace.nodes["z"]["value"]
    assert torch.equal(trace.nodes["x_base"]["value"], x)
    both = trace.nodes["x_base"]["log_prob"] + trace.nodes["x_tilt"]["log_prob"]
    torch.testing.assert_close(both, dist.Normal(z + 3.0, 1.0).log_prob(x))
    assert "tilt" not in trace.nodes["x_tilt"]["infer"]


def test_reparam_keeps_the_density_under_plates_events_and_masks():
    keep = torch.tensor([True, False])

    def program():
        with pyro.plate("rows", 2):
            return pyro.sample("x", tilted(torch.zeros(2, 3)).to_event(1).mask(keep))

    trace = trace_of(poutine.reparam(program, config={"x": TiltReparam()}))
    both = trace.nodes["x_base"]["log_prob"] + trace.nodes["x_tilt"]["log_prob"]
    x = trace.nodes["x"]["value"]
    expected = dist.Normal(3.0, 1.0).log_prob(x).sum(-1) * keep
    torch.testing.assert_close(both, expected)


def test_reparam_refuses_an_unknown_normaliser_before_sampling():
    def program():
        return pyro.sample("x", unknown(torch.zeros(2)))

    with poutine.trace() as tracer, pytest.raises(NotImplementedError, match="'x'.*log_norm"):
        poutine.reparam(program, config={"x": TiltReparam()})()
    assert not tracer.trace.nodes


def test_reparam_takes_the_users_word_that_z_is_constant():
    def program():
        return pyro.sample("x", tilted(torch.zeros(()), log_normalizer="constant"))

    trace = trace_of(poutine.reparam(program, config={"x": TiltReparam()}))
    torch.testing.assert_close(trace.nodes["x_tilt"]["log_prob"], 3.0 * trace.nodes["x"]["value"])


def test_reparam_leaves_observations_and_refuses_other_sites():
    def observed():
        return pyro.sample("x", tilted(torch.zeros(())), obs=torch.tensor(1.0))

    trace = trace_of(poutine.reparam(observed, config={"x": TiltReparam()}))
    assert "x_base" not in trace.nodes
    torch.testing.assert_close(
        trace.nodes["x"]["log_prob"], dist.Normal(3.0, 1.0).log_prob(torch.tensor(1.0))
    )
    with pytest.raises(ValueError, match="(?s)'z'.*Normal"):
        poutine.trace(poutine.reparam(pair, config={"z": TiltReparam()})).get_trace()


def test_a_tilted_site_with_a_law_is_drawn_from_it_without_weight():
    proposal = ProgramProposal(pair)
    draws = proposal.draw(50_000)
    assert proposal.latents == ["z", "x"] and proposal.beta is None and proposal.log_bound == 0.0
    assert not draws.log_weights.any()
    x, z = draws.samples["x"], draws.samples["z"]
    # x - z is N(3, 1), independent of z: five standard errors each.
    assert abs(float((x - z).mean()) - 3.0) < 5 / 50_000**0.5
    assert abs(float(((x - z - 3.0) * z).mean())) < 5 / 50_000**0.5


def test_a_tilted_site_without_a_law_is_weighted_by_its_normaliser():
    def log_z(base):
        return base.mean.sum(-1) * 0.1

    def program():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        loc = torch.stack([z, -2.0 * z], -1)
        base = dist.Normal(loc, 1.0).to_event(1)
        reward = rewards.BlackBox(lambda x: x[..., 0] * x[..., 1] * 0.1, event_dim=1)
        pyro.sample("x", Tilted(base, reward, 2.0, log_normalizer=log_z))

    proposal = ProgramProposal(program)
    draws = proposal.draw(8)
    x, z = draws.samples["x"], draws.samples["z"]
    expected = 0.2 * x[:, 0] * x[:, 1] + 0.1 * z
    torch.testing.assert_close(draws.log_weights, expected.double(), rtol=1e-5, atol=1e-5)
    assert proposal.unbounded == ["x"]


def test_a_tilted_site_without_law_or_normaliser_is_refused_at_construction():
    def program():
        return pyro.sample("x", unknown(torch.zeros(2)))

    with pytest.raises(NotImplementedError, match="site 'x'.*log Z"):
        ProgramProposal(program)
    assert ProgramProposal(joint_tilt(program)).draw(3).samples["x"].shape == (3, 2)
