# SPDX-License-Identifier: Apache-2.0
"""Rewards as ranks: ties, transforms, bounds, and a beta without a scale."""

import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_tilt import rewards
from pyro_tilt.infer import Rejection, SoftBestOfN

BASE = torch.tensor([3.0, -1.0, 0.5, 0.5, 0.5, 7.0, -math.inf, 2.0], dtype=torch.float64)


def identity(x):
    return x


def by_hand(values):
    below = (values[..., None] > BASE).double().mean(-1)
    return below + 0.5 * (values[..., None] == BASE).double().mean(-1)


def test_ranks_with_ties_by_half():
    values = torch.tensor([-5.0, -1.0, 0.0, 0.5, 2.0, 2.5, 7.0, 9.0], dtype=torch.float64)
    reward = rewards.Calibrated(identity, BASE, transform="identity")
    torch.testing.assert_close(reward(values), by_hand(values))
    assert reward(torch.tensor(0.5)).item() == pytest.approx((2 + 1.5) / 8)
    grid = values.reshape(2, 4)
    torch.testing.assert_close(reward(grid), by_hand(grid))
    # The mean rank of the base itself is one half, ties or not.
    assert float(reward.rank(BASE).mean()) == pytest.approx(0.5)


@pytest.mark.parametrize("t", [0.5, 10.0, 800.0])
def test_exponential_transform(t):
    values = torch.linspace(-2.0, 8.0, 41, dtype=torch.float64)
    reward = rewards.Calibrated(identity, BASE, t=t)
    ranks = by_hand(values)
    expected = torch.exp(t * (ranks - 1)) * (1 - torch.exp(-t * ranks)) / (1 - math.exp(-t))
    torch.testing.assert_close(reward(values), expected)
    assert float(reward(values).min()) >= reward.lower_bound or reward.lower_bound == -math.inf
    assert float(reward(torch.tensor(9.0))) == pytest.approx(1.0)
    assert reward.upper_bound == 1.0


def test_transforms_keep_the_order_and_forget_the_scale():
    values = torch.tensor([-1.0, 0.5, 2.0, 3.0, 7.0], dtype=torch.float64)
    for transform in ("identity", "exponential", "log"):
        plain = rewards.Calibrated(identity, BASE, transform=transform)
        assert bool((plain(values).diff() > 0).all())
        warped = rewards.Calibrated(
            lambda x: (0.3 * x).exp(), (0.3 * BASE).exp(), transform=transform
        )
        torch.testing.assert_close(plain(values), warped(values))
    log = rewards.Calibrated(identity, BASE, transform="log")
    torch.testing.assert_close(log(values), by_hand(values).log())
    finite = rewards.Calibrated(identity, BASE[-math.inf < BASE], transform="log")
    assert float(finite(torch.tensor(-9.0))) == pytest.approx(math.log(1 / 14))
    assert finite.upper_bound == 0.0


def test_what_is_excluded_stays_so_and_nan_is_seen():
    reward = rewards.Calibrated(identity, BASE)
    assert float(reward(torch.tensor(-math.inf))) == -math.inf
    assert math.isnan(float(reward(torch.tensor(math.nan))))
    assert reward.lower_bound == -math.inf
    bounded = rewards.Calibrated(rewards.Bounded(identity, -1.0, 7.0), BASE)
    assert (bounded.lower_bound, bounded.upper_bound) == (0.0, 1.0)
    with pytest.raises(ValueError, match="NaN"):
        rewards.evaluate(reward, torch.tensor([math.nan]))


def test_a_known_largest_reward_makes_rejection_exact():
    probs = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    table = torch.tensor([5.0, -3.0, 100.0, 5.0], dtype=torch.float64)

    def program():
        return pyro.sample("x", dist.Categorical(probs))

    generator = torch.Generator().manual_seed(0)
    drawn = table[torch.multinomial(probs, 4000, True, generator=generator)]
    reward = rewards.Calibrated(lambda x: table[x], drawn, transform="identity")
    result = Rejection(program, reward=reward, beta=3.0, num_samples=40_000, seed=0).run()
    law = (probs.log() + 3.0 * reward(torch.arange(4))).softmax(0)
    found = torch.bincount(result.samples["x"], minlength=4) / 40_000
    assert float((found - law).abs().max()) < 4.5 * math.sqrt(0.25 / 40_000)
    # The ranks come from the base: 0.1 with half of the ties of 5, and so on.
    expected = torch.tensor([0.2 + 0.25, 0.1, 0.7 + 0.15, 0.45], dtype=torch.float64)
    assert float((reward(torch.arange(4)) - expected).abs().max()) < 4.5 * math.sqrt(0.25 / 4000)
    soft = SoftBestOfN(program, reward=reward, beta=3.0, n=4, num_samples=50, seed=0).run()
    assert float(soft.stats["reward"].max()) <= 1.0


def test_dtype_arithmetic_and_pickling():
    reward = rewards.Calibrated(rewards.Linear(torch.tensor(1.0)), BASE, t=3.0)
    assert reward(torch.tensor([1.0, 2.0])).dtype == torch.float32
    doubled = 2.0 * reward + 1.0
    torch.testing.assert_close(doubled(torch.tensor(2.0)), 2.0 * reward(torch.tensor(2.0)) + 1.0)
    again = pickle.loads(pickle.dumps(reward))
    assert float(again(torch.tensor(2.0))) == float(reward(torch.tensor(2.0)))
    assert reward.to(torch.float32).base_rewards.dtype == torch.float32
    assert "8 base rewards" in repr(reward)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base_rewards": torch.tensor([])}, "at least one"),
        ({"base_rewards": torch.zeros(2, 2)}, "base_rewards must be"),
        ({"base_rewards": torch.tensor([1.0, math.nan])}, "NaN"),
        ({"base_rewards": torch.tensor([1.0, math.inf])}, "inf"),
        ({"transform": "square"}, "transform must be one of"),
        ({"t": 0.0}, "t must be positive"),
        ({"t": math.nan}, "t must be positive"),
    ],
)
def test_bad_input(options, message):
    arguments = {"base_rewards": BASE, **options}
    with pytest.raises(ValueError, match=message):
        rewards.Calibrated(identity, **arguments)
