# SPDX-License-Identifier: Apache-2.0
import math
from dataclasses import dataclass

import pytest
import torch
from scipy import stats

from pyro_tilt.ops.clipped_law import ClippedLaw
from pyro_tilt.ops.pool import PoolExhausted, acceptance_generator, pooled_rejection

inf = math.inf

# An asymmetric base of five values; the baseline clips two of them, one has weight zero.
LOG_P = torch.tensor([0.3, 0.25, 0.2, 0.15, 0.1], dtype=torch.float64).log()
LOG_W = torch.tensor([-1.0, 0.7, -inf, 2.0, 3.1], dtype=torch.float64)
BASELINE = torch.tensor(1.4, dtype=torch.float64)
LAW = ClippedLaw(LOG_P, LOG_W, BASELINE)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def proposer(seed=0):
    generator = seeded(seed)
    return lambda n: torch.multinomial(LOG_P.exp(), n, replacement=True, generator=generator)


def log_accept(x):
    return LOG_W[x] - BASELINE


def stream(values):
    """A proposal function that deals the rows of a fixed stream, and the list of its calls."""
    calls = []

    def propose(n):
        start = sum(calls)
        calls.append(n)
        return values[start : start + n]

    return propose, calls


def chi_square(values, prob):
    counts = values.bincount(minlength=len(prob)).double()
    keep = prob > 0
    assert (counts[~keep] == 0).all()
    return stats.chisquare(counts[keep].numpy(), (len(values) * prob[keep]).numpy()).pvalue


@pytest.mark.parametrize("max_block", [64, 131_072])
def test_law_of_the_draws(max_block):
    # p-value gate 1e-5. The target itself (law q) is refuted at once.
    result = pooled_rejection(
        proposer(), log_accept, 40_000, max_block=max_block, generator=seeded(1)
    )
    assert chi_square(result.batch, LAW.log_prob.exp()) > 1e-5
    assert chi_square(result.batch, LAW.target_log_prob.exp()) < 1e-5
    assert not result.capped.any()
    rate = LAW.acceptance_rate.item()
    error = math.sqrt(rate * (1 - rate) / result.total)
    assert abs(result.acceptance_rate - rate) < 4.5 * error


@pytest.mark.parametrize("cap", [1, 2, 5])
@pytest.mark.parametrize("max_block", [3, 1000])
def test_law_under_a_cap(cap, max_block):
    # p-value gate 1e-5; blocks of 3 rows put gaps across block boundaries.
    num = 20_000 if max_block > 3 else 3000
    result = pooled_rejection(
        proposer(2),
        log_accept,
        num,
        max_block=max_block,
        max_proposals=cap,
        generator=seeded(3),
    )
    assert chi_square(result.batch, LAW.capped_prob(cap)) > 1e-5
    left = (1 - LAW.acceptance_rate.item()) ** cap
    error = math.sqrt(left * (1 - left) / num)
    assert abs(result.capped.double().mean().item() - left) < 4.5 * error
    assert (result.proposals[result.capped] == cap).all() and result.proposals.max() <= cap
    rejected = LOG_P.exp() * (1 - (LOG_W - BASELINE).exp().clamp(max=1))
    assert chi_square(result.batch[result.capped], rejected / rejected.sum()) > 1e-5
    assert chi_square(result.batch[~result.capped], LAW.log_prob.exp()) > 1e-5


def test_cap_against_a_plain_loop():
    num = 200
    accepted = torch.rand(20_000, generator=seeded(4)) < 0.1
    values = torch.arange(len(accepted))
    for cap in (1, 3, 7, 50):
        slots, gap = [], 0
        for row, passed in enumerate(accepted.tolist()):
            gap += 1
            if passed or gap == cap:
                slots.append((row, gap, not passed))
                gap = 0
        want = torch.tensor(slots[:num])
        for max_block in (1, 2, 5, 64, 10_000):
            propose, _ = stream(values)
            result = pooled_rejection(
                propose,
                lambda rows: torch.where(accepted[rows], 0.0, -inf),
                num,
                max_block=max_block,
                max_proposals=cap,
            )
            assert torch.equal(result.batch, want[:, 0])
            assert torch.equal(result.proposals, want[:, 1])
            assert torch.equal(result.capped, want[:, 2].bool())
            assert result.total == int(want[-1, 0]) + 1
            assert result.accepted == int(accepted[: result.total].sum())


