# SPDX-License-Identifier: Apache-2.0
"""Reward against divergence."""

from __future__ import annotations

import math
import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_tilt.diagnostics.frontier import FrontierPoint, reward_kl_frontier
from pyro_tilt.diagnostics.plots import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.typing import FillStyleType

    from pyro_tilt.diagnostics.draws_kl import Kind
    from pyro_tilt.diagnostics.frontier import Entries

_MARKERS = "osD^vP*X"
_FILLS: dict[Kind, tuple[FillStyleType, str]] = {
    "exact": ("full", "KL exact"),
    "estimate": ("left", "KL estimated"),
    "bound": ("none", "KL at most"),
}


def plot_frontier(entries: Entries, *args: Any, ax: Axes | None = None, **kwargs: Any) -> Axes:
    """
    Expected reward against divergence from the base, with two standard errors either way.

    Points of one label are joined in the order of their divergence. A mark is full where the
    divergence is exact, half full where it is an estimate, and open, with an arrow to the left,
    where it is an upper bound; the legend says so for the kinds that occur. Points whose divergence
    is unknown are left out and named in a note.

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
    _kinds(ax, {point.kl_kind for point in known})
    missing = [point.label for point in points if point not in known]
    if missing:
        names = ", ".join(dict.fromkeys(missing))
        text = f"{len(missing)} of {len(points)} points not known: {names}"
        style.note(ax, textwrap.fill(text, 60), x=0.98, y=0.02)
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
    kinds = np.array([point.kl_kind for point in curve])
    ax.plot(kl[:, 0], reward[:, 0], color=color, linewidth=1.2, alpha=0.6)
    for kind, (fill, _) in _FILLS.items():
        at = kinds == kind
        if not at.any():
            continue
        ax.errorbar(
            kl[at, 0],
            reward[at, 0],
            xerr=errors[0][at] if kind == "estimate" else None,
            yerr=errors[1][at],
            **_marker(marker, color, fill),
            capsize=2,
            elinewidth=1.0,
        )
    _key(ax, curve[0].label, marker, color, "full")
    for point in (p for p in curve if p.kl_is_bound):
        ax.annotate(
            "",
            xy=(point.kl.value, point.reward.value),
            xytext=(-16, 0),
            textcoords="offset points",
            arrowprops={"arrowstyle": "<-", "color": color, "linewidth": 1.0},
        )


def _kinds(ax: Axes, kinds: set[Kind | None]) -> None:
    """Entries of the legend for the kinds of divergence."""
    for kind, (fill, text) in _FILLS.items():
        if kind in kinds:
            _key(ax, text, "o", "0.4", fill)


def _key(ax: Axes, text: str, marker: str, color: str, fill: FillStyleType) -> None:
    ax.plot([], [], label=text, **_marker(marker, color, fill))


def _marker(marker: str, color: str, fill: FillStyleType) -> dict[str, Any]:
    return {
        "linestyle": "none",
        "marker": marker,
        "markersize": 6,
        "color": color,
        "fillstyle": fill,
        "markerfacecoloralt": "white",
    }
