# SPDX-License-Identifier: Apache-2.0
import math

import arviz
import numpy as np
import pytest
import torch

from pyro_tilt.ops.importance import normalize
from pyro_tilt.ops.psis import khat_threshold, pareto_smooth, tail_length

inf = math.inf
# ArviZ 1.x has no top-level function of this signature (and takes weights with the other sign).
needs_old_arviz = pytest.mark.skipif(
    int(arviz.__version__.split(".")[0]) >= 1, reason="arviz 1.x negates the input of psislw"
)


@needs_old_arviz
@pytest.mark.parametrize("num", [30, 100, 1000, 20_000])
@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0, 30.0])
def test_agrees_with_arviz(num, scale):
    log_weights = scale * torch.randn(3, 2, num, dtype=torch.float64) + 5.0
    log_weights[0, 1, ::3] = -inf
    log_weights[1, 0] = scale * torch.rand(num, dtype=torch.float64).log().neg()
    smoothed, k = pareto_smooth(log_weights)
    with np.errstate(over="ignore"):
        expected, shape = arviz.psislw(log_weights.numpy().copy(), normalize=True)
    np.testing.assert_allclose(k.numpy(), shape, rtol=1e-10, atol=1e-10)
    normalised = smoothed - torch.logsumexp(smoothed, -1, keepdim=True)
    np.testing.assert_allclose(normalised.numpy(), expected, rtol=1e-10, atol=1e-10)


