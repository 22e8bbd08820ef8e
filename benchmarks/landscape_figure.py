# SPDX-License-Identifier: Apache-2.0
"""The landscape as one figure: squares by reward, primitive and dimension; the hypercube below."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.patches import Rectangle

BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
KL = ("tilt of the scores", "rejection", "importance", "steered SMC")
MOVE = "transport"


def draw(cells: list[Any], cubes: list[Any], path: Path) -> None:
    """
    Draws the figure.

    :param cells: the squares.
    :param cubes: the partition problem by dimension.
    :param path: where to write it.
    """
    figure = plt.figure(figsize=(12.5, 10.2), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[1.55, 1.0])
    axes = top.subplots(1, 1)
    image = squares(axes, cells)
    bar = top.colorbar(image, ax=axes, shrink=0.8, pad=0.01)
    bar.set_label("measured acceptance, or share of effective draws")
    left, middle, right = bottom.subplots(1, 3)
    costs(left, cells)
    cube_kl(middle, cubes)
    cube_transport(right, cubes)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def squares(ax: Axes, cells: list[Any]) -> Any:
    """One square for each reward, primitive and dimension."""
    labels = list(dict.fromkeys(cell.reward for cell in cells))
    dims = sorted({cell.dim for cell in cells})
    groups = [*KL, MOVE]
    values = np.full((len(labels), len(groups) * len(dims)), np.nan)
    for cell in cells:
        row = labels.index(cell.reward)
        column = groups.index(cell.primitive) * len(dims) + dims.index(cell.dim)
        if cell.state == "run":
            values[row, column] = cell.share
        _write(ax, row, column, cell)
    norm = LogNorm(0.01, 1.0)
    image = ax.imshow(values, cmap="YlGnBu", norm=norm, aspect="auto")
    for i in range(1, len(groups)):
        wide = 4.0 if groups[i] == MOVE else 1.5
        ax.axvline(i * len(dims) - 0.5, color="black", lw=wide)
    ax.set_yticks(range(len(labels)), labels, fontsize=9)
    ax.set_xticks(range(values.shape[1]), [f"d={d}" for _ in groups for d in dims], fontsize=8)
    names = [f"KL: {name}" for name in KL] + ["Wasserstein: transport"]
    for i, name in enumerate(names):
        place = (i + 0.5) * len(dims) - 0.5
        ax.text(place, -0.62, name, ha="center", va="bottom", fontsize=10.5, fontweight="bold")
    ax.set_title(
        "Colour: acceptance. Number: under KL the largest gap between the distribution functions "
        "of draws and exact tilt\n(noise of 1500 draws: about 0.03); under Wasserstein the "
        "certified gap. Red: above 0.1. Hatched: foretold to fail, not run. Blank: not "
        "applicable\n",
        fontsize=9.5,
        loc="left",
        pad=14,
    )
    return image


def _write(ax: Axes, row: int, column: int, cell: Any) -> None:
    if cell.state == "run":
        text = _number(cell.error) if cell.primitive == MOVE else f"{cell.error:.3f}"
        wrong = cell.error > 0.1 and cell.primitive != MOVE
        colour = RED if wrong else "white" if cell.share > 0.2 else "black"
        box = (
            {"facecolor": "white", "edgecolor": RED, "boxstyle": "round,pad=0.2"} if wrong else None
        )
        ax.text(
            column, row, text, ha="center", va="center", fontsize=8.5, color=colour,
            bbox=box,
        )  # fmt: skip
    elif cell.state == "refused":
        box = (column - 0.5, row - 0.5)
        ax.add_patch(Rectangle(box, 1, 1, facecolor="#f2f2f2", edgecolor="0.6", hatch="////", lw=0))


def _number(value: float) -> str:
    if value == 0.0:
        return "0"
    return f"1e{math.ceil(math.log10(value)):d}"


def costs(ax: Axes, cells: list[Any]) -> None:
    """What a draw of the linear tilt costs."""
    style = dict(zip(KL, ((GREEN, "o"), (ORANGE, "s"), (RED, "^"), (BLUE, "D"))))
    for name in KL:
        some = [c for c in cells if c.reward == "linear" and c.primitive == name]
        run = [(c.dim, c.cost) for c in some if c.state == "run"]
        if run:
            colour, mark = style[name]
            ax.loglog(*zip(*run), mark + "-", color=colour, label=name)
    dims = sorted({c.dim for c in cells})
    ax.set_xticks(dims, [str(d) for d in dims])
    ax.minorticks_off()
    ax.set(xlabel="dimension", ylabel="denoiser rows per effective draw")
    ax.set_title("Cost of a linear tilt", fontsize=10.5, loc="left")
    ax.legend(fontsize=8.5, frameon=False)
    _frame(ax)


def cube_kl(ax: Axes, cubes: list[Any]) -> None:
    """The partition problem by tilting."""
    dims = [c.dim for c in cubes]
    ax.semilogy(dims, [c.exact for c in cubes], "-", color=RED, label="rejection, exact")
    known = [c for c in cubes if not math.isnan(c.measured)]
    ax.semilogy(
        [c.dim for c in known], [c.measured for c in known], "o", color=RED, label="measured"
    )
    ax.semilogy(dims, [2.0 ** (1 - d) for d in dims], ":", color="0.4", label=r"$2^{1-d}$")
    ax.set(xlabel="dimension of the hypercube", ylabel="acceptance")
    ax.set_title(
        r"KL: tilting by $-\kappa\langle a, x\rangle^2$ is the partition problem",
        fontsize=10.5,
        loc="left",
    )
    ax.legend(fontsize=8.5, frameon=False)
    _frame(ax)


def cube_transport(ax: Axes, cubes: list[Any]) -> None:
    """The partition problem by transport."""
    dims = [c.dim for c in cubes]
    ax.semilogy(dims, [c.calls for c in cubes], "D-", color=BLUE, label="reward calls per draw")
    left = [max(c.residual, 1e-17) for c in cubes]
    ax.semilogy(
        dims, left, "s--", color=GREEN,
        label=r"largest $|\langle a, T(x)\rangle|$ over $|\langle a, x\rangle|$",
    )  # fmt: skip
    ax.set(xlabel="dimension of the hypercube", ylim=(1e-18, 1e3))
    ax.set_title("Wasserstein: one line of algebra", fontsize=10.5, loc="left")
    ax.text(
        0.5,
        0.62,
        r"$T(x) = x - \dfrac{2\kappa\,\langle a, x\rangle}{\lambda + 2\kappa\,|a|^2}\; a$",
        transform=ax.transAxes,
        ha="center",
        fontsize=12,
    )
    ax.legend(fontsize=8.5, frameon=False, loc="center right", bbox_to_anchor=(1.0, 0.4))
    _frame(ax)


def _frame(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=9)
