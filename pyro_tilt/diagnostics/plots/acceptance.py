# SPDX-License-Identifier: Apache-2.0
"""What a baseline accepts and clips."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from pyro_tilt.diagnostics import reading
from pyro_tilt.diagnostics.plots import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pyro_tilt.infer.weighted_samples import WeightedSamples


def plot_acceptance(result: WeightedSamples, *, ax: Axes | None = None) -> Axes:
    r"""
    Base and target by log weight, with what the baseline accepts and clips.

    Over the log weight :math:`A` (:math:`\beta r` plus other factors) are drawn the base
    proposals, the same reweighted by :math:`e^A`, which is the target, and the acceptance
    probability :math:`\min(1, e^{A-b})` on the right-hand axis. The area of the target that lies
    above the density of the accepted draws times :math:`1-\kappa` is shaded: it is the clipped
    mass :math:`\kappa = \mathbb E_q(1 - e^{b-A})_+`.

    :param result: the result of a sampler that keeps base proposals.
    :param ax: axes to draw on, or None for a new figure.
    :return: the axes of the two densities.

    >>> import pyro, pyro.distributions as dist
    >>> from pyro_tilt.infer import LCB
    >>> program = lambda: pyro.sample("x", dist.Normal(0.0, 1.0))
    >>> result = LCB(program, reward=lambda x: x, num_samples=100, seed=0).run()
    >>> axes = plot_acceptance(result)
    >>> axes.get_xlabel().startswith("log weight")
    True
    >>> import matplotlib.pyplot as plt; plt.close(axes.figure)
    """
    ax = style.new_axes(ax)
    levels = reading.base_log_weights(result)
    if levels is None:
        return style.empty(ax, "no base proposals were kept:\nacceptance cannot be drawn")
    finite = levels[np.isfinite(levels)]
    if finite.size == 0:
        return style.empty(ax, f"all {levels.size:,} base proposals kept have weight zero")
    bound = reading.baseline(result)
    given = math.isfinite(bound)
    bound = bound if given else float(finite.max())
    name = "baseline" if "baseline" in result.info else "bound" if given else "largest base weight"
    # The far left tail of the base is never accepted and would squeeze the rest.
    shown = finite[finite >= np.quantile(finite, 0.01, method="lower")]
    edges = style.bin_edges(np.append(shown, bound) if given else shown)
    _densities(ax, finite, bound, edges, result.info)
    ax.axvline(
        bound,
        color=style.REFERENCE,
        linestyle="--",
        linewidth=1.2,
        ymax=0.69,
        label=f"{name} b = {bound:.3g}",
    )
    rate = result.info.get("acceptance_rate")
    mean = float(np.minimum(1.0, np.exp(np.minimum(finite - bound, 0.0))).sum() / levels.size)
    _acceptance(ax, edges, bound)
    if finite.size < levels.size:
        style.note(ax, f"{1 - finite.size / levels.size:.1%} of base proposals at -inf", y=0.985)
    accepted = f"acceptance rate {mean if rate is None else rate:.3g}"
    return style.finish(
        ax,
        title=accepted
        if given
        else f"no baseline: draws are weighted\n{accepted} at the largest weight",
        xlabel=f"log weight A = {_what(result)} (nats)",
        ylabel="density",
        legend=None,
    )


def _what(result: WeightedSamples) -> str:
    factors = result.base is not None and bool((result.base.log_factors != 0.0).any())
    return "β · reward" + (" + other factors" if factors else "")


def _densities(
    ax: Axes, finite: np.ndarray, bound: float, edges: np.ndarray, info: dict[str, float]
) -> None:
    relative = np.exp(finite - finite.max())
    weight = relative / relative.sum()
    width = np.diff(edges)
    base = np.histogram(finite, edges)[0] / finite.size / width
    target = np.histogram(finite, edges, weights=weight)[0] / width
    excess = weight * -np.expm1(np.minimum(bound - finite, 0.0))
    clipped = np.histogram(finite, edges, weights=excess)[0] / width
    ax.stairs(base, edges, fill=True, color=style.BASE, alpha=0.45, label="base proposals")
    ax.stairs(target, edges, fill=True, color=style.ALIGNED, alpha=0.12)
    ax.stairs(target, edges, color=style.ALIGNED, linewidth=1.6, label="target (base × eᴬ)")
    mass = info.get("clipped_mass", float(excess.sum()))
    upper = info.get("clipped_mass_upper")
    label = f"clipped mass κ = {mass:.2g}"
    if upper is not None and math.isfinite(upper):
        label += f" (≤ {upper:.2g})"
    ax.stairs(
        target,
        edges,
        baseline=target - clipped,
        fill=True,
        facecolor=style.ALARM,
        edgecolor="white",
        hatch="////",
        linewidth=0.0,
        alpha=0.8,
        label=label,
    )
    ax.set_ylim(0.0, 1.5 * max(base.max(), target.max()))


def _acceptance(ax: Axes, edges: np.ndarray, bound: float) -> None:
    right = ax.twinx()
    grid = np.unique(np.append(np.linspace(edges[0], edges[-1], 400), bound))
    right.plot(
        grid,
        np.exp(np.minimum(grid - bound, 0.0)),
        color=style.ACCEPTED,
        linewidth=1.6,
        label="accepted: min(1, eᴬ⁻ᵇ)",
    )
    right.set_ylim(0.0, 1.5)
    right.set_yticks([0.0, 0.5, 1.0])
    right.tick_params(labelsize=9, colors=style.ACCEPTED)
    right.set_ylabel("acceptance probability", fontsize=9.5, color=style.ACCEPTED)
    right.spines[["top", "left"]].set_visible(False)
    ax.margins(x=0.0)
    handles, labels = ax.get_legend_handles_labels()
    more, names = right.get_legend_handles_labels()
    right.legend(
        [*handles, *more],
        [*labels, *names],
        loc="upper left",
        fontsize=8.5,
        ncols=2,
        framealpha=0.9,
        edgecolor="none",
        columnspacing=1.0,
        handlelength=1.4,
        borderpad=0.2,
    )
