# SPDX-License-Identifier: Apache-2.0
"""Reward against divergence."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_tilt.diagnostics.frontier import FrontierPoint, reward_kl_frontier
from pyro_tilt.diagnostics.plots import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pyro_tilt.diagnostics.frontier import Entries

_MARKERS = "osD^vP*X"


def plot_frontier(entries: Entries, *args: Any, ax: Axes | None = None, **kwargs: Any) -> Axes:
    """
    Expected reward against divergence from the base, with two standard errors either way.

    Points of one label are joined in the order of their divergence. A divergence that is known by
    an upper bound alone has an open mark with an arrow to the left.

    :param entries: see :func:`reward_kl_frontier`, as are ``args`` and ``kwargs``; its points
        can be passed as well.
    :param ax: axes to draw on, or None for a new figure.
    :return: the axes.

    >>> from pyro_tilt.diagnostics import Estimate
    >>> curve = [
    ...     FrontierPoint("tilt", kl=Estimate(b * b / 2, 0.0), reward=Estimate(b, 0.0), beta=b)
    ...     for b in (0.0, 1.0, 2.0)
    ... ]
    >>> axes = plot_frontier(curve)
    >>> axes.get_xlabel()
    'KL to the base (nats)'
    >>> import matplotlib.pyplot as plt; plt.close(axes.figure)
    """
    ax = style.new_axes(ax)
    points = reward_kl_frontier(entries, *args, **kwargs)
    known = [p for p in points if math.isfinite(p.kl.value) and math.isfinite(p.reward.value)]
    if not known:
        return style.empty(ax, "no point has a known reward and a known divergence")
    labels = list(dict.fromkeys(point.label for point in known))
    for i, label in enumerate(labels):
        curve = sorted((p for p in known if p.label == label), key=lambda p: p.kl.value)
        marker = _MARKERS[i // len(style.CYCLE) % len(_MARKERS)]
        _curve(ax, curve, style.CYCLE[i % len(style.CYCLE)], marker)
    missing = len(points) - len(known)
    if missing:
        style.note(ax, f"{missing} of {len(points)} points not known", x=0.98, y=0.02)
    ax.margins(x=0.08, y=0.12)
    ax.set_xlim(left=min(0.0, ax.get_xlim()[0]))
    return style.finish(
        ax,
        title="reward against divergence from the base",
        xlabel="KL to the base (nats)",
        ylabel="expected reward",
        legend="upper left",
    )


def _curve(ax: Axes, curve: list[FrontierPoint], color: str, marker: str) -> None:
    kl, reward = (np.array([getattr(point, name) for point in curve]) for name in ("kl", "reward"))
    errors = [2.0 * np.nan_to_num(each[:, 1]) for each in (kl, reward)]
    bound = np.array([point.kl_is_bound for point in curve])
    ax.plot(kl[:, 0], reward[:, 0], color=color, linewidth=1.2, alpha=0.6)
    for flag, face in ((False, color), (True, "white")):
        at = bound == flag
        if not at.any():
            continue
        first = flag == bound[0]
        ax.errorbar(
            kl[at, 0],
            reward[at, 0],
            xerr=None if flag else errors[0][at],
            yerr=errors[1][at],
            linestyle="none",
            marker=marker,
            markersize=5,
            color=color,
            markerfacecolor=face,
            capsize=2,
            elinewidth=1.0,
            label=curve[0].label + (" (KL at most)" if flag else "") if first else None,
        )
    for point in (p for p in curve if p.kl_is_bound):
        ax.annotate(
            "",
            xy=(point.kl.value, point.reward.value),
            xytext=(-16, 0),
            textcoords="offset points",
            arrowprops={"arrowstyle": "<-", "color": color, "linewidth": 1.0},
        )
