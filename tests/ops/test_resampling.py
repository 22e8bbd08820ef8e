# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch
from scipy import stats

from pyro_tilt.ops import resampling

SCHEMES = ["systematic", "stratified", "multinomial", "residual"]
inf = math.inf


@pytest.fixture(params=SCHEMES)
def scheme(request):
    return getattr(resampling, request.param)


def test_counts_are_unbiased(scheme):
    # Mean counts over 4,000 calls within 5 standard errors in each of 5 items: false alarm 3e-6.
    log_weights = torch.tensor([0.1, 0.37, 0.0, 0.03, 0.5]).log() + 700.0
    weights = torch.softmax(log_weights.double(), 0)
    generator = torch.Generator().manual_seed(1)
    counts = torch.stack(
        [scheme(log_weights, 7, generator=generator).bincount(minlength=5) for _ in range(4000)]
    ).double()
    assert (counts.sum(-1) == 7).all()
    error = counts.std(0) / math.sqrt(len(counts))
    assert ((counts.mean(0) - 7 * weights).abs() <= 5 * error + 1e-12).all()
    assert (counts[:, 2] == 0).all()


@pytest.mark.parametrize("name, bound", [("systematic", 1.0), ("residual", math.inf)])
def test_copies_are_floored(name, bound):
    log_weights = torch.randn(50, dtype=torch.float64)
    expected = 500 * torch.softmax(log_weights, 0)
    for seed in range(50):
        generator = torch.Generator().manual_seed(seed)
        ancestors = getattr(resampling, name)(log_weights, 500, generator=generator)
        counts = ancestors.bincount(minlength=50).double()
        assert (counts >= expected.floor()).all()
        assert (counts - expected < bound).all()


def test_multinomial_draws_are_independent():
    # Chi-square of ordered pairs at p = 1e-5: a sorted or stratified scheme fails it.
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    generator = torch.Generator().manual_seed(3)
    ancestors = resampling.multinomial(weights.log(), 60_000, generator=generator).reshape(-1, 2)
    pairs = (3 * ancestors[:, 0] + ancestors[:, 1]).bincount(minlength=9)
    expected = len(ancestors) * torch.outer(weights, weights).reshape(-1)
    assert stats.chisquare(pairs.numpy(), expected.numpy()).pvalue > 1e-5


def test_stratified_has_one_point_in_each_stratum():
    log_weights = torch.zeros(1000)
    assert torch.equal(resampling.stratified(log_weights, 1000), torch.arange(1000))


@pytest.mark.parametrize("seed", range(5))
def test_a_million_float32_weights_stay_in_range(scheme, seed):
    # A float32 cumulative sum ends away from 1 here and gives index N in about a third of calls.
    num = 1_000_000
    generator = torch.Generator().manual_seed(seed)
    log_weights = torch.randn(num, generator=generator)
    log_weights[-1] = -inf
    ancestors = scheme(log_weights, num, generator=generator)
    assert ancestors.shape == (num,) and ancestors.dtype == torch.long
    assert int(ancestors.min()) >= 0 and int(ancestors.max()) < num - 1


@pytest.mark.parametrize("name", ["systematic", "stratified", "multinomial"])
def test_extreme_uniforms_pick_items_of_positive_weight(name, monkeypatch):
    log_weights = torch.tensor([-inf, 0.1, -inf, 0.3, 0.7, -inf])
    for value, item in ((0.0, 1), (1.0, 4)):
        monkeypatch.setattr(
            resampling, "_uniforms", lambda num, like, _, v=value: like.new_full((num,), v)
        )
        assert getattr(resampling, name)(log_weights, 1).tolist() == [item]


def test_one_generator_one_result(scheme):
    log_weights = torch.randn(100)
    a, b = (scheme(log_weights, 64, generator=torch.Generator().manual_seed(5)) for _ in range(2))
    state = torch.get_rng_state()
    c = scheme(log_weights, 64, generator=torch.Generator().manual_seed(6))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert torch.equal(torch.get_rng_state(), state)


def test_nothing_drawn_and_bad_weights(scheme):
    assert scheme(torch.zeros(3), 0).shape == (0,)
    with pytest.raises(ValueError, match="all 3 weights are zero"):
        scheme(torch.full((3,), -inf), 2)
    with pytest.raises(ValueError, match="nan or"):
        scheme(torch.tensor([0.0, math.nan]), 2)
    with pytest.raises(ValueError, match="nan or"):
        scheme(torch.tensor([0.0, inf]), 2)
    with pytest.raises(ValueError, match="shape"):
        scheme(torch.zeros(2, 3), 2)


@pytest.mark.parametrize("name", ["systematic", "stratified"])
def test_points_are_located_as_by_search(name):
    # Against a plain search with the same uniforms, more and fewer points than items.
    for seed, (size, num) in enumerate([(10, 7), (100, 1000), (1000, 30), (1, 5)]):
        log_weights = 2 * torch.randn(size, dtype=torch.float64)
        generator = torch.Generator().manual_seed(seed)
        ancestors = getattr(resampling, name)(log_weights, num, generator=generator)
        generator = torch.Generator().manual_seed(seed)
        shape = 1 if name == "systematic" else num
        uniforms = torch.rand(shape, dtype=torch.float64, generator=generator)
        points = (torch.arange(num, dtype=torch.float64) + uniforms) / num
        sums = torch.softmax(log_weights, 0).cumsum(0)
        expected = torch.searchsorted(sums, points, right=True).clamp(max=size - 1)
        assert torch.equal(ancestors, expected)
