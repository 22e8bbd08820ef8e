# SPDX-License-Identifier: Apache-2.0
"""Laws of a choice among draws of one model: brute force, limits, numerics, bad input."""

import itertools
import math

import pytest
import torch
from law_cases import by_enumeration, kl, random_models
from scipy import integrate

from pyro_tilt.language import laws

BASE = torch.tensor([0.35, 0.1, 0.25, 0.05, 0.25], dtype=torch.float64)
REWARDS = {
    "distinct": torch.tensor([0.3, -1.0, 2.0, 0.9, -0.2], dtype=torch.float64),
    "ties": torch.tensor([0.3, 2.0, 2.0, 0.3, -0.2], dtype=torch.float64),
    "one excluded": torch.tensor([0.3, -math.inf, 2.0, 2.0, -0.2], dtype=torch.float64),
    "most excluded": torch.tensor([-math.inf, -math.inf, 2.0, -math.inf, 0.1]).double(),
}
ALONE = [laws.soft_best_of_n, laws.exp_best_of_n, laws.truncated_rejection]


def best(rewards):
    def choose(draws):
        values = [float(rewards[i]) for i in draws]
        yield values.index(max(values)), 1.0

    return choose


def soft(rewards, beta):
    def choose(draws):
        weights = [math.exp(beta * float(rewards[i])) for i in draws]
        total = sum(weights)
        if total == 0.0:
            yield 0, 1.0
        else:
            yield from ((place, weight / total) for place, weight in enumerate(weights))

    return choose


def permute_and_flip(rewards, beta):
    """Looks at the draws in random order and takes one with its weight over the largest."""

    def choose(draws):
        logs = [beta * float(rewards[i]) for i in draws]
        if max(logs) == -math.inf:
            yield 0, 1.0
            return
        orders = list(itertools.permutations(range(len(draws))))
        for order in orders:
            left = 1.0 / len(orders)
            for place in order:
                accept = math.exp(logs[place] - max(logs))
                yield place, left * accept
                left *= 1.0 - accept

    return choose


def first_hit(rewards, beta, n, fallback):
    def choose(draws):
        top = beta * max(float(r) for r in rewards)
        left = 1.0
        for place, i in enumerate(draws[:n]):
            accept = math.exp(beta * float(rewards[i]) - top)
            yield place, left * accept
            left *= 1.0 - accept
        yield (n if fallback == "fresh" else n - 1), left

    return choose


