# SPDX-License-Identifier: Apache-2.0
"""The table and the page of pictures of the comparison of ways to steer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch.nn import functional

from pyro_tilt.examples.digits.report import mosaic
from pyro_tilt.examples.digits.steering_outcome import Outcome, Target

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROWS, COLUMNS = 2, 18
HEADER = (
    "method",
    "draws",
    "reward",
    "confirmed",
    "corrected reward (ESS)",
    "log Z",
    "KL",
    "ancestors",
    "proposals per step",
    "network rows",
    "training rows",
    "seconds",
    "certificate",
)
NOTES = """\
The budget is network rows of the diffusion; what a value was trained on stands apart. *reward* is
the mean of the draws as they are, weighted where the method weighs them; *corrected reward* is
under the residual weights, with their effective sample size, and aims at the tilt itself. *KL* is
that of the tilt from the base as the method estimates it, and for best-of-n the upper bound of its
own law. *ancestors* counts the initial noises that the draws descend from. The certificate's word
speaks of the target named beside it.
"""


def markdown(found: Mapping[Target, Sequence[Outcome]], rows: int) -> str:
    """
    One table per target.

    :param found: outcomes by target, the reference first.
    :param rows: the budget.
    """
    lines = [f"# Steering the diffusion of digits, {rows:,} network rows each", "", NOTES]
    for target, outcomes in found.items():
        lines += [f"## {target.name}, beta = {target.beta:g} (confirmed: {target.confirms})", ""]
        lines += [_row(HEADER), _row(["---"] * len(HEADER))]
        lines += [_row(_cells(each)) for each in outcomes]
        lines.append("")
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(each: Outcome) -> list[str]:
    corrected = "" if each.corrected is None else _pair(each.corrected)
    if each.corrected_ess is not None:
        corrected += f" ({each.corrected_ess:.0f})"
    kl = "" if each.kl is None else f"{'≤ ' if each.kl_is_bound else ''}{each.kl:.2f}"
    distance = "" if each.estimated_tv is None else f", TV about {each.estimated_tv:.2f}"
    proposals = "" if each.proposals_per_step is None else f"{each.proposals_per_step:.1f}"
    return [
        each.method,
        f"{each.draws:,}",
        _pair(each.reward),
        f"{each.confirmed:.3f}",
        corrected,
        "" if each.log_z is None else _pair(each.log_z, digits=2),
        kl,
        f"{each.ancestors:,}",
        proposals,
        f"{each.network_rows:,}",
        f"{each.setup_rows:,}" if each.setup_rows else "",
        f"{each.seconds:.1f}",
        f"{each.law} ({each.target}{distance})",
    ]


def _pair(pair: tuple[float, float], digits: int = 4) -> str:
    value, error = pair
    return f"{value:.{digits}f} ± {error:.{digits}f}" if error == error else f"{value:.{digits}f}"


def steering_page(found: Mapping[Target, Sequence[Outcome]]) -> Figure:
    """
    Equally weighted draws of every method, a column per target.

    :param found: outcomes by target.
    """
    from matplotlib.figure import Figure

    longest = max(len(outcomes) for outcomes in found.values())
    height = 1.3 * longest + 0.5
    figure = Figure(figsize=(7.4 * len(found), height), dpi=100)
    grid = figure.subplots(longest, len(found), squeeze=False)
    top = 1.0 - 0.62 / height
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.01, top=top, hspace=0.3, wspace=0.03)
    for number, (column, (target, outcomes)) in enumerate(zip(grid.T, found.items())):
        for ax in column:
            ax.axis("off")
        for ax, each in zip(column, outcomes):
            show(ax, each)
        place = (number + 0.5) / len(found)
        figure.text(
            place, 0.995, f"{target.name}, beta = {target.beta:g}", ha="center", va="top", size=13
        )
    return figure


def show(ax: Axes, each: Outcome) -> None:
    """
    Some draws of one method.

    :param ax: where to draw.
    :param each: the outcome.
    """
    page = functional.pad(mosaic(each.images, ROWS, COLUMNS), (1, 1, 1, 1))
    ax.imshow(page.numpy(), cmap="gray_r", vmin=0.0, vmax=1.0, interpolation="nearest")
    ax.axis("off")
    ax.set_title(
        f"{each.method} ({each.law}): reward {each.reward[0]:.3f}, "
        f"{each.ancestors:,} ancestors of {each.draws:,} draws",
        fontsize=9,
    )
