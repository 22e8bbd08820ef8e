# SPDX-License-Identifier: Apache-2.0
import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_tilt import rewards
from pyro_tilt.distributions import Tilted
from pyro_tilt.infer.tempered.density import ProgramDensity
from pyro_tilt.infer.tempered.unconstrained import log_density, unmasked
from pyro_tilt.poutine import align

ROWS = torch.tensor([0.5, -1.0, 2.0])


def _program():
    with pyro.plate("rows", 3):
        a = pyro.sample("a", dist.Normal(ROWS, torch.tensor(0.5)))
        b = pyro.sample("b", dist.Gamma(torch.tensor(2.0), 1.0 + a.square()))
        pyro.sample("c", dist.Dirichlet(torch.ones(4)).mask(torch.tensor([True, False, True])))
    with pyro.poutine.scale(scale=3.0):
        d = pyro.sample(
            "d", dist.Uniform(torch.tensor(-1.0), torch.tensor(2.0)).expand([2]).to_event(1)
        )
    pyro.sample("y", dist.Normal(b.sum(-1, keepdim=True), torch.tensor(1.0)), obs=torch.tensor(2.0))
    return d


def _density():
    return ProgramDensity(align(_program, rewards.Linear(torch.tensor([1.0, -2.0])), 0.7))


def test_draws_and_their_positions_agree():
    density = _density()
    pyro.set_rng_seed(0)
    drawn = density.start(50, positions=True)
    again = density.evaluate(drawn.position)
    assert drawn.position.shape == (50, 3 + 3 + 9 + 2)
    for name, values in drawn.draws.samples.items():
        torch.testing.assert_close(again.draws.samples[name], values, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(again.log_prior, drawn.log_prior, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(again.log_weights, drawn.log_weights, rtol=1e-4, atol=1e-3)
    pyro.set_rng_seed(0)
    plain = density.draw(50)
    torch.testing.assert_close(plain.log_weights, drawn.log_weights)
    assert density.rows == 100


def test_the_density_is_that_of_the_draws_in_their_coordinates():
    """Scales and masks of latent sites do not count: they do not change what is drawn."""
    density = _density()
    pyro.set_rng_seed(0)
    drawn = density.start(20, positions=True)
    s = drawn.draws.samples
    expected = dist.Normal(ROWS, 0.5).log_prob(s["a"]).sum(-1)
    expected += (dist.Gamma(2.0, 1.0 + s["a"].square()).log_prob(s["b"]) + s["b"].log()).sum(-1)
    breaking = torch.distributions.biject_to(dist.Dirichlet(torch.ones(4)).support)
    point = breaking.inv(s["c"])
    expected += math.lgamma(4.0) * 3 + breaking.log_abs_det_jacobian(point, s["c"]).sum(-1)
    unit = (s["d"] + 1.0) / 3.0
    expected += (unit.log() + (1.0 - unit).log()).sum(-1)
    torch.testing.assert_close(drawn.log_prior, expected.double(), rtol=1e-4, atol=1e-3)


def test_gradients_are_those_of_the_density():
    density = _density()
    pyro.set_rng_seed(0)
    drawn = density.start(6, positions=True)
    found = density.evaluate(drawn.position, gradient=(1.0, 0.3))
    step = 1e-2
    for column in (0, 4, 7, 16):
        shift = torch.zeros_like(drawn.position)
        shift[:, column] = step
        up, down = (
            density.evaluate(drawn.position + shift),
            density.evaluate(drawn.position - shift),
        )
        slope = (up.log_prior - down.log_prior) + 0.3 * (up.log_weights - down.log_weights)
        slope = (slope / (2 * step)).float()
        torch.testing.assert_close(found.gradient[:, column], slope, rtol=2e-2, atol=2e-2)
    assert not found.log_prior.requires_grad and not found.position.requires_grad


def test_blocks_change_nothing():
    density = _density()
    pyro.set_rng_seed(0)
    drawn = density.start(10, positions=True)
    whole = density.evaluate(drawn.position, gradient=(1.0, 1.0))
    density.block = 4
    parts = density.evaluate(drawn.position, gradient=(1.0, 1.0))
    torch.testing.assert_close(whole.log_prior, parts.log_prior)
    torch.testing.assert_close(whole.gradient, parts.gradient)


def test_overflow_has_no_density():
    density = ProgramDensity(
        lambda: pyro.sample("g", dist.Gamma(torch.tensor(2.0), torch.tensor(1.0)))
    )
    density.start(3, positions=True)
    found = density.evaluate(torch.tensor([[0.5], [200.0], [-200.0]]))
    assert found.log_prior[0].isfinite() and found.log_prior[1] == -math.inf
    assert not found.log_prior[2].isnan() and found.draws.samples["g"].isfinite().all()


@pytest.mark.parametrize("shape", [(), (3,), (4, 3)])
def test_expanded_normals_are_scored_as_they_are(shape):
    laws = [
        dist.Normal(ROWS, torch.tensor(0.5)).expand([5, *shape, 3]),
        dist.Normal(ROWS, torch.tensor(0.5)).to_event(1).expand([5, *shape]),
        dist.Normal(torch.zeros(5, *shape, 1), torch.ones(3)).to_event(1),
    ]
    for law in laws:
        value = law.sample()
        torch.testing.assert_close(log_density(law, value), law.log_prob(value))


def test_masks_come_off():
    base = dist.Normal(torch.zeros(3), 1.0)
    for law in (base.mask(False), base.mask(ROWS > 0).to_event(1), base.mask(False).mask(True)):
        assert torch.equal(
            unmasked(law).log_prob(ROWS), (base.to_event(law.event_dim)).log_prob(ROWS)
        )


def test_a_tilted_site_is_scored_by_its_own_law():
    tilted = Tilted(dist.Normal(0.0, 1.0), rewards.Linear(torch.tensor(1.5)), 2.0)
    density = ProgramDensity(lambda: pyro.sample("x", tilted))
    drawn = density.start(5, positions=True)
    expected = dist.Normal(3.0, 1.0).log_prob(drawn.draws.samples["x"]).double()
    torch.testing.assert_close(drawn.log_prior, expected)
    assert torch.equal(drawn.log_weights, torch.zeros(5, dtype=torch.float64))
