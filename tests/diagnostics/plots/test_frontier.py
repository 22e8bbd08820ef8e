# SPDX-License-Identifier: Apache-2.0
"""Reward against divergence: against the Gaussian tilt, whose curve is known."""

import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_tilt.diagnostics import Estimate, FrontierPoint, plot_frontier, reward_kl_frontier
from pyro_tilt.infer import BestOfN, ImportanceSampler

SCALE = 1.5
"""Of the base; the tilt of slope one at beta has mean beta SCALE^2 and KL beta^2 SCALE^2 / 2."""


def _program(loc=0.0):
    return pyro.sample("x", dist.Normal(loc, SCALE))


def _sampler(beta, **options):
    settings = {"num_samples": 20_000, "seed": 3} | options
    return ImportanceSampler(_program, reward=lambda x: x, beta=beta, **settings)


@pytest.mark.parametrize("beta", [-0.4, 0.3, 0.6])
@pytest.mark.parametrize("seed", [0, 1])
def test_points_lie_on_the_exact_curve_within_their_errors(beta, seed):
    (point,) = reward_kl_frontier(_sampler(beta, seed=seed))
    reward, kl = beta * SCALE**2, 0.5 * (beta * SCALE) ** 2
    # Six two-sided tests of two statistics at 4.9 standard errors: false alarms at 1e-5.
    assert abs(point.reward.value - reward) < 4.9 * point.reward.error
    assert abs(point.kl.value - kl) < 4.9 * point.kl.error
    assert point.reward.error < 0.1 and point.kl.error < 0.05
    assert point.beta == beta and point.kl_kind == "estimate" and not point.kl_is_bound


def test_the_stated_errors_are_those_over_seeds():
    points = reward_kl_frontier([_sampler(0.5, seed=s, num_samples=2000) for s in range(300)])
    for name in ("reward", "kl"):
        values = torch.tensor([getattr(point, name).value for point in points])
        stated = torch.tensor([getattr(point, name).error for point in points]).mean()
        # The ratio has a standard deviation of .041, and 4.6 of them on either side: 1e-5.
        assert 0.81 < float(values.std() / stated) < 1.19, name


def test_samplers_are_run_with_the_arguments_given():
    sampler = _sampler(0.2)
    (moved,) = reward_kl_frontier(sampler, 2.0)
    assert moved.reward.value == pytest.approx(2.0 + 0.2 * SCALE**2, abs=0.1)


def test_labels_and_order():
    results = [_sampler(b, num_samples=100).run() for b in (0.4, 0.1)]
    given = FrontierPoint("exact", kl=Estimate(0.1, 0.0), reward=Estimate(0.2, 0.0))
    points = reward_kl_frontier({"tilts": results, "known": given})
    assert [p.label for p in points] == ["tilts", "tilts", "exact"]
    assert [p.beta for p in points] == [0.4, 0.1, None]
    (alone,) = reward_kl_frontier(results[0])
    assert alone.label == "ImportanceSampler"
    assert [p.label for p in reward_kl_frontier(results)] == ["ImportanceSampler"] * 2


def test_best_of_n_states_its_bound():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = BestOfN(_program, reward=lambda x: x, n=4, num_samples=200, seed=0).run()
    (point,) = reward_kl_frontier({"best of 4": result})
    assert point.kl_is_bound
    assert point.kl.value == pytest.approx(math.log(4) - 0.75)
    ax = plot_frontier([point])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["best of 4", "KL at most"]


def test_kinds_of_divergence_are_told_apart_in_the_plot():
    one, nothing, some = Estimate(1.0, 0.1), Estimate(0.5, 0.0), Estimate(0.6, 0.1)
    points = [
        FrontierPoint("a", kl=nothing, reward=one),
        FrontierPoint("a", kl=some, reward=one),
        FrontierPoint("b", kl=Estimate(0.9, 0.0), reward=one, kl_kind="bound"),
        FrontierPoint("c", kl=Estimate(math.nan, math.nan), reward=one),
    ]
    assert [point.kl_kind for point in points] == ["exact", "estimate", "bound", "unknown"]
    ax = plot_frontier(points)
    marks = [bars[0] for bars in ax.containers]
    assert [mark.get_fillstyle() for mark in marks] == ["full", "left", "none"]
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert texts == ["a", "b", "KL exact", "KL estimated", "KL at most"]
    assert "1 of 4 points not known: c" in [text.get_text() for text in ax.texts]
    with pytest.raises(ValueError, match="kl_kind must be one of exact, estimate, bound, unknown"):
        FrontierPoint("a", kl=nothing, reward=one, kl_kind="guess")


def test_what_has_no_reward_or_is_no_result_is_refused(weighted):
    with pytest.raises(ValueError, match="best: the frontier needs stats"):
        reward_kl_frontier({"best": weighted(20, stats={}, base=None, beta=None)})
    with pytest.raises(TypeError, match="got float"):
        reward_kl_frontier([1.0])


def test_plot_shows_each_point_with_two_errors_and_joins_a_curve():
    points = [
        FrontierPoint("tilt", kl=Estimate(k, 0.1), reward=Estimate(r, 0.2))
        for k, r in ((2.0, 3.0), (0.5, 1.0))
    ]
    ax = plot_frontier(points)
    line = ax.lines[0]
    assert line.get_xdata().tolist() == [0.5, 2.0] and line.get_ydata().tolist() == [1.0, 3.0]
    (bars,) = ax.containers
    across, up = (segments.get_segments() for segments in bars[2])
    assert across[0][:, 0].tolist() == pytest.approx([0.3, 0.7])
    assert up[0][:, 1].tolist() == pytest.approx([0.6, 1.4])


def test_unknown_points_are_counted_not_hidden():
    unknown = FrontierPoint("a", kl=Estimate(math.nan, math.nan), reward=Estimate(1.0, 0.1))
    known = FrontierPoint("b", kl=Estimate(0.2, math.nan), reward=Estimate(1.0, 0.1))
    assert "1 of 2" in plot_frontier([unknown, known]).texts[-1].get_text()
    assert "no point" in plot_frontier([unknown]).texts[0].get_text()
