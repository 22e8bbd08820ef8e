# SPDX-License-Identifier: Apache-2.0
"""The evidence as it settles."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from pyro_tilt.diagnostics import reading
from pyro_tilt.diagnostics.plots import style
from pyro_tilt.diagnostics.summary_text import plus_minus

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pyro_tilt.infer.weighted_samples import WeightedSamples


def plot_evidence(
    result: WeightedSamples, *, exact: float | None = None, ax: Axes | None = None
) -> Axes:
    """
    The log evidence of each run as it settles, with its error and the spread across runs.

    One-shot samplers show the log of the running mean weight with a band of two standard errors,
    from their weighted draws or, for a single run of independent draws, from the base proposals
    kept. Samplers with steps show the running product of their increments, which may hold a twist,
    and at the end a mark for the evidence of each run; what has no running estimate shows the
    marks alone. The whole result stands as a horizontal line with a band of two standard errors.

    :param result: the result of a sampler.
    :param exact: the log evidence, where it is known, drawn as a dotted line.
    :param ax: axes to draw on, or None for a new figure.
    :return: the axes.

    >>> import pyro, pyro.distributions as dist
    >>> from pyro_tilt.infer import ImportanceSampler
    >>> program = lambda: pyro.sample("x", dist.Normal(0.0, 1.0))
    >>> result = ImportanceSampler(program, reward=lambda x: x, num_samples=1000, seed=0).run()
    >>> axes = plot_evidence(result)
    >>> axes.get_ylabel()
    'log evidence (nats)'
    >>> import matplotlib.pyplot as plt; plt.close(axes.figure)
    """
    ax = style.new_axes(ax)
    total, error = float(result.log_normalizer), float(result.log_normalizer_error)
    if not math.isfinite(total):
        return style.empty(ax, "the evidence is not known")
    proposals = reading.base_log_weights(result)
    if "log_normalizer" in result.steps:
        xlabel = _over_steps(ax, result)
    elif result.kind == "weighted":
        runs = [reading.array(result.log_weights[part]) for part in reading.chain_slices(result)]
        _running(ax, runs)
        xlabel = "draws so far"
    elif result.num_chains == 1 and proposals is not None:
        _running(ax, [proposals])
        xlabel = "base proposals so far (those kept)"
    else:
        xlabel = _by_run(ax, result)
    ax.axhline(total, color=style.REFERENCE, linestyle="--", linewidth=1.2, label="all draws")
    if math.isfinite(error):
        ax.axhspan(total - 2 * error, total + 2 * error, color=style.BASE, alpha=0.25, linewidth=0)
    if exact is not None:
        _exact(ax, exact, label="exact")
    if "log_normalizer" in result.steps and result.num_chains > 1:
        _closely(ax, result, exact)
    return style.finish(
        ax,
        title=f"log evidence {plus_minus(total, error)}{_spread(result)}",
        xlabel=xlabel,
        ylabel="log evidence (nats)",
        columns=2,
    )


def running_evidence(log_weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    r"""
    The log of the mean of the first n weights, for every n, and its standard error.

    The error is that of the delta method, :math:`s_n / (\bar w_n \sqrt n)`.

    :param log_weights: log weights, shape (N,).
    :return: two arrays of shape (N,); -inf and nan where all weights so far are zero, and a nan
        error at n = 1.

    >>> value, error = running_evidence(np.log([1.0, 3.0]))
    >>> value.round(4).tolist(), error.round(4).tolist()
    ([0.0, 0.6931], [nan, 0.5])
    """
    top = log_weights.max()
    if not np.isfinite(top):
        return np.full(log_weights.shape, -math.inf), np.full(log_weights.shape, math.nan)
    weight = np.exp(log_weights - top)
    count = np.arange(1, len(weight) + 1)
    mean = np.cumsum(weight) / count
    variance = np.maximum(np.cumsum(weight**2) / count - mean**2, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = top + np.log(mean)
        error = np.sqrt(variance / (count - 1.0)) / mean
    return value, error


def _running(ax: Axes, runs: list[np.ndarray]) -> None:
    """Running estimates of each run, without the first hundredth, which says little."""
    many = len(runs) > style.MANY_RUNS
    spans = []
    for i, (log_weights, color) in enumerate(zip(runs, style.run_colors(len(runs)))):
        value, error = running_evidence(log_weights)
        kept = style.thin(len(value))
        kept = kept[np.isfinite(value[kept]) & (kept >= len(value) // 100)]
        ax.plot(
            kept + 1,
            value[kept],
            color=color,
            linewidth=0.9 if many else 1.6,
            alpha=0.5 if many else 1.0,
            marker="o" if len(kept) == 1 else None,
            label=_label(i, len(runs)),
        )
        band = kept[np.isfinite(error[kept])]
        low, high = value[band] - 2 * error[band], value[band] + 2 * error[band]
        if not many:
            ax.fill_between(band + 1, low, high, color=color, alpha=0.12, linewidth=0)
        late = band >= len(value) // 20
        spans += [value[kept[kept >= len(value) // 20]], low[late], high[late]]
    ax.set_xscale("log")
    _limits(ax, spans)


def _limits(ax: Axes, spans: list[np.ndarray]) -> None:
    """Limits around what is worth seeing, with room above for the legend."""
    joined = np.concatenate(spans)
    joined = joined[np.isfinite(joined)]
    if joined.size:
        low, high = float(joined.min()), float(joined.max())
        span = max(high - low, 1e-3 * max(1.0, abs(high)))
        ax.set_ylim(low - 0.1 * span, high + 0.45 * span)


def _over_steps(ax: Axes, result: WeightedSamples) -> str:
    rows = reading.by_chain(result, "log_normalizer")
    many = len(rows) > style.MANY_RUNS
    for i, (row, color) in enumerate(zip(rows, style.run_colors(len(rows)))):
        ax.plot(
            np.arange(1, len(row) + 1),
            row,
            color=color,
            linewidth=0.9 if many else 1.6,
            alpha=0.5 if many else 1.0,
            marker="o" if len(row) == 1 else None,
            label=_label(i, len(rows)),
        )
    finals = reading.array(result.chain_log_normalizers)
    for value, row, color in zip(finals, rows, style.run_colors(len(rows))):
        ax.plot(len(row) + 1, value, color=color, marker="D", markersize=4, linestyle="none")
    total, error = float(result.log_normalizer), float(result.log_normalizer_error)
    _limits(ax, [*rows, finals, np.array([total - 2 * error, total, total + 2 * error])])
    style.whole_steps(ax)
    return "step"


def _exact(ax: Axes, exact: float, label: str | None = None) -> None:
    ax.axhline(exact, color=style.ALARM, linestyle=":", linewidth=1.8, label=label)
    low, high = ax.get_ylim()
    room = 0.05 * (high - low)
    ax.set_ylim(min(low, exact - room), max(high, exact + room))


def _closely(ax: Axes, result: WeightedSamples, exact: float | None) -> None:
    """The final evidence of each run on a scale of its own, in a corner that the lines leave."""
    rows, finals = (
        reading.by_chain(result, "log_normalizer"),
        reading.array(result.chain_log_normalizers),
    )
    if not np.isfinite(finals).all():
        return
    falls = rows[0, 0] > finals[0]
    inset = ax.inset_axes((0.08 if falls else 0.62, 0.09, 0.34, 0.25))
    total, error = float(result.log_normalizer), float(result.log_normalizer_error)
    inset.axhline(total, color=style.REFERENCE, linestyle="--", linewidth=1.0)
    if math.isfinite(error):
        inset.axhspan(total - 2 * error, total + 2 * error, color=style.BASE, alpha=0.25, lw=0)
    few = len(finals) <= style.MANY_RUNS
    places = np.arange(1, len(finals) + 1)
    inset.scatter(
        places, finals, c=style.run_colors(len(finals)), marker="D", s=22 if few else 6, zorder=3
    )
    inset.set_xlim(0.3, len(finals) + 0.7)
    inset.margins(y=0.2)
    if exact is not None:
        _exact(inset, exact)
    inset.set_xticks(places if few else [])
    inset.tick_params(labelsize=7.5)
    inset.set_title("final, by run", fontsize=8.5, loc="left", pad=2)


def _by_run(ax: Axes, result: WeightedSamples) -> str:
    chains = reading.array(result.chain_log_normalizers)
    ax.plot(
        np.arange(1, len(chains) + 1),
        chains,
        linestyle="none",
        marker="o",
        markersize=6 if len(chains) <= style.MANY_RUNS else 3,
        color=style.ALIGNED,
        label="runs" if len(chains) > 1 else "run",
    )
    ax.set_xlim(0.3, len(chains) + 0.7)
    ax.margins(y=0.4)
    if len(chains) <= style.MANY_RUNS:
        ax.set_xticks(np.arange(1, len(chains) + 1))
    return "run"


def _label(index: int, count: int) -> str | None:
    if count == 1:
        return "running estimate"
    if count > style.MANY_RUNS:
        return None if index else f"{count} runs"
    return f"run {index + 1}"


def _spread(result: WeightedSamples) -> str:
    chains = reading.array(result.chain_log_normalizers)
    if len(chains) < 2 or not np.isfinite(chains).all():
        return ""
    return f"\nsd over {len(chains)} runs {chains.std(ddof=1):.2g}"
