# SPDX-License-Identifier: Apache-2.0
"""Who descends from whom."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from pyro_tilt.diagnostics import reading
from pyro_tilt.diagnostics.plots import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch import Tensor

    from pyro_tilt.infer.weighted_samples import WeightedSamples

_MOST_LINES = 400


def plot_genealogy(result: WeightedSamples, *, chain: int = 0, ax: Axes | None = None) -> Axes:
    """
    The ancestral lines of the final particles, step by step, and how many are left of them.

    Time runs to the right. Every line leads from a final particle back to its ancestors; where
    lines join, particles share one. The families of the founders with the most descendants have
    colours of their own, the others are grey, and particles of weight zero draw no line. The black
    line, on the right-hand axis, counts the distinct ancestors: what a quantity of that step rests
    on, whatever the number of particles. Of many particles some, evenly spaced, are drawn and all
    are counted.

    :param result: the result of an ``SMC`` run with ``keep_paths=True``.
    :param chain: the run to draw, where there are several.
    :param ax: axes to draw on, or None for a new figure.
    :return: the axes of the lines.

    >>> import torch, pyro, pyro.distributions as dist
    >>> from pyro_tilt import scan
    >>> from pyro_tilt.infer import SMC
    >>> def step(x, y):
    ...     x = pyro.sample(f"x_{int(y)}", dist.Normal(x, 1.0))
    ...     pyro.factor(f"f_{int(y)}", -(x - y).square())
    ...     return x
    >>> program = lambda: scan("chain", step, torch.tensor(0.0), range(5))
    >>> result = SMC(program, num_particles=50, keep_paths=True, seed=0).run()
    >>> axes = plot_genealogy(result)
    >>> axes.get_xlabel()
    'step'
    >>> import matplotlib.pyplot as plt; plt.close(axes.figure)
    """
    ax = style.new_axes(ax)
    if result.paths is None:
        return style.empty(ax, _missing(result))
    lines = ancestral_lines(result, chain)
    if lines.shape[0] < 1 or lines.shape[1] < 1:
        return style.empty(ax, "no steps, so that nobody has ancestors")
    counts = distinct_ancestors(lines)
    size = lines.shape[1]
    alive = _alive(result, chain)
    order = np.lexsort(lines[::-1])
    height = np.empty(size)
    height[order] = (np.arange(size) + 0.5) / size
    _families(ax, lines, height, alive, _picked(order[alive[order]]))
    _counts(ax, counts, size)
    run = f", run {chain + 1} of {result.num_chains}" if result.num_chains > 1 else ""
    return style.finish(
        ax,
        title=f"{size:,} particles descend from {counts[0]:,} of the first step{run}",
        good=bool(counts[0] > 1 or size == 1),
        xlabel="step",
        ylabel="final particles, by lineage",
        legend=None,
    )


def ancestral_lines(result: WeightedSamples, chain: int = 0) -> np.ndarray:
    """
    Which stored node of each step every final particle of a run descends from.

    :param result: the result of a run that kept its paths.
    :param chain: the run.
    :return: integers of shape ``(step, particle)``; equal numbers in a row are one ancestor.
    """
    paths = result.paths
    assert paths is not None
    if not 0 <= chain < len(paths.parts):
        raise ValueError(f"chain must be in 0..{len(paths.parts) - 1}, got {chain}")
    alone = type(paths)([paths.parts[chain]])
    nodes: Sequence[Tensor] = alone.ancestors()
    if not nodes:
        return np.empty((0, 0), dtype=np.int64)
    return torch.stack([each.cpu() for each in nodes]).numpy()


def distinct_ancestors(lines: np.ndarray) -> np.ndarray:
    """
    How many different ancestors the final particles have at each step.

    :param lines: ancestors, ``(step, particle)``.

    >>> distinct_ancestors(np.array([[0, 0, 0], [0, 0, 1], [0, 1, 2]])).tolist()
    [1, 2, 3]
    """
    return np.array([len(np.unique(row)) for row in lines])


def _missing(result: WeightedSamples) -> str:
    roots = result.stats.get("ancestor")
    if roots is None:
        return "no lineages were kept:\nrun SMC with keep_paths=True"
    left = len(torch.unique(roots[: result.chain_sizes[0]]))
    size = result.chain_sizes[0]
    return (
        f"{size:,} particles descend from {left:,} of the first ones;\n"
        "for the lines between, run SMC with keep_paths=True"
    )


def _alive(result: WeightedSamples, chain: int) -> np.ndarray:
    part = reading.chain_slices(result)[chain]
    return reading.array(result.log_weights[part]) > -np.inf


def _picked(order: np.ndarray) -> np.ndarray:
    if len(order) <= _MOST_LINES:
        return order
    return order[np.linspace(0, len(order) - 1, _MOST_LINES).round().astype(np.int64)]


def _families(
    ax: Axes, lines: np.ndarray, height: np.ndarray, alive: np.ndarray, picked: np.ndarray
) -> None:
    """Draws the tree with every ancestor at the middle of its descendants."""
    from matplotlib.collections import LineCollection

    middle = np.stack([_middles(row, height)[picked] for row in lines])
    if len(lines) == 1 or not (middle[-1] == height[picked]).all():
        middle = np.concatenate([middle, height[picked][None]])
    steps = np.arange(1, len(middle) + 1)
    founders, sizes = np.unique(lines[0][alive], return_counts=True)
    largest = founders[np.argsort(-sizes, kind="stable")][: len(style.CYCLE) - 1]
    color = dict(zip(largest.tolist(), style.CYCLE))
    segments = np.stack([np.broadcast_to(steps[:, None], middle.shape), middle], -1)
    shades = [color.get(int(founder), style.BASE) for founder in lines[0][picked]]
    width = float(np.clip(60.0 / max(len(picked), 1), 0.5, 1.4))
    ax.add_collection(
        LineCollection(list(segments.swapaxes(0, 1)), colors=shades, linewidths=width, alpha=0.7)
    )
    ax.set_xlim(0.5, len(middle) + 0.5)
    ax.set_ylim(0.0, 1.0)
    ax.set_yticks([])
    style.whole_steps(ax)


def _middles(row: np.ndarray, height: np.ndarray) -> np.ndarray:
    _, inverse = np.unique(row, return_inverse=True)
    return (np.bincount(inverse, weights=height) / np.bincount(inverse))[inverse]


def _counts(ax: Axes, counts: np.ndarray, size: int) -> None:
    from matplotlib.patheffects import Normal, Stroke

    right = ax.twinx()
    right.plot(
        np.arange(1, len(counts) + 1),
        counts,
        color=style.REFERENCE,
        linewidth=1.6,
        marker="o" if len(counts) <= 30 else None,
        markersize=3,
        path_effects=[Stroke(linewidth=4.0, foreground="white"), Normal()],
    )
    right.set_yscale("log")
    right.set_ylim(0.8, max(2.0, 1.25 * size))
    right.set_ylabel("distinct ancestors of the final particles", fontsize=9.5)
    right.tick_params(labelsize=9)
    right.spines[["top", "left"]].set_visible(False)
