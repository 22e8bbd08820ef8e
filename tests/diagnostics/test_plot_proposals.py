# SPDX-License-Identifier: Apache-2.0
"""The plot of proposals per step draws what the result holds."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from pyro_tilt.diagnostics import plot_proposals


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def _steps(chains, steps=12, scale=1.0):
    generator = torch.Generator().manual_seed(0)
    proposals = 1.0 + scale * torch.rand(chains, steps, generator=generator).double()
    middle = torch.linspace(-1.0, 2.0, steps).double().expand(chains, -1)
    table = {
        "proposals": proposals,
        "baseline_10": middle - 0.5,
        "baseline_50": middle,
        "baseline_90": middle + 1.0,
    }
    return {name: rows if chains > 1 else rows[0] for name, rows in table.items()}


@pytest.mark.parametrize(("chains", "steps", "scale"), [(1, 12, 1.0), (3, 12, 90.0), (2, 1, 1.0)])
def test_lines_and_bands_are_those_of_the_result(weighted, chains, steps, scale):
    held = _steps(chains, steps, scale)
    result = weighted(60, chains=chains, steps=held)
    ax = plot_proposals(result)
    rows = held["proposals"].reshape(chains, steps).numpy()
    for line, row in zip(ax.lines, rows):
        np.testing.assert_allclose(line.get_ydata(), row)
    assert (ax.get_yscale() == "log") == (scale > 20.0)
    worst = int(rows.mean(0).argmax()) + 1
    assert f"most at step {worst}" in ax.get_title(loc="left")
    (right,) = [other for other in ax.figure.axes if other is not ax]
    middle = held["baseline_50"].reshape(chains, steps)[0].numpy()
    np.testing.assert_allclose(right.lines[0].get_ydata(), middle)
    assert right.get_ylim()[0] < middle.min() - 0.5 and right.get_ylim()[1] > middle.max() + 1.0
    if steps > 1:
        (band,) = right.collections
        box = band.get_paths()[0].get_extents()
        assert (box.ymin, box.ymax) == pytest.approx((-1.5, 3.0))
    ax.figure.draw_without_rendering()


def test_without_steps_it_says_so(weighted):
    ax = plot_proposals(weighted(50))
    assert not ax.axison and "reject step by step" in ax.texts[0].get_text()


def test_without_quantiles_the_proposals_stand_alone(weighted):
    ax = plot_proposals(weighted(50, steps={"proposals": torch.tensor([2.0, 3.0])}))
    assert ax.figure.axes == [ax] and len(ax.lines) == 2