@needs_old_arviz
def test_ties_at_the_cutoff_agree_with_arviz():
    # Rounded weights give rows of different tail lengths; tied weights may swap places.
    log_weights = (4 * torch.randn(8, 500, dtype=torch.float64)).round(decimals=0)
    smoothed, k = pareto_smooth(log_weights)
    expected, shape = arviz.psislw(log_weights.numpy().copy(), normalize=False)
    np.testing.assert_allclose(k.numpy(), shape, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(np.sort(smoothed.numpy()), np.sort(expected), atol=1e-10)


@pytest.mark.parametrize("shape", [-0.5, 0.2, 0.5, 0.9])
def test_recovers_the_shape_of_pareto_weights(shape):
    # Weights (u^-k - 1)/k + 1; the estimate has sd of about (1 + k)/sqrt(M), M = 3 sqrt N, and
    # 50 runs are averaged; the gate is five standard errors beside a bias of 0.03.
    uniform = torch.rand(50, 40_000, dtype=torch.float64)
    weights = (uniform**-shape - 1) / shape + 2.1
    _, k = pareto_smooth(weights.log())
    error = (1 + abs(shape)) / math.sqrt(600 * 50)
    assert abs(k.mean().item() - shape) < 5 * error + 0.03


def test_batching_scale_and_order_do_not_matter():
    log_weights = 2 * torch.randn(4, 3, 400, dtype=torch.float64)
    smoothed, k = pareto_smooth(log_weights)
    alone, k_alone = pareto_smooth(log_weights[2, 1])
    torch.testing.assert_close(smoothed[2, 1], alone, rtol=0, atol=1e-13)
    torch.testing.assert_close(k[2, 1], k_alone, rtol=0, atol=1e-13)
    order = torch.randperm(400)
    permuted, k_permuted = pareto_smooth(log_weights[..., order] + 1000.0)
    torch.testing.assert_close(permuted - 1000.0, smoothed[..., order], rtol=0, atol=1e-9)
    torch.testing.assert_close(k_permuted, k, rtol=0, atol=1e-9)


LONG = {
    "shuffled": lambda x: x,
    "sorted": lambda x: x.sort().values,
    # A probe that takes every so-manieth entry sees the largest of these, or none of them.
    "large ones in step": lambda x: x + 50.0 * (torch.arange(len(x)) % (len(x) // 2048) == 0),
    "large ones out of step": lambda x: x + 9.0 * (torch.arange(len(x)) % 997 == 1),
    "mostly zero weights": lambda x: x.masked_fill(torch.arange(len(x)) % 50 > 0, -inf),
    "few levels": lambda x: x.round(),
    "a constraint": lambda x: torch.zeros_like(x).masked_fill(x > 0.0, -inf),
}


@pytest.mark.parametrize("num", [20_000, 65_537])
@pytest.mark.parametrize("name", LONG)
def test_a_long_row_is_sifted_to_the_same_end(name, num):
    """Rows that come together are not sifted, a row alone is."""
    row = LONG[name](2 * torch.randn(num, dtype=torch.float64))
    together, shapes = pareto_smooth(torch.stack([row, row]))
    alone, shape = pareto_smooth(row)
    torch.testing.assert_close(shape, shapes[0], rtol=0, atol=1e-12, equal_nan=True)
    # Tied weights of a tail may swap places.
    torch.testing.assert_close(alone.sort().values, together[0].sort().values, rtol=0, atol=1e-12)
    if name != "few levels":
        torch.testing.assert_close(alone, together[0], rtol=0, atol=1e-12)
    for bad in (math.nan, inf):
        row[1] = bad
        with pytest.raises(ValueError, match="nan or"):
            pareto_smooth(row)


def test_only_the_tail_changes_in_order_and_below_the_cap():
    log_weights = 3 * torch.randn(1000, dtype=torch.float64)
    before = log_weights.clone()
    smoothed, k = pareto_smooth(log_weights)
    assert torch.equal(log_weights, before)
    tail = log_weights.argsort(descending=True)[: tail_length(1000)]
    changed = (smoothed != log_weights).nonzero().squeeze(-1)
    assert set(changed.tolist()) <= set(tail.tolist()) and len(changed) > 80
    assert (smoothed[tail].diff() <= 0).all()
    assert smoothed.max() <= log_weights.max()
    assert k > 0.7


def test_heavy_tails_are_told_from_light_ones():
    draws = torch.randn(20_000, dtype=torch.float64)
    assert pareto_smooth(0.3 * draws)[1] < 0.5
    assert pareto_smooth(draws.square() * 0.6)[1] > khat_threshold(20_000)
    assert pareto_smooth(-0.6 * draws.square())[1] < 0.5


def test_smoothing_lowers_the_error_of_heavy_weights():
    # E of e^{sx} with s = 1.6 under N(0,1), 2,000 runs: smoothing must lower the squared error.
    draws = torch.randn(2000, 1000, dtype=torch.float64)
    smoothed, _ = pareto_smooth(1.6 * draws)
    truth = math.exp(1.6**2 / 2)
    raw_error = ((1.6 * draws).exp().mean(-1) - truth).square().mean()
    assert ((smoothed.exp().mean(-1) - truth).square().mean() < raw_error).item()


def test_nothing_to_smooth():
    def unchanged(log_weights):
        smoothed, k = pareto_smooth(log_weights)
        assert torch.equal(smoothed, log_weights.double())
        return k.item()

    constraint = torch.zeros(1000)
    constraint[::2] = -inf
    assert math.isnan(unchanged(torch.zeros(1000)))
    assert math.isnan(unchanged(constraint))
    assert math.isnan(unchanged(torch.full((2,), 3.0)))
    assert unchanged(torch.full((100,), -inf)) == inf
    assert unchanged(torch.zeros(1)) == inf
    assert unchanged(torch.randn(20)) == inf
    few = torch.full((1000,), -inf)
    few[:3] = torch.tensor([1.0, 2.0, 3.0])
    assert unchanged(few) == inf
    one_huge = torch.zeros(1000)
    one_huge[7] = 50.0
    assert unchanged(one_huge) == inf


def test_empty_shapes():
    smoothed, k = pareto_smooth(torch.zeros(0, 100))
    assert smoothed.shape == (0, 100) and k.shape == (0,)
    assert pareto_smooth(torch.zeros(0))[1] == inf


def test_bad_weights():
    for bad in (math.nan, inf):
        with pytest.raises(ValueError, match="nan or"):
            pareto_smooth(torch.tensor([0.0, bad, 1.0]))


def test_float32_keeps_float64_accuracy():
    log_weights = torch.randn(1000) * 2
    smoothed, k = pareto_smooth(log_weights)
    again, k_again = pareto_smooth(log_weights.double())
    assert smoothed.dtype == k.dtype == torch.float64
    assert torch.equal(smoothed, again) and torch.equal(k, k_again)
    assert normalize(smoothed).sum().item() == pytest.approx(1.0)


def test_threshold():
    assert khat_threshold(1000) == pytest.approx(1 - 1 / 3)
    assert khat_threshold(10_000) == 0.7 and khat_threshold(1) == -inf