def test_blocks_do_not_matter():
    values = torch.multinomial(LOG_P.exp(), 100_000, replacement=True, generator=seeded(5))
    results = []
    for max_block in (1, 17, 1000, 100_000):
        propose, calls = stream(values)
        result = pooled_rejection(
            propose, log_accept, 500, max_block=max_block, generator=seeded(6)
        )
        assert max(calls) <= max_block and sum(calls) == result.drawn
        results.append(result)
    for result in results[1:]:
        assert torch.equal(result.batch, results[0].batch)
        assert torch.equal(result.proposals, results[0].proposals)
        assert result.total == results[0].total


def test_slots_are_independent_and_alike():
    # 4,000 runs of 4 slots: the joint law of the first and last slot
    # against the product, and proposals per slot against a geometric law: gates at 1e-5.
    first, last, gaps = [], [], []
    propose, generator = proposer(7), seeded(8)
    for _ in range(4000):
        result = pooled_rejection(propose, log_accept, 4, generator=generator)
        first.append(result.batch[0])
        last.append(result.batch[-1])
        gaps.append(result.proposals)
    first, last, gaps = torch.stack(first), torch.stack(last), torch.stack(gaps)
    prob = LAW.log_prob.exp()
    assert chi_square(5 * first + last, torch.outer(prob, prob).reshape(-1)) > 1e-5
    rate = LAW.acceptance_rate.item()
    for slot in range(4):
        counts = gaps[:, slot].clamp(max=8).bincount(minlength=9)[1:]
        expected = stats.geom.pmf(range(1, 8), rate).tolist() + [stats.geom.sf(7, rate)]
        assert stats.chisquare(counts.numpy(), 4000 * torch.tensor(expected)).pvalue > 1e-5
    late = (gaps[:, 0] > 2).long() * 2 + (gaps[:, 3] > 2).long()
    tail = (1 - rate) ** 2
    table = torch.tensor([(1 - tail) ** 2, (1 - tail) * tail, tail * (1 - tail), tail**2])
    assert chi_square(late, table.double()) > 1e-5


def test_higher_weights_are_accepted_more_often():
    rates = []
    for shift in (-1.0, 0.0, 1.0):
        result = pooled_rejection(
            proposer(9), lambda x, s=shift: log_accept(x) + s, 5000, generator=seeded(10)
        )
        rates.append(result.acceptance_rate)
    assert rates[0] < rates[1] < rates[2]
    raised = pooled_rejection(proposer(9), log_accept, 5000, generator=seeded(10)).batch
    mean_w = LOG_W.exp()[raised].mean()
    assert mean_w > (LOG_P + LOG_W).exp().sum()


@pytest.mark.parametrize("rate", [0.1, 0.01, 0.001])
def test_waste_is_small(rate):
    num = 100_000
    row = torch.zeros(1)
    result = pooled_rejection(
        lambda n: row.expand(n),
        lambda x: torch.full(x.shape, math.log(rate)),
        num,
        max_block=1_000_000,
        generator=seeded(11),
    )
    assert len(result.batch) == num and result.drawn == result.total + result.wasted
    assert int(result.proposals.sum()) == result.total
    assert result.wasted <= 0.02 * result.drawn
    error = math.sqrt((1 - rate) / num) / rate
    assert abs(result.total / num - 1 / rate) < 4.5 * error


def test_certain_acceptance_reproduces_the_base_bit_for_bit():
    for num in (1, 10):
        torch.manual_seed(12)
        expected = torch.randn(num, 3)
        after = torch.get_rng_state()
        torch.manual_seed(12)
        result = pooled_rejection(lambda n: torch.randn(n, 3), lambda x: torch.zeros(len(x)), num)
        assert torch.equal(result.batch, expected)
        assert torch.equal(torch.get_rng_state(), after)
        assert (result.drawn, result.wasted, result.blocks) == (num, 0, 1)


