# SPDX-License-Identifier: Apache-2.0
"""Batches that mix steps, and states whose values nobody asks for."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_tilt import scan
from pyro_tilt.infer import SamplerWarning
from pyro_tilt.infer.twists import LearnedTwist, SharedNetwork, StepKeys, learn_twists
from pyro_tilt.infer.twists.fitting import Pairs, _batch_of_all, fit

STEPS = 6


def walk():
    """Stops for ever where it crosses one; the value of an open x is far from that of a closed."""

    def step(carry, t):
        x, closed = carry
        fresh = pyro.sample(f"x_{t}", dist.Normal(x, 0.7))
        x = torch.where(closed, x, fresh)
        return x, closed | (x > 1.0)

    start = torch.zeros(()), torch.zeros((), dtype=torch.bool)
    return scan("walk", step, start, range(STEPS))[0]


class Mixing(torch.nn.Module):
    """Notes what it is asked for."""

    def __init__(self, mixes):
        super().__init__()
        self.table = torch.nn.Embedding(STEPS, 1)
        self.layer = torch.nn.Linear(1, 1)
        self.mixes_steps = mixes
        self.asked = []

    def forward(self, features, step):
        if torch.is_grad_enabled():
            self.asked.append((step, len(features)))
        return (self.layer(features) + self.table.weight[step]).squeeze(-1)


def pairs(sizes):
    """Features that tell the step and the row."""
    return [Pairs(k, 100.0 * k + torch.arange(n)[:, None], torch.zeros(n)) for k, n in sizes]


def test_every_pair_of_every_step_is_as_likely():
    torch.manual_seed(0)
    train = pairs([(0, 30), (2, 5), (5, 15)])
    counts = torch.zeros(600)
    for _ in range(200):
        batch = _batch_of_all(train, 500)
        assert torch.equal(batch.place, (batch.features[:, 0] // 100).long())
        counts += torch.bincount(batch.features[:, 0].long(), minlength=600)
    seen = counts[counts > 0]
    assert len(seen) == 50
    # Chi-square of 49 degrees of freedom: 101.3 is exceeded once in 1e5.
    assert float((seen - 2000.0).square().sum() / 2000.0) < 101.3


@pytest.mark.parametrize("mixes", [True, False])
def test_modules_that_can_are_given_positions(mixes):
    torch.manual_seed(0)
    network = Mixing(mixes)
    twist = LearnedTwist(network, StepKeys(range(STEPS)), 1)
    train = pairs([(0, 30), (2, 40), (3, 0)])
    fit(twist, network, train, pairs([(0, 10)]), steps=8, batch_size=20, lr=1e-2)
    for step, rows in network.asked:
        assert rows == 20
        assert (isinstance(step, torch.Tensor) and set(step.tolist()) <= {0, 2}) == mixes
        assert mixes or step in (0, 2)


def test_positions_by_row_are_the_values_of_single_steps():
    network = SharedNetwork(2, STEPS)
    torch.nn.init.normal_(network.body[-1].weight)
    features, places = torch.randn(9, 2), torch.arange(9) % STEPS
    mixed = network(features, places)
    single = torch.stack([network(features[k : k + 1], int(places[k]))[0] for k in range(9)])
    torch.testing.assert_close(mixed, single)


def test_one_step_to_learn_from_is_no_mixture():
    network = Mixing(True)
    twist = LearnedTwist(network, StepKeys(range(STEPS)), 1)
    fit(twist, network, pairs([(3, 50)]), pairs([(3, 10)]), steps=2, batch_size=20, lr=1e-2)
    assert [step for step, _ in network.asked] == [3, 3]


def open_before(carry):
    return ~carry[1]


OPTIONS = {"reward": lambda x: x, "beta": 1.0, "num_particles": 1500, "rounds": 1, "steps": 60}


def read(carry):
    return torch.stack([carry[0], carry[1].float()], -1)


@pytest.mark.parametrize("network", ["heads", "shared"])
def test_states_that_do_not_matter_teach_nothing(network):
    """Features that tell nothing leave the mean over the open states, gated at five errors."""
    with pytest.warns(SamplerWarning, match="at no step"):
        twist = learn_twists(
            walk,
            where=open_before,
            features=lambda carry: torch.zeros(len(carry[0]), 1),
            network=network,
            seed=0,
            progress=False,
            **{**OPTIONS, "reward": lambda x: 2.0 * x.clamp(max=2.0), "num_particles": 6000},
        )
    torch.manual_seed(1)
    x, closed = torch.zeros(200_000), torch.zeros(200_000, dtype=torch.bool)
    still_open = []
    for _ in range(STEPS):
        x = torch.where(closed, x, x + 0.7 * torch.randn_like(x))
        closed = closed | (x > 1.0)
        still_open.append(~closed)
    returns = (2.0 * x.clamp(max=2.0)).double().exp()
    for place, kept in enumerate(still_open):
        right, everyone = returns[kept].mean(), returns.mean()
        error = float(returns[kept].std() / right) / (3000 * float(kept.float().mean())) ** 0.5
        found = float(twist((torch.zeros(1), torch.zeros(1, dtype=torch.bool)), place))
        assert abs(found - float(right.log())) < 5.0 * error
        # Closed ones are worth much more, and would be seen in the mean.
        assert place == 0 or float(everyone.log() - right.log()) > 7.0 * error


def test_steps_without_states_that_matter_are_left_alone():
    def early(carry):
        return torch.full_like(carry[1], bool(carry[0].std() < 1.3))

    twist = learn_twists(
        walk, where=early, network="shared", seed=0, features=read, progress=False, **OPTIONS
    )
    known = twist.report.loss[0].isfinite()
    assert known.tolist() == sorted(known.tolist(), reverse=True) and 1 < int(known.sum()) < STEPS
    assert bool((twist.report.shift[0][~known] == 0.0).all())
    assert bool(
        twist((torch.zeros(3), torch.zeros(3, dtype=torch.bool)), STEPS - 1).isfinite().all()
    )


@pytest.mark.parametrize("bad", [lambda c: c[0], lambda c: c[1][:5], lambda c: True])
def test_masks_of_another_kind_are_refused(bad):
    with pytest.raises(ValueError, match=r"where= must return a bool tensor of shape \(1500,\)"):
        learn_twists(walk, where=bad, features=read, seed=0, **OPTIONS)


@pytest.mark.parametrize("rounds", [1, 2])
def test_mixed_batches_reproduce_by_the_seed(rounds):
    options = {**OPTIONS, "num_particles": 300, "steps": 5, "features": read, "progress": False}
    options |= {"network": "shared", "where": open_before, "rounds": rounds}
    made = [learn_twists(walk, seed=seed, **options) for seed in (3, 3, 4)]
    carry = torch.linspace(-1.0, 1.0, 7), torch.zeros(7, dtype=torch.bool)
    values = [twist(carry, 2) for twist in made]
    assert torch.equal(values[0], values[1]) and not torch.equal(values[0], values[2])
