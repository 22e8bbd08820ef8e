# SPDX-License-Identifier: Apache-2.0
"""Plots: what is drawn is what the result holds."""

import math

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.patches import StepPatch

from pyro_tilt.diagnostics import (
    kl_to_base,
    plot_acceptance,
    plot_ess,
    plot_evidence,
    plot_health,
    plot_reward,
    plot_weights,
)
from pyro_tilt.diagnostics.plots.evidence import running_evidence
from pyro_tilt.diagnostics.plots.style import bin_edges
from pyro_tilt.diagnostics.summary_text import plus_minus
from pyro_tilt.infer import BaseDraws

PLOTS = [plot_acceptance, plot_ess, plot_evidence, plot_reward, plot_weights]


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def _line(ax, start):
    """The one line whose legend label starts so."""
    (line,) = [line for line in ax.lines if str(line.get_label()).startswith(start)]
    return line


def _stairs(ax, start):
    (patch,) = [
        p for p in ax.patches if isinstance(p, StepPatch) and p.get_label().startswith(start)
    ]
    return patch.get_data()


def _area(stairs):
    under = np.zeros_like(stairs.values) if stairs.baseline is None else stairs.baseline
    return float(((stairs.values - under) * np.diff(stairs.edges)).sum())


def _labels(ax):
    legend = ax.get_legend()
    return [] if legend is None else [text.get_text() for text in legend.get_texts()]


def _cases(weighted, clipped, stepped):
    minus = torch.full((40,), -torch.inf)
    return {
        "weighted": weighted(300),
        "many runs": weighted(20, chains=32),
        "unequal runs": weighted(90, chain_sizes=(30, 60)),
        "heavy": weighted(300, scale=6.0),
        "one draw": weighted(1),
        "equal weights": weighted(50, beta=0.0),
        "reward -inf": weighted(300, below=0.0),
        "negative beta": weighted(300, beta=-2.0),
        "huge beta": weighted(300, beta=1e6),
        "no mass": weighted(
            40,
            log_weights=minus,
            psis_log_weights=None,
            pareto_k=None,
            stats={"reward": minus},
            base=BaseDraws(reward=minus, log_factors=torch.zeros(40)),
        ),
        "no reward": weighted(30, stats={}, base=None, beta=None),
        "iid": clipped(200),
        "iid runs": clipped(200, chains=3, capped=2),
        "iid without base": clipped(50, base=None, info={}),
        "iid one draw": clipped(1),
        "chain": clipped(50, kind="chain", info={}, base=None),
        "steps": stepped(chains=1),
        "steps, runs": stepped(chains=3),
        "steps, many runs": stepped(40, chains=12),
        "one step": stepped(chains=2, steps=1),
    }


EXTREMES = {"one draw", "equal weights", "huge beta", "no mass", "iid one draw", "one step"}
"""Where ticks and layout could fail when the page is drawn; the others cost time alone."""

NAMES = list(_cases(*[lambda *a, **k: None] * 3))


@pytest.mark.parametrize("name", NAMES)
def test_every_plot_takes_every_kind_of_result(weighted, clipped, stepped, name):
    result = _cases(weighted, clipped, stepped)[name]
    figure, axes = plt.subplots(1, len(PLOTS))
    for plot, ax in zip(PLOTS, axes):
        assert plot(result, ax=ax) is ax
        assert ax.has_data() or ax.texts
        if ax.axison:
            assert ax.get_xlabel() and ax.get_ylabel() and ax.get_title(loc="left")
    assert plt.get_fignums() == [figure.number], "drawing on given axes opened a figure"
    plt.close(figure)
    page = plot_health(result)
    if name in EXTREMES:
        page.draw_without_rendering()
    plt.close(page)
    assert plt.get_fignums() == []


@pytest.mark.parametrize("plot", PLOTS)
def test_without_axes_one_new_figure_is_made(weighted, plot):
    ax = plot(weighted(100))
    assert [ax.figure.number] == plt.get_fignums()


