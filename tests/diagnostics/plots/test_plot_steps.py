# SPDX-License-Identifier: Apache-2.0
"""Shares over the steps, and evidence across runs."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest

from pyro_tilt.diagnostics import plot_evidence, plot_steps
from pyro_tilt.infer import TemperedSMC


def _lines(ax, style):
    return [line for line in ax.lines if line.get_linestyle() == style and len(line.get_xdata())]


def test_ess_is_a_share_of_the_particles_and_resamplings_are_marked(chain):
    result = chain(80, num_chains=2)
    ax = plot_steps(result)
    ess = result.steps["ess"].numpy() / 80
    drawn = _lines(ax, "-")
    assert len(drawn) == 2
    for line, row in zip(drawn, ess):
        np.testing.assert_allclose(line.get_ydata(), row)
    marks = [line for line in ax.lines if line.get_marker() == "^"]
    for mark, flags in zip(marks, result.steps["resampled"].numpy()):
        assert mark.get_xdata().tolist() == (np.flatnonzero(flags) + 1).tolist()
    assert f"lowest ESS {ess.min():.1%}" in ax.get_title(loc="left")


def test_acceptance_is_drawn_as_it_is():
    result = TemperedSMC(
        lambda: pyro.sample("x", dist.Normal(0.0, 1.0)),
        reward=lambda x: 4 * x,
        num_particles=300,
        seed=0,
    ).run()
    (line,) = _lines(plot_steps(result), "--")
    np.testing.assert_allclose(line.get_ydata(), result.steps["acceptance_rate"].numpy())


def test_a_result_without_steps_says_so(weighted):
    ax = plot_steps(weighted(20))
    assert "no steps" in ax.texts[0].get_text()


def test_many_runs_and_one_step(stepped):
    for result in (stepped(40, chains=12), stepped(chains=1, steps=1)):
        plot_steps(result).figure.draw_without_rendering()


def test_evidence_marks_every_run_and_the_exact_value(chain):
    result = chain(80, num_chains=3)
    ax = plot_evidence(result, exact=-20.0)
    (inset,) = ax.child_axes
    points = inset.collections[-1].get_offsets()
    np.testing.assert_allclose(points[:, 1], result.chain_log_normalizers.numpy())
    for axes in (ax, inset):
        assert any(list(line.get_ydata()) == [-20.0, -20.0] for line in axes.lines)
        low, high = axes.get_ylim()
        assert low < -20.0 < high
    assert "exact" in [text.get_text() for text in ax.get_legend().get_texts()]


def test_the_exact_value_widens_the_limits_of_one_shot_results(weighted):
    ax = plot_evidence(weighted(200), exact=9.0)
    assert ax.get_ylim()[1] > 9.0
    assert plot_evidence(weighted(200)).get_ylim()[1] == pytest.approx(
        plot_evidence(weighted(200), exact=None).get_ylim()[1]
    )
