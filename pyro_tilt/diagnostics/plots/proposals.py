# SPDX-License-Identifier: Apache-2.0
"""What each step of a stepwise rejection sampler costs, and the baselines that it accepts under."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pyro_tilt.diagnostics import reading
from pyro_tilt.diagnostics.plots import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pyro_tilt.infer.weighted_samples import WeightedSamples

_QUANTILES = ("baseline_10", "baseline_50", "baseline_90")


def plot_proposals(result: WeightedSamples, *, ax: Axes | None = None) -> Axes:
    r"""
    Proposals per step, with the baselines over the chains behind them.

    The line is the mean number of proposals up to the first acceptance, the inverse of the
    acceptance rate of a step. On the right-hand axis stand the median of the baselines :math:`b_t`
    over the states that the chains came through, and the band from their 10 to their 90 %
    quantile.

    :param result: the result of a sampler that rejects step by step.
    :param ax: axes to draw on, or None for a new figure.
    :return: the axes of the proposals.

    >>> import pyro, torch, pyro.distributions as dist
    >>> from pyro_tilt import scan
    >>> from pyro_tilt.infer import LCB
    >>> def program():
    ...     def step(x, t):
    ...         return pyro.sample(f"x_{t}", dist.Normal(x, 1.0))
    ...     return scan("walk", step, torch.zeros(()), [1, 0])
    >>> result = LCB(
    ...     program, reward=lambda x: x, value=lambda x, t: x, tilt_start=False, seed=0
    ... ).run()
    >>> axes = plot_proposals(result)
    >>> axes.get_ylabel()
    'proposals per chain'
    >>> import matplotlib.pyplot as plt; plt.close(axes.figure)
    """
    from matplotlib.ticker import MaxNLocator

    ax = style.new_axes(ax)
    if "proposals" not in result.steps:
        return style.empty(ax, "no proposals by step:\nthis sampler does not reject step by step")
    rows = reading.by_chain(result, "proposals")
    many = len(rows) > style.MANY_RUNS
    right = _baselines(ax, result) if all(name in result.steps for name in _QUANTILES) else None
    for i, (row, color) in enumerate(zip(rows, style.run_colors(len(rows)))):
        label = "runs" if many else f"run {i + 1}" if len(rows) > 1 else "proposals"
        ax.plot(
            np.arange(1, len(row) + 1),
            row,
            color=color,
            linewidth=0.9 if many else 1.8,
            alpha=0.5 if many else 1.0,
            marker="o" if len(row) <= 60 and not many else None,
            markersize=4,
            label=None if many and i else label,
        )
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.axhline(1.0, color=style.REFERENCE, linestyle=":", linewidth=1.0)
    highest = float(np.nanmax(rows))
    if highest > 20.0:
        ax.set_yscale("log")
        ax.set_ylim(0.9, highest**1.35)
    else:
        ax.set_ylim(0.0, 1.35 * max(highest, 1.0))
    worst = int(np.nanargmax(np.nanmean(rows, 0))) + 1
    style.finish(
        ax,
        title=f"{np.nanmean(rows):.3g} proposals per step, most at step {worst} ({highest:.3g})",
        xlabel="step",
        ylabel="proposals per chain",
        legend=None,
    )
    handles, labels = ax.get_legend_handles_labels()
    top = ax
    if right is not None:
        # The right-hand axes lie above, and a legend below their lines could not be read.
        top = right
        more = right.get_legend_handles_labels()
        handles, labels = handles + more[0], labels + more[1]
    top.legend(
        handles, labels, loc="upper left", fontsize=8.5, ncols=3, framealpha=0.9, edgecolor="none"
    )
    return ax


def _baselines(ax: Axes, result: WeightedSamples) -> Axes:
    """Median and band on the right-hand axis, the mean over runs."""
    low, middle, high = (np.nanmean(reading.by_chain(result, name), 0) for name in _QUANTILES)
    right = ax.twinx()
    right.spines["top"].set_visible(False)
    right.tick_params(labelsize=9)
    steps = np.arange(1, len(middle) + 1)
    if len(middle) == 1:
        right.errorbar(
            steps,
            middle,
            yerr=[middle - low, high - middle],
            color=style.ACCEPTED,
            marker="s",
            capsize=4,
            linestyle="none",
            label="baseline, 10 to 90 %",
        )
    else:
        right.fill_between(
            steps, low, high, color=style.ACCEPTED, alpha=0.15, linewidth=0, label="10 to 90 %"
        )
        right.plot(
            steps,
            middle,
            color=style.ACCEPTED,
            linestyle="--",
            linewidth=1.4,
            label="median baseline b",
        )
    span = max(float(np.nanmax(high) - np.nanmin(low)), 1e-3)
    right.set_ylim(float(np.nanmin(low)) - 0.1 * span, float(np.nanmax(high)) + 0.45 * span)
    right.set_ylabel("baseline b (nats)", fontsize=9.5)
    return right
