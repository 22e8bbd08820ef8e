# SPDX-License-Identifier: Apache-2.0
import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_tilt.infer import ProgramProposal
from pyro_tilt.poutine import fast_normal

SHAPES = [
    (torch.randn(4, 3), torch.rand(3) + 0.1),
    (torch.tensor(0.3), torch.tensor(2.0)),
    (torch.randn(5, 1), torch.tensor([[0.5, 4.0]])),
    (torch.randn(7, dtype=torch.float64), torch.tensor(0.2, dtype=torch.float64)),
    (torch.randn(3, 6).t(), torch.tensor(1.5)),
    (torch.tensor(1.0).expand(1000), torch.rand(1000) + 0.5),
    (torch.randn(6, dtype=torch.float64), torch.tensor(0.7)),
]


@pytest.mark.parametrize("loc, scale", SHAPES)
@pytest.mark.parametrize("seed", [0, 1])
def test_draws_are_those_of_rsample_bit_for_bit(loc, scale, seed):
    fn = dist.Normal(loc, scale)
    torch.manual_seed(seed)
    expected, after = fn.rsample(), torch.get_rng_state()
    torch.manual_seed(seed)
    value = fast_normal.draw(fn)
    assert value.dtype == expected.dtype and torch.equal(value, expected)
    assert torch.equal(torch.get_rng_state(), after)


@pytest.mark.parametrize("loc, scale", SHAPES)
def test_densities_are_those_of_torch(loc, scale):
    fn = dist.Normal(loc, scale)
    for value in (fn.sample(), torch.tensor(-2.5, dtype=loc.dtype), fn.sample((2,))):
        before = value.clone()
        found = fast_normal.log_prob(fn, value)
        torch.testing.assert_close(found, fn.log_prob(value), rtol=4e-6, atol=4e-6)
        assert torch.equal(value, before)


def test_a_scale_of_less_precision_costs_the_density_none():
    loc, scale = torch.randn(20, dtype=torch.float64), torch.tensor(0.7)
    value = torch.randn(20, dtype=torch.float64)
    exact = dist.Normal(loc, scale.double()).log_prob(value)
    found = fast_normal.log_prob(dist.Normal(loc, scale), value)
    torch.testing.assert_close(found, exact, rtol=0.0, atol=1e-13)


def test_parameters_are_left_as_they_are():
    loc, scale = torch.randn(6), torch.tensor(0.7)
    kept = loc.clone()
    fn = dist.Normal(loc, scale)
    fast_normal.log_prob(fn, torch.zeros(6))
    fast_normal.draw(fn)
    assert torch.equal(loc, kept) and scale == torch.tensor(0.7)


def test_where_someone_validates_or_differentiates_torch_does_the_work():
    plain = dist.Normal(torch.zeros(2), 1.0, validate_args=False)
    with torch.no_grad():
        assert fast_normal.is_plain_normal(plain)
        assert not fast_normal.is_plain_normal(dist.Normal(0.0, 1.0, validate_args=True))
        assert not fast_normal.is_plain_normal(dist.LogNormal(0.0, 1.0, validate_args=False))
        assert not fast_normal.is_plain_normal(plain.to_event(1))
    assert not fast_normal.is_plain_normal(plain)


def test_particles_share_no_noise_where_their_law_is_shared():
    def program():
        return pyro.sample("x", dist.Normal(torch.tensor(1.0), torch.tensor(2.0)))

    pyro.set_rng_seed(3)
    values = ProgramProposal(program).draw(2000).samples["x"]
    assert values.unique().numel() == 2000
    # Four standard errors: a false alarm in 16,000 seeds, and the seed is fixed.
    assert abs(values.mean() - 1.0) < 4 * 2.0 / 2000**0.5
