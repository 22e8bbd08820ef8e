# SPDX-License-Identifier: Apache-2.0
"""Speculative rejection: its limits, its exact law on a small model, and what it costs."""

import itertools
import math

import pyro
import pytest
import torch
from speculative_cases import LEAST, p_value

from pyro_tilt.infer import BestOfN, ProgramProposal, SpeculativeRejection
from pyro_tilt.infer.speculative.speculative_rejection import check_points
from pyro_tilt.language import TabularLM

LM = TabularLM.random(3, 4, seed=5)
TABLE = torch.randn(81, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
TABLE[::5] = TABLE[5]


def reward(tokens):
    return TABLE[LM.index(tokens)]


def score(carry, t):
    return (carry.tokens * torch.tensor([1.0, 0.3, 0.1, 0.0])[: carry.tokens.shape[-1]]).sum(-1)


def halving(lm=LM, **options):
    defaults = {"reward": reward, "score": score, "n": 8, "num_samples": 300, "seed": 4}
    return SpeculativeRejection(lm.program(), **{"progress": False, **defaults, **options})


def test_dropping_none_is_best_of_n_bit_for_bit():
    best = BestOfN(LM.program(), reward=reward, n=8, num_samples=300, seed=4).run()
    for options in ({}, {"score": None}, {"checks": 1}):
        same = halving(alpha=0.0, **options).run()
        assert same.samples.keys() == best.samples.keys()
        for name in best.samples:
            assert torch.equal(same.samples[name], best.samples[name])
        assert torch.equal(same.stats["index"], best.stats["index"])
        assert same.cost.base_draws == best.cost.base_draws
        assert same.info["share_of_rows"] == 1.0


def test_law_of_one_cut():
    """Of three draws of two tokens, one of the first tokens is dropped: by enumeration."""
    lm = TabularLM.random(2, 2, seed=8)
    table = torch.tensor([0.4, 0.1, 0.2, 0.3], dtype=torch.float64)
    first = lm.next_log_probs(None).exp()
    second = lm.next_log_probs(torch.tensor([[0], [1]])).exp()
    law = torch.zeros(4, dtype=torch.float64)
    for starts in itertools.product(range(2), repeat=3):
        chance = math.prod(float(first[s]) for s in starts)
        kept = sorted(starts, reverse=True)[:2]
        for ends in itertools.product(range(2), repeat=2):
            share = chance * math.prod(float(second[s, e]) for s, e in zip(kept, ends))
            law[max((2 * s + e for s, e in zip(kept, ends)), key=lambda i: table[i])] += share
    result = halving(
        lm,
        reward=lambda y: table[lm.index(y)],
        score=lambda carry, t: carry.tokens[:, 0],
        n=3,
        alpha=1 / 3,
        checks=1,
        num_samples=200_000,
    ).run()
    found = lm.index(result.samples["tokens"])
    assert p_value(found, law) > LEAST
    assert torch.equal(result.stats["reward"], table[found])
    assert torch.equal(result.samples["token_0"], result.samples["tokens"][:, 0])
    assert (result.info["survivors"], result.info["step_rows"]) == (2, 5 * 200_000)


@pytest.mark.parametrize("alpha", [0.3, 0.5, 0.75, 0.99])
def test_scores_that_order_as_the_reward_give_best_of_n(alpha):
    """The reward is told by the first token, which the same draws begin with."""
    options = {"reward": lambda y: TABLE[y[..., 0]], "n": 16}
    best = BestOfN(LM.program(), num_samples=300, seed=4, **options).run()
    cut = halving(score=lambda c, t: TABLE[c.tokens[:, 0]], alpha=alpha, checks=1, **options).run()
    assert torch.equal(cut.stats["reward"], best.stats["reward"])
    assert torch.equal(cut.stats["index"], best.stats["index"])
    assert cut.info["survivors"] >= 1
    against = halving(score=lambda c, t: -TABLE[c.tokens[:, 0]], alpha=alpha, checks=1, **options)
    assert against.run().stats["reward"].mean() < best.stats["reward"].mean()


def test_of_equal_rewards_the_first_drawn_is_kept():
    pyro.set_rng_seed(4)
    first = ProgramProposal(LM.program()).draw(300 * 8).samples["token_0"].reshape(300, 8)
    left = (-first).sort(dim=-1, stable=True).indices[:, :4].amin(-1)
    result = halving(
        reward=lambda y: torch.zeros(len(y)) if y.dim() > 1 else torch.tensor(0.0),
        score=lambda c, t: c.tokens[:, 0],
        checks=[1],
    ).run()
    assert torch.equal(result.stats["index"], left)
    assert 0 < int((left > 0).sum()) < 300


def test_counts():
    result = halving(n=64, alpha=0.5, checks=[1, 3], num_samples=10).run()
    assert result.info["step_rows"] == 10 * (64 + 32 + 32 + 16)
    assert result.info["share_of_rows"] == pytest.approx(144 / 256)
    assert (result.info["survivors"], result.cost.reward_calls) == (16, 160)
    assert (result.cost.value_calls, result.cost.base_draws) == (960, 360)
    assert result.info["tokens"] == result.info["step_rows"]
    # Rows that have ended run on and are no tokens.
    stop = TabularLM.random(3, 4, seed=5, stop_token=0)
    table = torch.arange(float(len(stop.enumerate())))
    ended = halving(
        stop,
        reward=lambda y: table[stop.index(y)],
        n=8,
        alpha=0.5,
        finished=lambda carry: stop.finished(carry.tokens),
    ).run()
    assert ended.info["tokens"] < ended.info["step_rows"]
    one = halving(n=1, alpha=0.9).run()
    assert one.info["survivors"] == 1
    assert one.certificate.law == "search"
    assert one.certificate.target == "best-of-n law (n=1)"


def test_check_points():
    assert check_points(None, 9) == {3, 6}
    assert check_points(None, 1) == set()
    assert check_points(4, 12) == {4, 8}
    with pytest.raises(ValueError, match="before the last"):
        check_points([12], 12)


def test_rewards_of_sites_inside_the_steps():
    result = halving(reward=lambda x: x.double(), of="token_1", score=score, checks=[2]).run()
    assert torch.equal(result.stats["reward"], result.samples["token_1"].double())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"n": 0}, ValueError, "n must be"),
        ({"alpha": 1.0}, ValueError, "alpha"),
        ({"alpha": -0.1}, ValueError, "alpha"),
        ({"alpha": math.nan}, ValueError, "alpha"),
        ({"score": None}, ValueError, "give score="),
        ({"score": 3}, TypeError, "score must be callable"),
        ({"beta": 2.0}, TypeError, "no beta"),
        ({"reward": None}, ValueError, "give reward="),
        ({"n": 64, "max_batch": 10}, ValueError, "max_batch"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        halving(**options)


def test_bad_runs():
    with pytest.raises(ValueError, match="score is NaN"):
        halving(score=lambda c, t: c.tokens[:, 0] * math.nan).run()
    with pytest.raises(ValueError, match="one number per particle"):
        halving(score=lambda c, t: c.tokens).run()
    with pytest.raises(ValueError, match="checks must lie"):
        halving(checks=[4]).run()
    with pytest.raises(ValueError, match="NaN"):
        halving(reward=lambda y: reward(y) * math.nan).run()