def test_acceptance_marks_baseline_and_clipped_mass(clipped):
    result = clipped(300, baseline=0.5)
    ax = plot_acceptance(result)
    base = result.base.reward.numpy()
    assert list(_line(ax, "baseline b = 0.5").get_xdata()) == [0.5, 0.5]
    # One per cent of the base lies left of the picture, and next to none of the target.
    assert _area(_stairs(ax, "base proposals")) == pytest.approx(0.99, abs=1e-3)
    assert _area(_stairs(ax, "target")) == pytest.approx(1.0, abs=2e-3)
    assert _area(_stairs(ax, "clipped mass")) == pytest.approx(result.info["clipped_mass"])
    clipped_bins = _stairs(ax, "clipped mass")
    shaded = clipped_bins.values > clipped_bins.baseline
    assert clipped_bins.edges[1:][shaded].min() >= 0.5
    (right,) = [other for other in ax.figure.axes if other is not ax]
    curve = _line(right, "accepted")
    np.testing.assert_allclose(
        curve.get_ydata(), np.minimum(1.0, np.exp(np.asarray(curve.get_xdata()) - 0.5))
    )
    assert f"{np.minimum(1.0, np.exp(base - 0.5)).mean():.3g}" in ax.get_title(loc="left")
    labels = _labels(right)
    assert any("κ = " in label and "≤" in label for label in labels)
    assert len(labels) == 5


def test_acceptance_counts_other_factors_in_the_level(clipped):
    x = torch.tensor([0.0, 1.0, 2.0]).double()
    base = BaseDraws(reward=x, log_factors=torch.tensor([5.0, 5.0, 5.0]).double())
    ax = plot_acceptance(clipped(10, base=base, beta=2.0, info={"baseline": 8.0}))
    edges = _stairs(ax, "base proposals").edges
    assert (edges[0], edges[-1]) == (5.0, 9.0)
    assert "other factors" in ax.get_xlabel()


def test_acceptance_of_exact_rejection_takes_its_bound(clipped):
    ax = plot_acceptance(clipped(50, info={"log_bound": 4.0, "acceptance_rate": 0.03}))
    assert _line(ax, "bound b = 4").get_xdata()[0] == 4.0
    assert _area(_stairs(ax, "clipped mass")) == pytest.approx(0.0, abs=1e-12)


def test_acceptance_without_baseline_says_so(weighted):
    ax = plot_acceptance(weighted(200))
    assert "no baseline" in ax.get_title(loc="left")


def test_weights_are_drawn_by_rank_and_judged(weighted):
    result = weighted(400)
    ax = plot_weights(result)
    share = 400 * torch.softmax(result.log_weights, 0).numpy()
    np.testing.assert_allclose(_line(ax, "weights").get_ydata(), np.sort(share)[::-1])
    np.testing.assert_array_equal(_line(ax, "weights").get_xdata(), np.arange(1, 401))
    fitted = _line(ax, "fitted tail").get_ydata()
    smoothed = 400 * torch.exp(result.psis_log_weights - result.log_weights.logsumexp(0)).numpy()
    np.testing.assert_allclose(fitted, np.sort(smoothed)[::-1][: len(fitted)])
    assert len(fitted) == 60  # 3 sqrt(400)
    threshold = 1.0 - 1.0 / math.log10(400)
    reference = _line(ax, "slope of the threshold")
    (x0, x1), (y0, y1) = reference.get_data()
    assert math.log(y0 / y1) / math.log(x1 / x0) == pytest.approx(threshold)
    title = ax.get_title(loc="left")
    assert f"{result.pareto_k:.2f} ≤ {threshold:.2f}: ok" in title
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")