@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize("name", REWARDS)
def test_laws_are_those_of_brute_force(name, n):
    rewards, beta = REWARDS[name], 0.8
    for law, choose in (
        (laws.best_of_n(BASE, rewards, n), best(rewards)),
        (laws.soft_best_of_n(BASE, rewards, beta, n), soft(rewards, beta)),
        (laws.exp_best_of_n(BASE, rewards, beta, n), permute_and_flip(rewards, beta)),
    ):
        torch.testing.assert_close(law, by_enumeration(BASE, n, choose), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("name", REWARDS)
def test_negative_beta(name):
    rewards = REWARDS[name]
    if bool((rewards == -math.inf).any()):
        with pytest.raises(ValueError, match="negative beta"):
            laws.soft_best_of_n(BASE, rewards, -1.0, 3)
        return
    for n in (2, 3):
        law = laws.exp_best_of_n(BASE, rewards, -1.1, n)
        brute = by_enumeration(BASE, n, permute_and_flip(rewards, -1.1))
        torch.testing.assert_close(law, brute, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("fallback", ["fresh", "last"])
@pytest.mark.parametrize("name", REWARDS)
def test_truncated_rejection_by_brute_force(name, fallback):
    rewards, beta = REWARDS[name], 0.8
    for n in (1, 3):
        length = n + (fallback == "fresh")
        brute = by_enumeration(BASE, length, first_hit(rewards, beta, n, fallback))
        law = laws.truncated_rejection(BASE, rewards, beta, n, fallback=fallback)
        torch.testing.assert_close(law, brute, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("log_bound", [None, 3.0])
@pytest.mark.parametrize("name", REWARDS)
def test_a_hit_is_exact_and_a_miss_has_a_law_of_its_own(name, log_bound):
    rewards, beta, n = REWARDS[name], 0.8, 3
    parts = laws.exp_best_of_n_parts(BASE, rewards, beta, n, log_bound=log_bound)
    joined = parts.hit_probability * parts.target + (1 - parts.hit_probability) * parts.miss
    torch.testing.assert_close(joined, laws.exp_best_of_n(BASE, rewards, beta, n))
    bound = beta * float(rewards.max()) if log_bound is None else log_bound
    accept = float((BASE * (beta * rewards - bound).exp()).sum())
    assert float(parts.hit_probability) == pytest.approx(1.0 - (1.0 - accept) ** n, abs=1e-12)
    # The miss is neither the base nor the last rejected draw.
    last = laws.truncated_rejection(BASE, rewards, beta, n, log_bound=log_bound, fallback="last")
    fresh = laws.truncated_rejection(BASE, rewards, beta, n, log_bound=log_bound)
    assert (joined - last).abs().max() > 1e-3
    assert (joined - fresh).abs().max() > 1e-3


def test_soft_law_agrees_with_adaptive_quadrature():
    """The integral in t itself, not in log t, at an n that enumeration cannot reach."""
    rewards, beta, n = REWARDS["ties"], 1.7, 40
    weights = (beta * (rewards - rewards.max())).exp()

    def integrand(t, y):
        return (
            n
            * BASE[y]
            * weights[y]
            * math.exp(-t * weights[y])
            * float((BASE * (-t * weights).exp()).sum()) ** (n - 1)
        )

    law = laws.soft_best_of_n(BASE, rewards, beta, n)
    for y in range(5):
        exact = integrate.quad(integrand, 0.0, 20.0, args=(y,), epsabs=1e-13, epsrel=1e-11)[0]
        assert float(law[y]) == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize("law", ALONE[:2])
def test_limits(law):
    for rewards in REWARDS.values():
        torch.testing.assert_close(law(BASE, rewards, 1.3, 1), BASE)
        torch.testing.assert_close(law(BASE, rewards, 0.0, 7), BASE)
        if bool(rewards.isfinite().all()):
            torch.testing.assert_close(law(BASE, rewards, 1e-9, 7), BASE, atol=1e-7, rtol=0)
        for beta in (1e3, 1e6, 1e12):
            found = law(BASE, rewards, beta, 7)
            torch.testing.assert_close(found, laws.best_of_n(BASE, rewards, 7))
        torch.testing.assert_close(
            law(BASE, rewards, 1.3, 10**6), laws.tilt(BASE, rewards, 1.3), rtol=1e-5, atol=1e-7
        )


def test_truncated_rejection_limits():
    rewards = REWARDS["one excluded"]
    target = laws.tilt(BASE, rewards, 1.3)
    torch.testing.assert_close(laws.truncated_rejection(BASE, rewards, 0.0, 3), BASE)
    torch.testing.assert_close(laws.truncated_rejection(BASE, rewards, 1.3, 1000), target)
    torch.testing.assert_close(
        laws.truncated_rejection(BASE, rewards, 1.3, 3, log_bound=80.0), BASE
    )


def test_shifting_the_reward_changes_nothing():
    rewards = REWARDS["one excluded"]
    for law in ALONE:
        torch.testing.assert_close(law(BASE, rewards + 700.0, 1.3, 5), law(BASE, rewards, 1.3, 5))
    monotone = torch.where(rewards > -math.inf, rewards.exp(), rewards)
    torch.testing.assert_close(laws.best_of_n(BASE, monotone, 5), laws.best_of_n(BASE, rewards, 5))


def test_batches_are_rows():
    base, _, rewards = random_models(6, 5, 3, ties=True)
    base, rewards = base.reshape(2, 3, 5), rewards[:3]
    for law in (
        lambda p, r: laws.best_of_n(p, r, 4),
        *(lambda p, r, law=law: law(p, r, 0.9, 4) for law in ALONE),
    ):
        whole = law(base, rewards)
        assert whole.shape == (2, 3, 5)
        for i, j in itertools.product(range(2), range(3)):
            torch.testing.assert_close(whole[i, j], law(base[i, j], rewards[j]))


def test_log_space_reaches_where_probabilities_underflow():
    """A top class of mass e^-800 is kept with probability n times its mass."""
    logs = torch.tensor([0.0, -800.0, -900.0], dtype=torch.float64)
    rewards = torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64)
    law = laws.best_of_n(logs, rewards, 8, log=True)
    assert float(law[1]) == pytest.approx(-800.0 + math.log(8.0), abs=1e-10)
    assert float(law[2]) == pytest.approx(-900.0 + math.log(8.0), abs=1e-10)
    for other in (laws.soft_best_of_n, laws.exp_best_of_n):
        law = other(logs, rewards, 2.0, 8, log=True)
        assert float(law[0]) == pytest.approx(0.0, abs=1e-12)
        assert float(law[1] - law[2]) == pytest.approx(100.0, abs=1e-8)
    # Eight draws of the lower class share a weight of one beside e^2 for the rare one.
    rare = laws.soft_best_of_n(logs, rewards, 2.0, 8, log=True)[1]
    chance = 8.0 * math.exp(2.0) / (7.0 + math.exp(2.0))
    assert float(rare) == pytest.approx(-800.0 + math.log(chance), abs=1e-8)


def test_laws_sum_to_one_at_any_scale():
    base, _, rewards = random_models(40, 12, 5)
    scales = torch.logspace(-6, 4, 40).unsqueeze(-1)
    for n in (2, 100, 10_000):
        for law in ALONE:
            total = law(base, scales * rewards, 1.0, n).sum(-1)
            torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-10)
        total = laws.best_of_n(base, rewards, n).sum(-1)
        torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-12)


