# SPDX-License-Identifier: Apache-2.0
"""The right plots of a result on one page."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pyro_tilt.diagnostics import reading
from pyro_tilt.diagnostics.plots import style
from pyro_tilt.diagnostics.plots.acceptance import plot_acceptance
from pyro_tilt.diagnostics.plots.ess import plot_ess
from pyro_tilt.diagnostics.plots.evidence import plot_evidence
from pyro_tilt.diagnostics.plots.genealogy import plot_genealogy
from pyro_tilt.diagnostics.plots.reward import plot_reward
from pyro_tilt.diagnostics.plots.steps import plot_steps
from pyro_tilt.diagnostics.plots.weights import plot_weights
from pyro_tilt.diagnostics.summary_text import headline, key_lines

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pyro_tilt.diagnostics.summary import Summary
    from pyro_tilt.infer.weighted_samples import WeightedSamples

_WIDTH, _PANEL, _HEAD, _LINE = 11.0, 3.7, 0.45, 0.19
"""Inches: of the page, of a row of plots, of the headline, of a line below."""
_CHARACTERS = 150
"""Width of the lines below."""


def plot_health(result: WeightedSamples) -> Figure:
    """
    The plots that matter for a result on one page, with its certificate in words below.

    Weighted draws show weights and effective sample size, samplers with steps show both step by
    step and their lineages where they were kept, samplers with a baseline or a bound show
    acceptance; reward and evidence are shown where they are known.

    :param result: the result of a sampler.
    :return: the figure, which pyplot knows, so that a notebook shows it and a script can save it.

    >>> import pyro, pyro.distributions as dist
    >>> from pyro_tilt.infer import ImportanceSampler
    >>> program = lambda: pyro.sample("x", dist.Normal(0.0, 1.0))
    >>> result = ImportanceSampler(program, reward=lambda x: x, num_samples=1000, seed=0).run()
    >>> figure = plot_health(result)
    >>> len(figure.axes) >= 4
    True
    >>> import matplotlib.pyplot as plt; plt.close(figure)
    """
    import matplotlib.pyplot as plt
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    from pyro_tilt.diagnostics.summary import summary

    found = summary(result)
    panels = _panels(result)
    law = textwrap.wrap(str(result.certificate), _CHARACTERS)
    alarms = [w for text in found.warnings for w in textwrap.wrap(f"! {text}", _CHARACTERS)]
    foot = 0.25 + _LINE * (len(law) + len(alarms))
    rows = math.ceil(len(panels) / 2)
    height = _PANEL * rows + foot + _HEAD
    layout = ConstrainedLayoutEngine(
        h_pad=0.1, rect=(0.0, foot / height, 1.0, 1.0 - (foot + _HEAD) / height)
    )
    figure = plt.figure(figsize=(_WIDTH, height), layout=layout)
    grid = figure.add_gridspec(rows, 2)
    for i, plot in enumerate(panels):
        plot(result, ax=figure.add_subplot(grid[i // 2, i % 2]))
    if len(panels) % 2:
        _numbers(figure.add_subplot(grid[-1, 1]), found)
    colour = style.ACCEPTED if found.verdict == "ok" else style.ALARM
    top: dict[str, Any] = {
        "y": 1.0 - 0.12 / height,
        "fontsize": 12,
        "fontweight": "bold",
        "va": "top",
    }
    figure.text(0.01, s=headline(found.numbers), **top)
    figure.text(0.99, s=f"verdict: {found.verdict}", color=colour, ha="right", **top)
    for lines, color, below in ((law, "black", len(alarms)), (alarms, style.ALARM, 0)):
        figure.text(
            0.01,
            (0.1 + _LINE * below) / height,
            "\n".join(lines),
            fontsize=9.5,
            color=color,
            va="bottom",
            linespacing=1.25,
        )
    return figure


def _numbers(ax: Axes, found: Summary) -> None:
    ax.set_axis_off()
    lines = key_lines(found.numbers, 69)
    ax.text(
        0.0,
        1.0,
        "\n".join(lines),
        transform=ax.transAxes,
        family="monospace",
        fontsize=7.9,
        va="top",
        linespacing=1.5,
    )


def _panels(result: WeightedSamples) -> list[Callable[..., Any]]:
    weighted = result.kind == "weighted"
    panels: list[Callable[..., Any]] = []
    if math.isfinite(reading.baseline(result)) and reading.base_log_weights(result) is not None:
        panels.append(plot_acceptance)
    if weighted:
        panels.append(plot_weights)
    stepped = "ess" in result.steps or "acceptance_rate" in result.steps
    if stepped:
        panels.append(plot_steps)
    elif weighted:
        panels.append(plot_ess)
    if result.paths is not None:
        panels.append(plot_genealogy)
    if "reward" in result.stats:
        panels.append(plot_reward)
    if math.isfinite(float(result.log_normalizer)):
        panels.append(plot_evidence)
    return panels or [plot_ess]