def test_default_uniforms_follow_the_global_state():
    def run(seed):
        torch.manual_seed(seed)
        return [
            pooled_rejection(torch.rand, lambda u: u.log(), 50).proposals.tolist() for _ in "ab"
        ]

    assert run(1) == run(1) and run(1) != run(2)
    assert run(1)[0] != run(1)[1]
    state = torch.get_rng_state()
    acceptance_generator()
    assert torch.equal(torch.get_rng_state(), state)


def test_tiny_probabilities_and_extremes():
    generator = seeded(13)
    never = pooled_rejection(
        lambda n: torch.arange(n),
        lambda x: torch.where(x % 2 == 0, -1e6, 1e6),
        100,
        generator=generator,
    )
    assert (never.batch % 2 == 1).all()


def test_observed_rows_are_those_of_the_run():
    values = torch.multinomial(LOG_P.exp(), 100_000, replacement=True, generator=seeded(14))
    propose, _ = stream(values)
    seen = []
    result = pooled_rejection(
        propose,
        log_accept,
        300,
        max_block=64,
        generator=seeded(15),
        observe=lambda batch, count: seen.append(batch[:count]),
    )
    assert torch.equal(torch.cat(seen), values[: result.total])
    assert len(seen) == result.blocks


def test_progress_counts_slots():
    steps = []
    pooled_rejection(
        proposer(), log_accept, 100, max_block=32, generator=seeded(), progress=steps.append
    )
    assert sum(steps) == 100 and len(steps) > 3


@dataclass
class Pair:
    x: torch.Tensor
    y: torch.Tensor

    def index(self, index):
        return Pair(self.x[index], self.y[index])

    @staticmethod
    def cat(batches):
        return Pair(torch.cat([b.x for b in batches]), torch.cat([b.y for b in batches]))


def test_batches_with_several_fields():
    def propose(n):
        x = torch.randn(n, 2)
        return Pair(x, 10 * x.sum(-1))

    result = pooled_rejection(
        propose, lambda b: torch.where(b.y > 5, 0.0, -inf), 500, max_block=100
    )
    assert isinstance(result.batch, Pair) and result.batch.x.shape == (500, 2)
    torch.testing.assert_close(result.batch.y, 10 * result.batch.x.sum(-1))
    assert (result.batch.y > 5).all()


def test_exhausted_pool_hands_over_what_it_has():
    for first, filled in ((7, 1), (1000, 0)):
        propose, _ = stream(torch.arange(2000))
        with pytest.raises(PoolExhausted, match=f"100 proposals filled {filled} of 5") as caught:
            pooled_rejection(
                propose,
                lambda x, first=first: torch.where(x == first, 0.0, -inf),
                5,
                max_total=100,
                max_block=33,
            )
        partial = caught.value.partial
        assert partial.batch.tolist() == [7][:filled]
        assert partial.drawn == partial.total == 100 and partial.accepted == filled
        assert partial.acceptance_rate == filled / 100
    exact = pooled_rejection(torch.rand, lambda x: torch.zeros(len(x)), 100, max_total=100)
    assert exact.drawn == 100


def test_no_slots():
    result = pooled_rejection(lambda n: torch.zeros(n, 3), lambda x: x[:, 0], 0)
    assert result.batch.shape == (0, 3) and result.proposals.shape == (0,)
    assert result.total == 0 and math.isnan(result.acceptance_rate)


def test_bad_arguments():
    with pytest.raises(ValueError, match="2 of 10 log acceptance probabilities are nan"):
        pooled_rejection(lambda n: torch.arange(n), lambda x: torch.where(x < 2, math.nan, 0.0), 10)
    with pytest.raises(ValueError, match=r"shape \(10,\), got \(10, 1\)"):
        pooled_rejection(lambda n: torch.zeros(n, 1), lambda x: x, 10)
    with pytest.raises(ValueError, match="num must not be negative"):
        pooled_rejection(torch.rand, torch.log, -1)
    for name in ("max_block", "max_proposals", "max_total"):
        with pytest.raises(ValueError, match=name):
            pooled_rejection(torch.rand, torch.log, 3, **{name: 0})
