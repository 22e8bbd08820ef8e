# SPDX-License-Identifier: Apache-2.0
"""What the plots share: a palette that colour-blind readers can tell apart, axes and notes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LegendPlace = Literal["upper left", "upper center", "upper right", "lower left"]

BASE = "#888888"
"""Grey, for the base program."""
ALIGNED = "#0072B2"
"""Blue, for the aligned law."""
ACCEPTED = "#009E73"
"""Green, for acceptance."""
ALARM = "#D55E00"
"""Vermillion, for what goes wrong."""
REFERENCE = "#000000"
"""Black, for reference lines."""
CYCLE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
"""The colours of Okabe and Ito (2008), for independent runs."""

MANY_RUNS = 7
"""Above this many runs they are drawn alike, as a bundle."""


def new_axes(ax: Axes | None, *, width: float = 6.4, height: float = 4.2) -> Axes:
    """
    The axes given, or those of a new figure, with a light frame.

    :param ax: axes to draw on, or None for a new figure.
    :param width: of the new figure, in inches.
    :param height: of the new figure, in inches.
    """
    if ax is None:
        import matplotlib.pyplot as plt

        _, ax = plt.subplots(figsize=(width, height), layout="constrained")
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=9)
    return ax


def finish(
    ax: Axes,
    *,
    title: str,
    xlabel: str,
    ylabel: str,
    legend: LegendPlace | None = "upper right",
    columns: int = 1,
    good: bool = True,
) -> Axes:
    """
    Sets title, axis labels and the legend, which stays inside the axes.

    :param ax: the axes.
    :param title: one or two short lines.
    :param xlabel: quantity and unit.
    :param ylabel: quantity and unit.
    :param legend: where it goes, or None for none.
    :param columns: of the legend.
    :param good: False prints the title in the colour of alarm.
    """
    ax.set_title(title, fontsize=10.5, color="black" if good else ALARM, loc="left")
    ax.set_xlabel(xlabel, fontsize=9.5)
    ax.set_ylabel(ylabel, fontsize=9.5)
    if legend is not None and ax.get_legend_handles_labels()[0]:
        ax.legend(loc=legend, fontsize=8.5, ncols=columns, framealpha=0.9, edgecolor="none")
    return ax


def whole_steps(ax: Axes) -> None:
    """
    Puts the ticks of the horizontal axis on whole numbers.

    :param ax: the axes.
    """
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def note(ax: Axes, text: str, *, x: float = 0.02, y: float = 0.02) -> None:
    """
    Writes a small remark into a corner of the axes.

    :param ax: the axes.
    :param text: the remark.
    :param x: place in axes coordinates; the text is aligned towards the nearer edge.
    :param y: place in axes coordinates.
    """
    ax.text(
        x,
        y,
        text,
        transform=ax.transAxes,
        fontsize=8.5,
        ha="left" if x < 0.4 else "right" if x > 0.6 else "center",
        va="bottom" if y < 0.4 else "top" if y > 0.6 else "center",
        bbox={"facecolor": "white", "alpha": 0.85, "edgecolor": "none", "pad": 1.5},
        zorder=10,
    )


def empty(ax: Axes, text: str) -> Axes:
    """
    Says on the axes why there is nothing to draw.

    :param ax: the axes.
    :param text: the reason, in words.
    """
    ax.set_axis_off()
    ax.text(
        0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", fontsize=10, wrap=True
    )
    return ax


def run_colors(count: int) -> list[str]:
    """
    One colour per run, or one for all of them where there are too many to tell apart.

    :param count: the number of runs.

    >>> run_colors(2)
    ['#0072B2', '#E69F00']
    >>> len(set(run_colors(64)))
    1
    """
    return [ALIGNED] * count if count > MANY_RUNS else list(CYCLE[:count])


def bin_edges(*values: np.ndarray, bins: int = 50) -> np.ndarray:
    """
    Common histogram edges of several samples; a span of zero is widened.

    :param values: samples; what is not finite is left out.
    :param bins: the most bins there can be; few values get fewer.
    """
    joined = np.concatenate([v[np.isfinite(v)] for v in values])
    if joined.size == 0:
        return np.linspace(-0.5, 0.5, 2)
    low, high = float(joined.min()), float(joined.max())
    if high - low <= 1e-9 * max(1.0, abs(low), abs(high)):
        pad = 0.5 * max(1.0, abs(low) * 1e-3)
        low, high = low - pad, high + pad
    sizes = [int(np.isfinite(v).sum()) for v in values]
    smallest = min(size for size in sizes if size)
    count = int(min(bins, max(5, math.ceil(2.0 * smallest ** (1 / 3)))))
    return np.linspace(low, high, count + 1)


def thin(count: int, most: int = 500) -> np.ndarray:
    """
    At most ``most`` indices below ``count``, spread evenly in the logarithm, ends included.

    :param count: the number of points there are.
    :param most: the number of points worth drawing.

    >>> thin(4).tolist()
    [0, 1, 2, 3]
    >>> spread = thin(1_000_000)
    >>> len(spread) <= 500, int(spread[0]), int(spread[-1])
    (True, 0, 999999)
    """
    if count <= most:
        return np.arange(count)
    return np.unique(np.geomspace(1, count, most).round().astype(np.int64)) - 1
