# SPDX-License-Identifier: Apache-2.0
"""One page of the comparison: drawn molecules of every method, and reward against divergence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pyro_tilt.diagnostics import FrontierPoint, plot_frontier
from pyro_tilt.examples.extras import require
from pyro_tilt.examples.molecules.compare_outcome import Outcome

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHOWN, PIXELS = 6, 300
# A bound that says nothing would leave no room for the rest.
WIDEST = 20.0


def page(outcomes: Sequence[Outcome], tilts: Sequence[FrontierPoint], title: str) -> Figure:
    """
    A row of molecules for every method over the frontier.

    :param outcomes: one per method.
    :param tilts: the curve to hold them against.
    :param title: over the page.
    """
    from matplotlib.figure import Figure

    rows = len(outcomes)
    height = 1.55 * rows + 5.0
    figure = Figure(figsize=(11.0, height), dpi=100)
    figure.suptitle(title, y=1.0 - 0.15 / height, va="top", fontsize=13)
    top = 1.0 - 0.75 / height
    grid = figure.add_gridspec(
        rows, SHOWN, left=0.01, right=0.99, top=top, bottom=4.6 / height, hspace=0.32, wspace=0.02
    )
    for row, each in enumerate(outcomes):
        axes = [figure.add_subplot(grid[row, column]) for column in range(SHOWN)]
        draw_row(axes, each)
    below = figure.add_gridspec(1, 1, left=0.08, right=0.98, top=4.0 / height, bottom=0.55 / height)
    frontier(figure.add_subplot(below[0, 0]), outcomes, tilts)
    return figure


def draw_row(axes: Sequence[Axes], each: Outcome) -> None:
    """
    Some molecules of one method with their QED.

    :param axes: where to draw, one for each.
    :param each: the method.
    """
    for ax in axes:
        ax.axis("off")
    for ax, (name, score) in zip(axes, each.molecules):
        ax.imshow(picture(name))
        ax.text(0.98, 0.02, f"{score:.2f}", transform=ax.transAxes, ha="right", size=8)
    axes[0].set_title(
        f"{each.method} ({each.law}): QED {each.qed[0]:.3f} ± {each.qed[1]:.3f}, "
        f"valid {each.valid:.0%}, {each.distinct:,} different molecules in {each.draws:,} draws",
        loc="left",
        fontsize=9,
    )


def picture(name: str) -> Any:
    """
    A molecule as rdkit draws it, an image of ``PIXELS`` by about half of that.

    :param name: a SMILES string.
    :raises ImportError: where rdkit is not installed, naming the extra.
    """
    chem, draw = (require(f"rdkit.Chem{part}", extra="language") for part in ("", ".Draw"))
    return draw.MolToImage(chem.MolFromSmiles(name), size=(PIXELS, PIXELS * 6 // 10))


def frontier(ax: Axes, outcomes: Sequence[Outcome], tilts: Sequence[FrontierPoint]) -> None:
    """
    Mean QED against divergence from the model, where that is known.

    :param ax: where to draw.
    :param outcomes: one per method.
    :param tilts: the curve to hold them against.
    """
    points = [point for each in outcomes if (point := each.point()) is not None]
    near = [point for point in points if point.kl.value <= WIDEST]
    plot_frontier([*tilts, *near], ax=ax)
    ax.set_title("mean QED against divergence from the model", loc="left")
    ax.set_ylabel("mean QED of the draws")
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8, frameon=False)
    ax.set_position((0.08, ax.get_position().y0, 0.6, ax.get_position().height))
    missing = [each.method for each in outcomes if each.method not in {p.label for p in near}]
    if missing:
        ax.text(
            1.02,
            0.0,
            "no divergence known, or a bound\nthat says nothing:\n" + "\n".join(missing),
            transform=ax.transAxes,
            fontsize=8,
            va="bottom",
        )
