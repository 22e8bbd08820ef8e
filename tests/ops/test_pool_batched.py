# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch
from scipy import stats

from pyro_tilt.ops.clipped_law import ClippedLaw
from pyro_tilt.ops.pool import PoolExhausted
from pyro_tilt.ops.pool_batched import pooled_rejection_batched

inf = math.inf
LOG_P = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]], dtype=torch.float64).log()
LOG_W = torch.tensor([[0.0, 1.0, 2.5], [3.0, -inf, -2.0]], dtype=torch.float64)
BASELINE = torch.tensor([1.2, 2.0], dtype=torch.float64)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def proposer(seed):
    generator = seeded(seed)
    return lambda n: torch.multinomial(LOG_P.exp(), n, replacement=True, generator=generator).T


def log_accept(x):
    return LOG_W[torch.arange(2), x] - BASELINE


@pytest.mark.parametrize("max_block", [50, 100_000])
def test_each_law_is_its_own(max_block):
    # p-value gates 1e-5 in four tests.
    num = 4000
    result = pooled_rejection_batched(
        proposer(0), log_accept, (2,), num, max_block=max_block, generator=seeded(1)
    )
    law = ClippedLaw(LOG_P, LOG_W, BASELINE)
    rate = law.acceptance_rate
    for k in range(2):
        prob = law.log_prob[k].exp()
        counts = result.values[:, k].bincount(minlength=3).double()
        keep = prob > 0
        assert (counts[~keep] == 0).all()
        test = stats.chisquare(counts[keep].numpy(), (num * prob[keep]).numpy())
        assert test.pvalue > 1e-5
        gaps = result.proposals[:, k].clamp(max=6).bincount(minlength=7)[1:]
        pmf = [*stats.geom.pmf(range(1, 6), rate[k]), stats.geom.sf(5, rate[k])]
        assert stats.chisquare(gaps.numpy(), num * torch.tensor(pmf)).pvalue > 1e-5
    error = (rate * (1 - rate) * rate / num).sqrt()
    assert ((result.acceptance_rate - rate).abs() < 5 * error).all()


@pytest.mark.parametrize("batch_shape, event_shape", [((), ()), ((), (2,)), ((3, 2), (4,))])
def test_against_a_plain_loop(batch_shape, event_shape):
    num, total = 20, 4000
    values = torch.randn(total, *batch_shape, *event_shape, generator=seeded(2))
    rate = 0.05 + 0.5 * torch.rand(batch_shape, generator=seeded(3))
    accepted = torch.rand(total, *batch_shape, generator=seeded(4)) < rate
    for max_block in (1, 7, 100_000):
        dealt = 0

        def propose(n):
            nonlocal dealt
            dealt += n
            return values[dealt - n : dealt]

        result = pooled_rejection_batched(
            propose,
            lambda x: torch.where(accepted[dealt - len(x) : dealt], 0.0, -inf),  # noqa: B023
            batch_shape,
            num,
            max_block=max_block,
        )
        assert result.values.shape == (num, *batch_shape, *event_shape)
        assert result.proposals.shape == (num, *batch_shape)
        assert result.acceptance_rate.shape == torch.Size(batch_shape)
        for index in torch.cartesian_prod(*map(torch.arange, batch_shape)) if batch_shape else [()]:
            index = tuple(index)
            rows = accepted[(slice(None), *index)].nonzero().squeeze(-1)[:num]
            assert torch.equal(result.values[(slice(None), *index)], values[(rows, *index)])
            gaps = rows.diff(prepend=torch.tensor([-1]))
            assert torch.equal(result.proposals[(slice(None), *index)], gaps)
            rate_found = result.acceptance_rate[index].item()
            assert rate_found == pytest.approx(num / (rows[-1].item() + 1))
        assert result.drawn == dealt


def test_first_draw_under_certain_acceptance_is_the_base():
    torch.manual_seed(5)
    expected = torch.randn(1, 3)
    torch.manual_seed(5)
    result = pooled_rejection_batched(
        lambda n: torch.randn(n, 3), lambda x: torch.zeros(x.shape), (3,), 1
    )
    assert torch.equal(result.values, expected) and result.drawn == 1


@pytest.mark.parametrize("limit", [{"max_total": 64}, {"max_rounds": 3}])
def test_exhausted(limit):
    rate = torch.tensor([[0.0, -inf], [0.0, 0.0]])
    with pytest.raises(PoolExhausted, match=r"1 of 4 laws .* batch index \(0, 1\)") as caught:
        pooled_rejection_batched(
            lambda n: torch.ones(n, 2, 2, 5),
            lambda x: rate.expand(len(x), 2, 2),
            (2, 2),
            6,
            **limit,
        )
    partial = caught.value.partial
    assert partial.values.shape == (6, 2, 2, 5)
    assert partial.acceptance_rate.tolist() == [[1.0, 0.0], [1.0, 1.0]]
    assert (partial.values[:, 0, 1] == 0).all() and (partial.proposals[:, 0, 1] == 0).all()
    assert (partial.proposals[:, 1, 0] == 1).all()
    if "max_total" in limit:
        assert partial.drawn == 64


def test_block_limit_counts_the_whole_batch():
    sizes = []

    def propose(n):
        sizes.append(n)
        return torch.rand(n, 10)

    pooled_rejection_batched(propose, lambda x: x.log(), (10,), 100, max_block=200)
    assert max(sizes) == 20


def test_empty_batches():
    result = pooled_rejection_batched(lambda n: torch.zeros(n, 2, 3), lambda x: x[..., 0], (2,), 0)
    assert result.values.shape == (0, 2, 3) and result.proposals.shape == (0, 2)
    result = pooled_rejection_batched(lambda n: torch.zeros(n, 0, 3), lambda x: x[..., 0], (0,), 4)
    assert result.values.shape == (4, 0, 3) and result.acceptance_rate.shape == (0,)


def test_bad_shapes():
    with pytest.raises(ValueError, match=r"propose must give shape \(n,\) \+ \(2,\)"):
        pooled_rejection_batched(lambda n: torch.zeros(n, 3), lambda x: x, (2,), 4)
    with pytest.raises(ValueError, match="log_accept must give one number"):
        pooled_rejection_batched(lambda n: torch.zeros(n, 2, 3), lambda x: x, (2,), 4)
    with pytest.raises(ValueError, match="nan"):
        pooled_rejection_batched(lambda n: torch.zeros(n), lambda x: x * math.nan, (), 4)