def test_heavy_weights_have_a_verdict_in_the_title(weighted):
    assert ": strained" in plot_weights(weighted(400, pareto_k=0.8)).get_title(loc="left")
    ax = plot_weights(weighted(400, pareto_k=1.2))
    assert "1.20 > 0.62: broken" in ax.get_title(loc="left")
    good = plot_weights(weighted(400)).get_children()
    colours = {t.get_color() for t in ax.get_children() if getattr(t, "get_text", str)() != ""} - {
        t.get_color() for t in good if getattr(t, "get_text", str)() != ""
    }
    assert colours == {"#D55E00"}


def test_zero_weights_are_counted(weighted):
    result = weighted(200, below=0.0)
    zeros = int((result.log_weights == -torch.inf).sum())
    assert any(
        f"{zeros} of 200 weights are zero" in t.get_text() for t in plot_weights(result).texts
    )


def test_ess_has_a_bar_per_run(weighted):
    result = weighted(100, chains=3)
    ax = plot_ess(result)
    expected = [
        float(1.0 / torch.softmax(w, 0).square().sum()) for w in result.log_weights.split(100)
    ]
    np.testing.assert_allclose([bar.get_height() for bar in ax.patches], expected)
    (marks,) = ax.collections
    assert {float(y) for path in marks.get_paths() for y in path.vertices[:, 1]} == {100.0}
    assert [f"{v:,.0f}" for v in expected] == [t.get_text().split("\n")[0] for t in ax.texts]


def test_ess_has_a_line_over_steps(stepped):
    result = stepped(500, chains=2, steps=12)
    ax = plot_ess(result)
    for i in range(2):
        line = _line(ax, f"run {i + 1}")
        np.testing.assert_allclose(line.get_ydata(), result.steps["ess"][i].numpy())
    assert float(_line(ax, "particles").get_ydata()[0]) == 500.0
    flags = result.steps["resampled"][0].numpy()
    np.testing.assert_array_equal(_line(ax, "resampled").get_xdata(), np.arange(1, 13)[flags])
    assert f"{float(result.steps['ess'].min()):,.0f}" in ax.get_title(loc="left")


def test_reward_histograms_are_weighted(weighted):
    result = weighted(2000)
    ax = plot_reward(result)
    edges = _stairs(ax, "base").edges
    reward = result.stats["reward"].numpy()
    weight = torch.softmax(result.log_weights, 0).numpy()
    np.testing.assert_allclose(
        _stairs(ax, "aligned").values, np.histogram(reward, edges, weights=weight)[0]
    )
    np.testing.assert_allclose(
        _stairs(ax, "base").values, np.histogram(reward, edges)[0] / 2000, atol=1e-12
    )
    assert _stairs(ax, "aligned").values.sum() == pytest.approx(1.0)
    before, after = (float(line.get_xdata()[0]) for line in ax.lines)
    assert before == pytest.approx(reward.mean())
    assert after == pytest.approx(weight @ reward)
    assert after > before
    kl = kl_to_base(result)
    title = ax.get_title(loc="left")
    assert f"KL spent {plus_minus(*kl)} nats" in title


def test_reward_of_minus_infinity_is_stated_in_the_legend(weighted):
    result = weighted(500, below=0.0)
    share = float(torch.isneginf(result.base.reward).double().mean())
    assert f"base ({share:.1%} at -inf)" in _labels(plot_reward(result))


def test_evidence_runs_and_settles(weighted):
    result = weighted(90, chains=2)
    ax = plot_evidence(result)
    for i in range(2):
        line = _line(ax, f"run {i + 1}")
        log_weights = result.log_weights[90 * i : 90 * (i + 1)]
        running = [float(log_weights[:n].logsumexp(0)) - math.log(n) for n in range(1, 91)]
        np.testing.assert_allclose(line.get_ydata(), running)
        assert line.get_ydata()[-1] == pytest.approx(float(result.chain_log_normalizers[i]))
    assert _line(ax, "all draws").get_ydata()[0] == pytest.approx(float(result.log_normalizer))
    spread = float(result.chain_log_normalizers.std())
    assert f"sd over 2 runs {spread:.2g}" in ax.get_title(loc="left")
    assert len(ax.collections) == 2  # one band per run


