# SPDX-License-Identifier: Apache-2.0
"""Rules are found by both types, the nearest first, and may decline."""

import pyro.distributions as dist
import pytest
import torch
import torch.distributions as td

from pyro_tilt import rewards
from pyro_tilt.distributions import ExactTilt, Tilted, find_tilt, register_tilt, registry


@pytest.fixture(autouse=True)
def _rules_restored():
    rules = {pair: list(found) for pair, found in registry._RULES.items()}
    yield
    registry._RULES.clear()
    registry._RULES.update(rules)
    registry._MATCHES.clear()


class Near(dist.Normal):
    pass


class Slope(rewards.Linear):
    pass


def _named(value):
    def rule(base, reward):
        return ExactTilt(None, torch.tensor(value), "closed form")

    return rule


def test_torch_and_pyro_types_share_a_rule():
    reward = rewards.Linear(torch.tensor(2.0))
    for base in (td.Normal(1.0, 1.0), dist.Normal(1.0, 1.0)):
        assert find_tilt(base, reward).log_normalizer.item() == pytest.approx(4.0)


def test_the_nearest_base_type_wins_over_the_nearest_reward_type():
    register_tilt(Near, rewards.Reward)(_named(1.0))
    register_tilt(td.Normal, Slope)(_named(2.0))
    assert find_tilt(Near(0.0, 1.0), Slope(torch.tensor(1.0))).log_normalizer == 1.0
    assert find_tilt(dist.Normal(0.0, 1.0), Slope(torch.tensor(1.0))).log_normalizer == 2.0


def test_the_last_registered_of_one_pair_is_asked_first_and_may_decline():
    asked = []
    register_tilt(Near, Slope)(_named(1.0))

    @register_tilt(Near, Slope)
    def declines(base, reward):
        asked.append(float(reward.theta))

    found = find_tilt(Near(0.0, 1.0), Slope(torch.tensor(0.5)))
    assert asked == [0.5]
    assert found.log_normalizer == 1.0


def test_a_new_rule_is_seen_after_a_lookup():
    base, reward = Near(0.0, 1.0), Slope(torch.tensor(3.0))
    assert find_tilt(base, reward).log_normalizer.item() == pytest.approx(4.5)
    register_tilt(Near, Slope)(_named(-7.0))
    assert find_tilt(base, reward).log_normalizer == -7.0


def test_a_rule_receives_beta_folded_in_and_is_asked_once():
    asked = []

    @register_tilt(Near, Slope)
    def closed(base, reward):
        asked.append(float(reward.theta))
        return ExactTilt(dist.Normal(float(reward.theta), 1.0), torch.tensor(0.0), "closed form")

    class Doubling(Slope):
        def _times(self, scale):
            return Slope(self.theta * scale)

    tilted = Tilted(Near(0.0, 1.0), Doubling(torch.tensor(0.5)), beta=4.0)
    assert asked == []
    tilted.sample((3,))
    tilted.log_prob(torch.zeros(2))
    assert asked == [2.0]
    assert tilted.mean == 2.0


def test_what_is_unknown_is_none():
    base = dist.MultivariateNormal(torch.zeros(2), torch.eye(2))
    assert find_tilt(base, rewards.BlackBox(lambda x: x.prod(-1))) is None
    assert find_tilt(dist.Poisson(3.0), rewards.BlackBox(torch.sin)) is None


def test_types_are_checked():
    with pytest.raises(TypeError, match="base must be a distribution type"):
        register_tilt(dist.Normal(0.0, 1.0), rewards.Linear)
    with pytest.raises(TypeError, match="reward must be a Reward type"):
        register_tilt(dist.Normal, torch.sin)
