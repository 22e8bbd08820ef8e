# SPDX-License-Identifier: Apache-2.0
"""Rewards before and after alignment."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from pyro_tilt.diagnostics import reading
from pyro_tilt.diagnostics.plots import style
from pyro_tilt.diagnostics.summary_text import kl_text, plus_minus

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pyro_tilt.infer.weighted_samples import WeightedSamples


def plot_reward(result: WeightedSamples, *, ax: Axes | None = None) -> Axes:
    """
    The law of the reward under the base program and under the aligned one, with the KL spent.

    :param result: the result of a sampler whose draws carry their reward.
    :param ax: axes to draw on, or None for a new figure.
    :return: the axes.

    >>> import pyro, pyro.distributions as dist
    >>> from pyro_tilt.infer import ImportanceSampler
    >>> program = lambda: pyro.sample("x", dist.Normal(0.0, 1.0))
    >>> result = ImportanceSampler(program, reward=lambda x: x, num_samples=1000, seed=0).run()
    >>> axes = plot_reward(result)
    >>> axes.get_xlabel()
    'reward'
    >>> import matplotlib.pyplot as plt; plt.close(axes.figure)
    """
    ax = style.new_axes(ax)
    after, before = reading.after(result), reading.before(result)
    if after is None:
        return style.empty(ax, "the draws carry no reward")
    sides = [(after, "aligned", style.ALIGNED)]
    if before is not None:
        sides.insert(0, (before, "base", style.BASE))
    edges = style.bin_edges(*(side.reward[side.live] for side, _, _ in sides))
    heights = [_histogram(ax, side, name, color, edges) for side, name, color in sides]
    for side, name, color in sides:
        if math.isfinite(side.mean):
            ax.axvline(
                side.mean,
                color="#555555" if name == "base" else color,
                linestyle="--",
                linewidth=1.4,
                ymax=0.76,
                label=f"E r = {plus_minus(side.mean, side.error)}",
            )
    ax.set_ylim(0.0, 1.4 * max(max(heights), 1e-12))
    return style.finish(
        ax,
        title=_title(result, before, after),
        xlabel="reward",
        ylabel="probability per bin",
        legend="upper center",
        columns=2,
    )


def _histogram(ax: Axes, side: reading.Side, name: str, color: str, edges: np.ndarray) -> float:
    finite = np.isfinite(side.reward)
    mass = np.histogram(side.reward[finite], edges, weights=side.weight[finite])[0]
    lost = f" ({side.impossible:.1%} at -inf)" if side.impossible else ""
    ax.stairs(mass, edges, fill=True, color=color, alpha=0.45, label=name + lost)
    ax.stairs(mass, edges, color=color, linewidth=1.2)
    return float(mass.max())


def _title(result: WeightedSamples, before: reading.Side | None, after: reading.Side) -> str:
    from pyro_tilt.diagnostics.draws_kl import kl_of_draws

    start = "" if before is None else f"{before.mean:.3g} → "
    title = f"expected reward {start}{after.mean:.3g}"
    kl, kind = kl_of_draws(result)
    if kind == "unknown":
        return title
    spent = kl_text({"value": float(kl.value), "error": float(kl.error), "kind": kind})
    return f"{title}\nKL spent {spent}"
