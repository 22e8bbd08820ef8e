# SPDX-License-Identifier: Apache-2.0
"""The weights by rank, with their tail."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from pyro_tilt.diagnostics import reading
from pyro_tilt.diagnostics.plots import style
from pyro_tilt.ops.importance import normalize
from pyro_tilt.ops.psis import tail_length

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pyro_tilt.infer.weighted_samples import WeightedSamples


def plot_weights(result: WeightedSamples, *, ax: Axes | None = None) -> Axes:
    r"""
    Weights by rank, both in logarithms, with the fitted Pareto tail and k-hat.

    A weight of 1 is an equal share. A Pareto tail of shape k falls off with slope -k, so that a
    tail steeper than the dotted reference line, whose slope is the threshold
    ``min(.7, 1 - 1/log10 N)``, is too heavy for the number of draws. The title says so.

    :param result: the result of a sampler.
    :param ax: axes to draw on, or None for a new figure.
    :return: the axes.

    >>> import pyro, pyro.distributions as dist
    >>> from pyro_tilt.infer import ImportanceSampler
    >>> program = lambda: pyro.sample("x", dist.Normal(0.0, 1.0))
    >>> result = ImportanceSampler(program, reward=lambda x: x, num_samples=1000, seed=0).run()
    >>> axes = plot_weights(result)
    >>> axes.get_xscale(), axes.get_yscale()
    ('log', 'log')
    >>> import matplotlib.pyplot as plt; plt.close(axes.figure)
    """
    ax = style.new_axes(ax)
    share = reading.array(normalize(result.log_weights)) * len(result)
    order = np.sort(share[share > 0.0])[::-1]
    if order.size == 0:
        return style.empty(ax, "every weight is zero" if share.size else "no draws")
    tail = reading.tail(result)
    few = order.size <= 30
    rank = style.thin(order.size)
    ax.plot(
        rank + 1,
        order[rank],
        color=style.ALIGNED,
        marker="o" if few else None,
        markersize=4,
        linewidth=1.8,
        label="weights",
    )
    ax.axhline(1.0, color=style.BASE, linewidth=1.0, label="equal share")
    if tail is not None and tail.k is not None and order.size > 30:
        _tail(ax, result, order, tail)
    ax.set_xscale("log")
    ax.set_yscale("log")
    low, high = float(order[-1]), float(order[0])
    low = max(low, high * 1e-8)
    # The room below is for the legend.
    ax.set_ylim(low * min((low / high) ** 0.5, 0.1), max(high, 1.0) * 3.0)
    ax.set_xlim(0.9, max(order.size * 1.1, 10.0))
    zeros = share.size - order.size
    if zeros:
        style.note(ax, f"{zeros:,} of {share.size:,} weights are zero", x=0.98, y=0.98)
    return style.finish(
        ax,
        title=_title(result, tail, bool(order[0] == order[-1]) and not zeros),
        xlabel="rank of the draw",
        ylabel="weight (1 = equal share)",
        legend="lower left",
        good=tail is None or tail.verdict == "ok",
    )


def _title(result: WeightedSamples, tail: reading.Tail | None, equal: bool) -> str:
    count = len(result)
    draws = "1 draw" if count == 1 else f"{count:,} draws"
    if equal:
        return f"{draws}, all weights equal"
    if tail is None:
        return draws
    if tail.k is None:
        return f"{draws}, k̂: {tail.reason} ({tail.verdict})"
    sign = "≤" if tail.k <= tail.threshold else ">"
    return f"{draws}, k̂ = {tail.k:.2f} {sign} {tail.threshold:.2f}: {tail.verdict}"


def _tail(ax: Axes, result: WeightedSamples, order: np.ndarray, tail: reading.Tail) -> None:
    """The fitted tail, which smoothing put in place of the largest weights, and the reference."""
    size = tail_length(len(result))
    if size >= order.size:
        return
    rank = style.thin(size)
    if result.psis_log_weights is not None and tail.k is not None:
        total = float(torch.logsumexp(result.log_weights, 0))
        smoothed = np.sort(reading.array(result.psis_log_weights))[::-1][:size]
        fitted = np.exp(smoothed - total) * len(result)
        ax.plot(
            rank + 1,
            fitted[rank],
            color=style.ALARM if tail.verdict != "ok" else style.ACCEPTED,
            linestyle="--",
            linewidth=1.6,
            label=f"fitted tail, k̂ = {tail.k:.2f}",
        )
    ranks = np.array([1.0, size])
    ax.plot(
        ranks,
        order[size] * (ranks / size) ** -tail.threshold,
        color=style.REFERENCE,
        linestyle=":",
        linewidth=1.4,
        label=f"slope of the threshold {tail.threshold:.2f}",
    )