def test_impossible_outcomes_stay_impossible():
    base = torch.tensor([0.5, 0.0, 0.5, 0.0], dtype=torch.float64)
    rewards = torch.tensor([0.0, 5.0, 1.0, -math.inf], dtype=torch.float64)
    for law in (
        laws.best_of_n(base, rewards, 3),
        *(each(base, rewards, 1.0, 3) for each in ALONE),
        laws.tilt(base, rewards, 1.0),
    ):
        assert law[1] == 0.0 and law[3] == 0.0
        assert float(law.sum()) == pytest.approx(1.0)


def test_rates_on_finite_models():
    """The soft choice nears the tilt as 1/n^2 in divergence, 1/n in reward; hits exponentially."""
    rewards, beta = REWARDS["distinct"] / 2.0, 1.0
    target = laws.tilt(BASE, rewards, beta)
    weight = (beta * rewards).exp() / float((BASE * (beta * rewards).exp()).sum())
    bias = -float(
        (target * rewards * weight).sum() - (target * rewards).sum() * (target * weight).sum()
    )
    for n, slack in ((64, 0.1), (1024, 0.01)):
        law = laws.soft_best_of_n(BASE, rewards, beta, n)
        rate = laws.soft_best_of_n_kl_rate(BASE, rewards, beta, n)
        assert float(kl(target, law) / rate) == pytest.approx(1.0, abs=slack)
        gap = n * float(((law - target) * rewards).sum())
        assert gap == pytest.approx(bias, rel=slack)
    parts = laws.exp_best_of_n_parts(BASE, rewards, beta, 8)
    law = laws.exp_best_of_n(BASE, rewards, beta, 8)
    assert float(kl(target, law)) <= -math.log(float(parts.hit_probability))
    truncated = laws.truncated_rejection(BASE, rewards, beta, 8)
    distance = 0.5 * (truncated - target).abs().sum()
    expected = (1 - parts.hit_probability) * 0.5 * (BASE - target).abs().sum()
    torch.testing.assert_close(distance, expected, rtol=1e-8, atol=0)


def test_dtype_and_gradientless_inputs():
    for dtype in (torch.float32, torch.float64):
        base, rewards = BASE.to(dtype), REWARDS["ties"].to(dtype)
        assert laws.best_of_n(base, rewards, 3).dtype == dtype
        for law in ALONE:
            assert law(base, rewards, 1.0, 3).dtype == dtype


@pytest.mark.parametrize("n", [0, -1, 2.5, True])
def test_bad_n(n):
    calls = [lambda: laws.best_of_n(BASE, REWARDS["ties"], n)]
    calls += [lambda law=law: law(BASE, REWARDS["ties"], 1.0, n) for law in ALONE]
    for call in calls:
        with pytest.raises(ValueError, match="n must be an integer"):
            call()


def test_bad_tables():
    rewards = REWARDS["ties"]
    nan = rewards.clone()
    nan[0] = math.nan
    for law in (
        lambda p, r: laws.best_of_n(p, r, 2),
        *(
            lambda p, r, law=law: law(p, r, 1.0, 2)
            for law in (*ALONE, lambda p, r, b, n: laws.tilt(p, r, b))
        ),
    ):
        with pytest.raises(ValueError, match="NaN"):
            law(BASE, nan)
        with pytest.raises(ValueError, match="inf"):
            law(BASE, rewards + math.inf)
        with pytest.raises(ValueError, match="5 outcomes"):
            law(BASE, rewards[:4])
        with pytest.raises(ValueError, match="sum to 1"):
            law(2.0 * BASE, rewards)
        with pytest.raises(ValueError, match="negative"):
            law(BASE - 0.2, rewards)
        with pytest.raises(ValueError, match="batch shapes"):
            law(BASE.expand(2, 5), rewards.expand(3, 5))
    with pytest.raises(ValueError, match="beta"):
        laws.soft_best_of_n(BASE, rewards, math.nan, 2)
    with pytest.raises(ValueError, match="log_bound"):
        laws.truncated_rejection(BASE, rewards, 1.0, 2, log_bound=0.0)
    with pytest.raises(ValueError, match="fallback"):
        laws.truncated_rejection(BASE, rewards, 1.0, 2, fallback="base")
    nothing = torch.full((5,), -math.inf, dtype=torch.float64)
    with pytest.raises(ValueError, match="-inf"):
        laws.tilt(BASE, nothing, 1.0)
    for law in ALONE[:2]:
        torch.testing.assert_close(law(BASE, nothing, 1.0, 4), BASE)
