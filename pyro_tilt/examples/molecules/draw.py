# SPDX-License-Identifier: Apache-2.0
"""Pictures of written molecules."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pyro_tilt.examples.extras import require
from pyro_tilt.examples.molecules.data import quiet
from pyro_tilt.examples.molecules.reward import is_valid, qed

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_molecule", "draw_molecules", "drug_likeness_caption", "molecule_image"]

_WIDE, _HIGH, _CAPTION, _HEADING, _DOTS = 2.1, 1.5, 0.24, 0.3, 200
"""Inches of a molecule, of its caption and of a group's heading; dots per inch of a picture."""
_CHARACTERS = 26
"""Width of the text that stands where there is no molecule to draw."""


def drug_likeness_caption(string: str) -> str:
    """
    What is written below a molecule by default: its drug-likeness.

    :param string: a SMILES string.

    >>> drug_likeness_caption("CC(=O)Oc1ccccc1C(=O)O")
    'QED 0.55'
    >>> drug_likeness_caption("C1CC")
    'no molecule'
    """
    return f"QED {qed(string):.2f}" if is_valid(string) else "no molecule"


def molecule_image(string: str, *, width: int = 420, height: int = 300) -> np.ndarray:
    """
    The structural formula of a molecule, drawn by rdkit without a display.

    :param string: a SMILES string.
    :param width: in pixels.
    :param height: in pixels.
    :returns: shape ``(height, width, channels)``, values in [0, 1].
    :raises ImportError: where rdkit is not installed, naming the extra.
    :raises ValueError: for a string that is no molecule.

    >>> molecule_image("CCO").shape[:2]
    (300, 420)
    """
    chem = require("rdkit.Chem", extra="language")
    drawing = require("rdkit.Chem.Draw.rdMolDraw2D", extra="language")
    import matplotlib.image

    with quiet():
        molecule = chem.MolFromSmiles(string) if string else None
        if molecule is None:
            raise ValueError(f"rdkit reads no molecule from {string!r}")
        canvas = drawing.MolDraw2DCairo(width, height)
        options = canvas.drawOptions()
        # Small molecules keep a common bond length, and no drawing touches its edge.
        options.fixedBondLength = width / 11
        options.padding = 0.06
        options.bondLineWidth = max(1, width // 200)
        drawing.PrepareAndDrawMolecule(canvas, molecule)
        canvas.FinishDrawing()
    image: np.ndarray = matplotlib.image.imread(io.BytesIO(canvas.GetDrawingText()), format="png")
    return image


def draw_molecule(string: str, *, ax: Axes, caption: str | None = None) -> Axes:
    """
    Draws one molecule on axes; a string that is none is shown as text.

    :param string: a SMILES string.
    :param ax: the axes.
    :param caption: below it; by default :func:`drug_likeness_caption`.
    :returns: the axes.
    :raises ImportError: where rdkit is not installed, naming the extra.
    """
    ax.set_axis_off()
    if is_valid(string):
        ax.imshow(molecule_image(string), interpolation="antialiased")
    else:
        shown = "\n".join(textwrap.wrap(string, _CHARACTERS)) or "(nothing written)"
        ax.text(
            0.5,
            0.5,
            shown,
            transform=ax.transAxes,
            ha="center",
            va="center",
            family="monospace",
            fontsize=6.5,
            color="#D55E00",
        )
    below = drug_likeness_caption(string) if caption is None else caption
    ax.set_title(below, fontsize=9, y=-0.16, va="baseline")
    return ax


def draw_molecules(
    strings: Sequence[str] | Mapping[str, Sequence[str]],
    *,
    columns: int = 6,
    caption: Callable[[str], str] = drug_likeness_caption,
) -> Figure:
    """
    Draws molecules in a grid, each with a caption below it.

    Strings that are no molecules are shown as text, so that a grid of draws hides nothing.

    :param strings: SMILES strings, or a mapping of headings to them; every heading begins a row.
    :param columns: most molecules in a row.
    :param caption: from a string to what is written below it.
    :returns: the figure, which pyplot knows, so that a notebook shows it and a script can save it.
    :raises ImportError: where rdkit is not installed, naming the extra.
    :raises ValueError: where there is nothing to draw.

    >>> figure = draw_molecules({"ordered": ["CCO", "c1ccccc1"], "spoiled": ["C1CC"]}, columns=2)
    >>> [ax.get_title() for ax in figure.axes if ax.get_title()]
    ['QED 0.41', 'QED 0.44', 'no molecule']
    >>> import matplotlib.pyplot as plt; plt.close(figure)
    """
    import matplotlib.pyplot as plt

    groups: dict[str, Sequence[str]] = (
        dict(strings) if isinstance(strings, Mapping) else {"": strings}
    )
    if columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}")
    if isinstance(strings, str) or not any(len(group) for group in groups.values()):
        raise ValueError(f"strings must be one or more SMILES strings in a list; got {strings!r}")
    columns = min(columns, max(map(len, groups.values())))
    heights = [_high(heading, len(group), columns) for heading, group in groups.items()]
    figure = plt.figure(figsize=(_WIDE * columns, sum(heights)), dpi=_DOTS / 2)
    top = sum(heights)
    for (heading, group), height in zip(groups.items(), heights):
        _group(figure, heading, group, caption, top=top, columns=columns)
        top -= height
    return figure


def _high(heading: str, count: int, columns: int) -> float:
    rows = math.ceil(count / columns)
    return rows * (_HIGH + _CAPTION) + (_HEADING if heading else 0.0)


def _group(
    figure: Figure,
    heading: str,
    strings: Sequence[str],
    caption: Callable[[str], str],
    *,
    top: float,
    columns: int,
) -> None:
    """Draws the molecules of one heading, from ``top`` inches down."""
    width, height = figure.get_size_inches()
    style: dict[str, Any] = {"fontsize": 10, "fontweight": "bold", "va": "top"}
    if heading:
        figure.text(0.06 / width, (top - 0.08) / height, heading, **style)
        top -= _HEADING
    for i, string in enumerate(strings):
        row, column = divmod(i, columns)
        bottom = top - (row + 1) * (_HIGH + _CAPTION) + _CAPTION
        box = (column * _WIDE / width, bottom / height, _WIDE / width, _HIGH / height)
        draw_molecule(string, ax=figure.add_axes(box), caption=caption(string))
