# SPDX-License-Identifier: Apache-2.0
"""What a reward factor keeps of the tensors that it was given."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_tilt import reward_factor
from pyro_tilt.infer.proposal import ProgramProposal


def test_a_reward_that_is_changed_in_place_afterwards_counts_as_it_was():
    def program():
        x = pyro.sample("x", dist.Normal(torch.zeros(()), 1.0))
        total = 0.0 * x
        for step in range(3):
            total += x
            reward_factor(f"r_{step}", total, 2.0)

    with pyro.condition(data={"x": torch.tensor(1.0)}), poutine.trace() as tracer:
        program()
    factors = [tracer.trace.nodes[f"r_{step}"]["fn"].log_factor.item() for step in range(3)]
    assert factors == [2.0, 4.0, 6.0]
    draws = ProgramProposal(program).draw(5)
    torch.testing.assert_close(draws.log_weights, 12.0 * draws.samples["x"].double())


def test_a_beta_that_is_changed_in_place_afterwards_counts_as_it_was():
    beta = torch.tensor(2.0)
    with poutine.trace() as tracer:
        reward_factor("r", torch.tensor(3.0), beta)
    beta.fill_(5.0)
    assert tracer.trace.nodes["r"]["fn"].log_factor.item() == 6.0


@pytest.mark.parametrize("beta", [1.5, torch.tensor(1.5, requires_grad=True)])
def test_a_look_without_gradients_leaves_them_to_later_ones(beta):
    value = torch.tensor(2.0, requires_grad=True)
    with poutine.trace() as tracer:
        reward_factor("r", value, beta)
    site = tracer.trace.nodes["r"]
    with torch.no_grad():
        site["fn"].log_prob(site["value"])
    tracer.trace.log_prob_sum().backward()
    assert value.grad.item() == 1.5


def test_a_negative_beta_meets_a_reward_of_minus_infinity_at_the_statement():
    with poutine.trace(), pytest.raises(ValueError, match="negative beta"):
        reward_factor("r", torch.tensor(-torch.inf), -1.0)
