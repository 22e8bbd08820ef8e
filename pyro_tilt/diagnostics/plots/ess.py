# SPDX-License-Identifier: Apache-2.0
"""Effective sample size, by run or by step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pyro_tilt.diagnostics import reading
from pyro_tilt.diagnostics.plots import style
from pyro_tilt.ops.importance import effective_sample_size

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pyro_tilt.infer.weighted_samples import WeightedSamples


def plot_ess(result: WeightedSamples, *, ax: Axes | None = None) -> Axes:
    """
    Effective sample size: a bar for each run, or a line over the steps of a sampler with steps.

    :param result: the result of a sampler.
    :param ax: axes to draw on, or None for a new figure.
    :return: the axes.

    >>> import pyro, pyro.distributions as dist
    >>> from pyro_tilt.infer import ImportanceSampler
    >>> program = lambda: pyro.sample("x", dist.Normal(0.0, 1.0))
    >>> result = ImportanceSampler(program, reward=lambda x: x, num_samples=1000, seed=0).run()
    >>> axes = plot_ess(result)
    >>> len(axes.patches)
    1
    >>> import matplotlib.pyplot as plt; plt.close(axes.figure)
    """
    ax = style.new_axes(ax)
    if len(result) == 0:
        return style.empty(ax, "no draws")
    if "ess" in result.steps:
        return _over_steps(ax, result)
    return _by_run(ax, result)


def _by_run(ax: Axes, result: WeightedSamples) -> Axes:
    slices = reading.chain_slices(result)
    sizes = np.array([part.stop - part.start for part in slices])
    ess = np.array([float(effective_sample_size(result.log_weights[part])) for part in slices])
    runs = np.arange(1, len(slices) + 1)
    width = 0.4 if len(slices) == 1 else 0.75
    ax.bar(runs, ess, width=width, color=style.ALIGNED, label="effective draws")
    ax.hlines(
        sizes,
        runs - width / 2,
        runs + width / 2,
        color=style.REFERENCE,
        linewidth=1.6,
        label="draws",
    )
    if len(slices) <= style.MANY_RUNS:
        for run, value, size in zip(runs, ess, sizes):
            share = value / size if size else 0.0
            inside = share > 0.5
            ax.annotate(
                f"{_count(value)}\n({share:.1%})",
                (run, value),
                xytext=(0, -4 if inside else 3),
                textcoords="offset points",
                ha="center",
                va="top" if inside else "bottom",
                fontsize=8.5,
                color="white" if inside else "black",
            )
        ax.set_xticks(runs)
    ax.set_xlim(0.3, len(slices) + 0.7)
    ax.set_ylim(0.0, 1.3 * sizes.max())
    total = float(effective_sample_size(result.log_weights))
    share = total / sizes.sum()
    return style.finish(
        ax,
        title=f"effective sample size {_count(total)} of {sizes.sum():,} ({share:.1%})",
        good=reading.ess_level(total, int(sizes.sum())) == "ok",
        xlabel="run",
        ylabel="draws",
        legend="upper right",
        columns=2,
    )


def _over_steps(ax: Axes, result: WeightedSamples) -> Axes:
    rows = reading.by_chain(result, "ess")
    flagged = "resampled" in result.steps
    resampled = reading.by_chain(result, "resampled") if flagged else np.zeros(rows.shape)
    many = len(rows) > style.MANY_RUNS
    for i, (row, color, flag) in enumerate(zip(rows, style.run_colors(len(rows)), resampled)):
        steps = np.arange(1, len(row) + 1)
        label = (
            None if many and i else "runs" if many else f"run {i + 1}" if len(rows) > 1 else "ESS"
        )
        ax.plot(
            steps,
            row,
            color=color,
            linewidth=0.9 if many else 1.6,
            alpha=0.5 if many else 1.0,
            marker="o" if len(row) == 1 else None,
            label=label,
        )
        if (flag > 0).any() and not many:
            ax.plot(
                steps[flag > 0],
                row[flag > 0],
                linestyle="none",
                marker="v",
                markersize=6,
                color=color,
                markeredgecolor="white",
                markeredgewidth=0.4,
                label=None if i else "resampled",
            )
    size = max(result.chain_sizes)
    ax.axhline(size, color=style.REFERENCE, linestyle="--", linewidth=1.2, label="particles")
    ax.set_ylim(0.0, 1.3 * size)
    lowest = float(np.nanmin(rows))
    return style.finish(
        ax,
        title=f"lowest effective sample size {_count(lowest)} of {size:,} ({lowest / size:.1%})",
        good=reading.ess_level(lowest, size) == "ok",
        xlabel="step",
        ylabel="effective sample size (draws)",
        legend="upper right",
        columns=3,
    )


def _count(value: float) -> str:
    return f"{value:,.0f}" if value >= 10.0 else f"{value:.1f}"
