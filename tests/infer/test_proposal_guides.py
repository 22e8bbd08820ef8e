# SPDX-License-Identifier: Apache-2.0
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoMultivariateNormal

from pyro_tilt.infer.proposal import ProgramProposal
from pyro_tilt.poutine import align

DATA = torch.tensor([0.3, -1.2, 0.7])


def hierarchy(data=DATA):
    scale = pyro.sample("scale", dist.Gamma(2.0, 1.0))
    z = pyro.sample("z", dist.Normal(torch.tensor([0.0, 1.0]), 1.0).to_event(1))
    with pyro.plate("rows", 3, dim=-1):
        x = pyro.sample("x", dist.Normal(z[..., 0], scale))
        pyro.sample("y", dist.Normal(x, 0.5), obs=data)
    return x.sum(-1, keepdim=True) if x.dim() > 1 else x.sum()


def test_guide_enters_by_its_density():
    def guide(data=DATA):
        pyro.sample("scale", dist.Gamma(3.0, 2.0))
        with pyro.plate("rows", 3, dim=-1):
            pyro.sample("x", dist.Normal(data, 0.7))

    aligned = align(hierarchy, lambda x: x, 0.3)
    proposal = ProgramProposal(aligned, guide=guide)
    assert proposal.log_bound == math.inf
    draws = proposal.draw(4)
    for i in range(4):
        scale, z, x = (draws.samples[name][i] for name in ("scale", "z", "x"))
        scale_ratio = dist.Gamma(2.0, 1.0).log_prob(scale) - dist.Gamma(3.0, 2.0).log_prob(scale)
        x_ratio = dist.Normal(z[0], scale).log_prob(x) - dist.Normal(DATA, 0.7).log_prob(x)
        factors = float(scale_ratio + (x_ratio + dist.Normal(x, 0.5).log_prob(DATA)).sum())
        assert draws.log_factors[i].item() == pytest.approx(factors, rel=1e-4)
        tilt = 0.3 * float(x.sum())
        assert draws.log_weights[i].item() == pytest.approx(factors + tilt, rel=1e-4)


def test_exact_posterior_as_guide_gives_constant_weights():
    def program():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=torch.tensor(2.0))
        return z

    def guide():
        # The posterior N(1, 1/2) tilted by e^{z} is N(3/2, 1/2).
        pyro.sample("z", dist.Normal(1.5, math.sqrt(0.5)))

    draws = ProgramProposal(align(program, lambda z: z), guide=guide).draw(200)
    log_evidence = dist.Normal(0.0, math.sqrt(2.0)).log_prob(torch.tensor(2.0)) + 1.25
    expected = torch.full((200,), float(log_evidence), dtype=torch.float64)
    torch.testing.assert_close(draws.log_weights, expected, rtol=0, atol=2e-6)


def test_autoguides_propose():
    guide = AutoMultivariateNormal(hierarchy, init_scale=0.5)
    proposal = ProgramProposal(hierarchy, guide=guide)
    draws = proposal.draw(5)
    assert draws.samples["x"].shape == (5, 3)
    for i in range(5):
        values = {name: draws.samples[name][i] for name in proposal.latents}
        trace = poutine.trace(poutine.condition(hierarchy, data=values)).get_trace()
        free = torch.cat([values["scale"].log()[None], values["z"], values["x"]])
        # scale = exp(u), so the density of the guide has the Jacobian 1 / scale.
        log_guide = (
            dist.Normal(guide.loc.detach(), 0.5).log_prob(free).sum() - values["scale"].log()
        )
        expected = float(trace.log_prob_sum() - log_guide)
        assert draws.log_weights[i].item() == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_guide_sites_unknown_to_the_program_are_an_error():
    def guide():
        pyro.sample("w", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match=r"(?s)guide.*\['w'\].*latent sites"):
        ProgramProposal(hierarchy, guide=guide)


def test_guide_and_program_share_the_indices_of_a_subsampled_plate():
    data = torch.arange(50.0)

    def program():
        with pyro.plate("rows", 50, subsample_size=5) as rows:
            x = pyro.sample("x", dist.Normal(0.0, 100.0))
            pyro.sample("y", dist.Normal(x, 1.0), obs=data[rows])

    def guide():
        with pyro.plate("rows", 50, subsample_size=5) as rows:
            pyro.sample("x", dist.Normal(data[rows], 0.01))

    draws = ProgramProposal(program, guide=guide).draw(30)
    # With indices of its own the program would see residuals of order ten.
    log_prior = dist.Normal(0.0, 100.0).log_prob(draws.samples["x"])
    log_guide_max = dist.Normal(0.0, 0.01).log_prob(torch.tensor(0.0))
    floor = 10 * (log_prior - log_guide_max - 1.0).sum(-1).double()
    assert (draws.log_factors > floor - 10 * 5 * 0.92).all()