def test_running_error_is_that_of_the_delta_method():
    log_weights = np.array([0.3, -1.0, 2.0, 0.5])
    value, error = running_evidence(log_weights)
    weights = np.exp(log_weights[:3])
    assert value[2] == pytest.approx(math.log(weights.mean()))
    assert error[2] == pytest.approx(weights.std(ddof=1) / math.sqrt(3) / weights.mean())
    assert math.isnan(error[0])
    value, _ = running_evidence(np.array([-np.inf, 0.0]))
    assert value.tolist() == pytest.approx([-np.inf, math.log(0.5)])


def test_evidence_of_one_rejection_run_comes_from_its_base_draws(clipped):
    result = clipped(100)
    line = _line(plot_evidence(result), "running estimate")
    final = float(result.base.reward.logsumexp(0)) - math.log(5000)
    assert line.get_ydata()[-1] == pytest.approx(final)
    assert len(line.get_xdata()) <= 500  # thinned


def test_evidence_of_several_rejection_runs_is_a_point_each(clipped):
    result = clipped(100, chains=3)
    ax = plot_evidence(result)
    np.testing.assert_allclose(_line(ax, "runs").get_ydata(), result.chain_log_normalizers.numpy())
    (band,) = ax.patches
    assert band.get_height() == pytest.approx(4 * 0.02)


def test_evidence_over_steps(stepped):
    result = stepped(chains=2, steps=7)
    line = _line(plot_evidence(result), "run 2")
    np.testing.assert_allclose(line.get_ydata(), result.steps["log_normalizer"][1].numpy())


def test_health_picks_the_plots_that_fit(weighted, clipped, stepped):
    def titles(figure):
        return " | ".join(ax.get_title(loc="left") for ax in figure.axes)

    page = plot_health(weighted(300))
    assert isinstance(page, Figure)
    found = titles(page)
    for words in ("k̂", "effective sample size", "expected reward", "log evidence"):
        assert words in found
    assert "acceptance rate" not in found
    found = titles(plot_health(clipped(300)))
    assert "acceptance rate" in found and "k̂" not in found
    assert "lowest ESS" in titles(plot_health(stepped()))


def test_health_carries_certificate_verdict_and_warnings(clipped):
    result = clipped(300, capped=4)
    page = plot_health(result)
    words = " ".join(text.get_text().replace("\n", " ") for text in page.texts)
    assert str(result.certificate) in words
    assert "4 of 300 draws hit the proposal cap" in words
    assert "verdict: strained" in words


def test_health_has_no_overlapping_text(weighted, clipped, stepped):
    for result in (weighted(400, chains=4, scale=3.0), clipped(300, capped=4), stepped(chains=3)):
        page = plot_health(result)
        page.canvas.draw()
        renderer = page.canvas.get_renderer()
        boxes = [t.get_window_extent(renderer) for t in page.texts if t.get_text()]
        boxes += [ax.get_tightbbox(renderer) for ax in page.axes if ax.get_title(loc="left")]
        for i, box in enumerate(boxes):
            for other in boxes[i + 1 :]:
                overlap = (
                    min(box.x1, other.x1) - max(box.x0, other.x0),
                    min(box.y1, other.y1) - max(box.y0, other.y0),
                )
                assert min(overlap) <= 1.0, (box, other)
        assert all(
            page.bbox.padded(1).contains(*corner) for b in boxes for corner in (b.min, b.max)
        )
        plt.close(page)


def test_bin_edges_cover_the_finite_values():
    edges = bin_edges(np.array([1.0, 3.0, -np.inf]), np.array([2.0]))
    assert (edges[0], edges[-1]) == (1.0, 3.0)
    edges = bin_edges(np.array([2.0, 2.0]))
    assert edges[0] < 2.0 < edges[-1]
    assert (np.diff(bin_edges(np.array([-np.inf]))) > 0).all()
