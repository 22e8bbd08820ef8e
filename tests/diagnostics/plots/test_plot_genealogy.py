# SPDX-License-Identifier: Apache-2.0
"""The tree that is drawn is the tree of the run."""

import numpy as np
import pytest
import torch
from matplotlib.collections import LineCollection

from pyro_tilt.diagnostics import plot_genealogy, plot_health
from pyro_tilt.diagnostics.plots.genealogy import ancestral_lines, distinct_ancestors


def _tree(ax):
    (tree,) = [c for c in ax.collections if isinstance(c, LineCollection)]
    return tree


def _counts(ax):
    (right,) = [other for other in ax.figure.axes if other is not ax]
    return np.asarray(right.lines[0].get_ydata())


def test_counts_are_those_of_distinct_values_along_the_paths(chain):
    result = chain(200, resampling="multinomial", ess_threshold=1.0)
    counts = _counts(plot_genealogy(result))
    # Continuous values: two particles share one only by descent.
    expected = [len(torch.unique(result.paths[f"x_{t}"])) for t in range(12)]
    assert counts.tolist() == expected
    assert counts[0] < counts[-1]
    assert counts[0] == len(torch.unique(result.stats["ancestor"]))


@pytest.mark.parametrize("scheme", ["systematic", "residual"])
def test_lines_join_exactly_where_ancestors_are_shared(chain, scheme):
    # Residual resampling leaves the children of one particle apart.
    result = chain(40, resampling=scheme, ess_threshold=1.0)
    segments = np.stack(_tree(plot_genealogy(result)).get_segments())
    assert segments.shape[:2] == (40, 13)
    values = torch.stack([result.paths[f"x_{t}"] for t in range(12)]).numpy()
    heights = segments[:, :, 1].T
    for t in range(12):
        groups = len(np.unique(values[t]))
        assert len(np.unique(heights[t].round(9))) == groups
        order = np.argsort(heights[t], kind="stable")
        # Families lie side by side, so that no two lines cross.
        assert (np.diff(heights[t][order]) >= 0).all()
    later = np.argsort(heights[-1])
    assert (np.diff(heights[:, later], axis=1) >= -1e-9).all(), "lines cross"


def test_founders_have_colours_of_their_own(chain):
    result = chain(40)
    tree = _tree(plot_genealogy(result))
    founders = len(torch.unique(result.paths["x_0"]))
    by_color = {}
    heights = np.stack(tree.get_segments())[:, :, 1]
    for row, color in zip(heights, tree.get_colors()):
        by_color.setdefault(tuple(color.round(4)), set()).add(row[0].round(9))
    named = [group for color, group in by_color.items() if len(set(color[:3])) > 1]
    assert named and all(len(group) == 1 for group in named)
    assert len(named) == min(founders, 6)


def test_each_run_is_drawn_by_its_number(chain):
    result = chain(30, num_chains=2)
    first, second = (ancestral_lines(result, k) for k in (0, 1))
    assert first.shape == second.shape == (12, 30)
    ends = result.paths["x_0"].split(30)
    for lines, values in zip((first, second), ends):
        assert distinct_ancestors(lines)[0] == len(torch.unique(values))
    assert "run 2 of 2" in plot_genealogy(result, chain=1).get_title(loc="left")
    with pytest.raises(ValueError, match="chain must be in 0..1"):
        plot_genealogy(result, chain=2)


def test_without_paths_it_says_how_to_keep_them(chain):
    result = chain(30, keep_paths=False)
    ax = plot_genealogy(result)
    left = len(torch.unique(result.stats["ancestor"]))
    assert "keep_paths=True" in ax.texts[0].get_text()
    assert f"descend from {left}" in ax.texts[0].get_text()


def test_without_resampling_nobody_shares_an_ancestor(chain):
    assert _counts(plot_genealogy(chain(25, ess_threshold=0.0))).tolist() == [25] * 12


def test_health_page_shows_steps_and_lineages(chain):
    page = plot_health(chain(50))
    titles = "\n".join(ax.get_title(loc="left") for ax in page.axes)
    assert "lowest ESS" in titles and "descend from" in titles
    page.draw_without_rendering()
