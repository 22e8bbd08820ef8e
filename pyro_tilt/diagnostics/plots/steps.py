# SPDX-License-Identifier: Apache-2.0
"""What happened at each step of a sampler with steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pyro_tilt.diagnostics import reading
from pyro_tilt.diagnostics.plots import style
from pyro_tilt.ops.importance import effective_sample_size

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pyro_tilt.infer.weighted_samples import WeightedSamples

_SHARES = (
    ("ess", "ESS / particles", "-"),
    ("acceptance_rate", "acceptance", "--"),
)


def plot_steps(result: WeightedSamples, *, ax: Axes | None = None) -> Axes:
    """
    Effective sample size and acceptance over the steps, as shares of one.

    Triangles below mark the steps after which the particles were resampled. Lines of one run share
    a colour, so that several runs can be told apart.

    :param result: the result of a sampler with steps.
    :param ax: axes to draw on, or None for a new figure.
    :return: the axes.

    >>> import torch, pyro, pyro.distributions as dist
    >>> from pyro_tilt.infer import TemperedSMC
    >>> program = lambda: pyro.sample("x", dist.Normal(0.0, 1.0))
    >>> result = TemperedSMC(program, reward=lambda x: 4 * x, num_particles=500, seed=0).run()
    >>> axes = plot_steps(result)
    >>> axes.get_xlabel(), axes.get_ylabel()
    ('step', 'share')
    >>> import matplotlib.pyplot as plt; plt.close(axes.figure)
    """
    ax = style.new_axes(ax)
    shown = [name for name, _, _ in _SHARES if name in result.steps]
    if not shown:
        return style.empty(ax, "this result has no steps")
    for name, label, line in _SHARES:
        if name in shown:
            _lines(ax, shares(result, name), label, line)
    resampled = _resampled(ax, result) if "resampled" in result.steps else None
    ax.set_ylim(0.0, 1.35)
    style.whole_steps(ax)
    ax.set_yticks([0.0, 0.25, 0.5, 0.75, 1.0])
    return style.finish(
        ax,
        title=_title(result, resampled),
        good=_good(result),
        xlabel="step",
        ylabel="share",
        legend="upper right",
        columns=2,
    )


def shares(result: WeightedSamples, name: str) -> np.ndarray:
    """
    A statistic per step as a share of one, ``(chain, step)``; counts over the particles.

    :param result: the result of a sampler with steps.
    :param name: a key of its ``steps``.
    """
    rows = reading.by_chain(result, name)
    if name == "acceptance_rate":
        return rows
    return rows / reading.particles(result)[:, None]


def _lines(ax: Axes, rows: np.ndarray, label: str, line: str) -> None:
    many = len(rows) > style.MANY_RUNS
    for i, (row, color) in enumerate(zip(rows, style.run_colors(len(rows)))):
        ax.plot(
            np.arange(1, len(row) + 1),
            row,
            color=color,
            linestyle=line,
            linewidth=0.8 if many else 1.5,
            alpha=0.4 if many else 1.0,
            marker="o" if len(row) == 1 else None,
            markersize=4,
            label=None if i else label,
        )


def _resampled(ax: Axes, result: WeightedSamples) -> np.ndarray:
    """Marks the steps that resampled, one row of marks for each run; returns which they were."""
    flags = reading.by_chain(result, "resampled") > 0
    if len(flags) > style.MANY_RUNS:
        return flags
    for i, (row, color) in enumerate(zip(flags, style.run_colors(len(flags)))):
        steps = np.flatnonzero(row) + 1
        ax.plot(
            steps,
            np.full(len(steps), 0.03 + 0.04 * i),
            linestyle="none",
            marker="^",
            markersize=4,
            color=color,
            markeredgewidth=0.0,
            label=None if i else "resampled",
        )
    return flags


def _title(result: WeightedSamples, resampled: np.ndarray | None) -> str:
    lowest = reading.lowest_ess(result)
    parts = []
    if lowest is not None:
        parts.append(f"lowest ESS {lowest.value / lowest.particles:.1%} of the particles")
        end = _share_at_the_end(result)
        if end < 0.999 * lowest.value / lowest.particles:
            parts[0] += f", {end:.1%} at the end"
    if resampled is not None:
        counts = resampled.sum(1)
        often = f"{counts.min()}" if counts.min() == counts.max() else f"{counts.mean():.1f}"
        each = " a run" if len(counts) > 1 else ""
        parts.append(f"resampled after {often} of {resampled.shape[1]} steps{each}")
    return "\n".join(parts) or "the steps"


def _share_at_the_end(result: WeightedSamples) -> float:
    """The least effective share of a run under its last weights, a reward at the end included."""
    runs = (result.log_weights[part] for part in reading.chain_slices(result))
    return min(float(effective_sample_size(run)) / len(run) for run in runs)


def _good(result: WeightedSamples) -> bool:
    lowest = reading.lowest_ess(result)
    return lowest is None or reading.ess_level(lowest.value, lowest.particles) == "ok"
