# SPDX-License-Identifier: Apache-2.0
"""Pictures and numbers of an alignment of digits."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROWS, COLUMNS = 8, 10


def mean_and_error(values: Tensor) -> dict[str, float]:
    """
    The mean of independent values and its standard error.

    :param values: shape ``(n,)``.

    >>> mean_and_error(torch.tensor([1.0, 3.0]))
    {'mean': 2.0, 'error': 1.0}
    """
    values = values.double()
    error = values.std().item() / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return {"mean": values.mean().item(), "error": error}


@torch.no_grad()
def second_opinion(classifier: nn.Module, images: Tensor, digit: int) -> dict[str, Any]:
    """
    What a classifier that took no part in the alignment reads in images.

    :param classifier: returns log probabilities of the ten digits.
    :param images: independent draws, shape ``(n, 1, 8, 8)``.
    :param digit: the digit that the images should read as.
    :returns: the digit's mean ``probability`` and ``log_probability``, and the share of images
        ``read_as`` the digit, each with a standard error.
    """
    log_probs = classifier(images)
    return {
        "probability": mean_and_error(log_probs[:, digit].exp()),
        "log_probability": mean_and_error(log_probs[:, digit]),
        "read_as": mean_and_error((log_probs.argmax(-1) == digit).double()),
        "images": len(images),
    }


def mosaic(images: Tensor, rows: int = ROWS, columns: int = COLUMNS) -> Tensor:
    """
    Images side by side with white gaps, as one picture of ink from 0 to 1.

    :param images: shape ``(n, 1, 8, 8)``; the first ``rows * columns`` are used and missing
        ones stay white.
    :param rows: rows of the picture.
    :param columns: columns of the picture.
    :returns: shape ``(rows * 10 - 2, columns * 10 - 2)``.

    >>> mosaic(torch.ones(6, 1, 8, 8), rows=2, columns=3).shape
    torch.Size([18, 28])
    """
    page = torch.zeros(rows * 10, columns * 10)
    for place, image in enumerate(images[: rows * columns].cpu()):
        row, column = divmod(place, columns)
        ink = (image[0].float() + 1) / 2
        page[row * 10 : row * 10 + 8, column * 10 : column * 10 + 8] = ink.clamp(0.0, 1.0)
    return page[:-2, :-2]


def gallery(
    base: Tensor, aligned: Tensor, *, title: str, base_title: str, aligned_title: str
) -> Figure:
    """
    A page of base digits beside aligned digits.

    :param base: draws of the base, shape ``(n, 1, 8, 8)``.
    :param aligned: draws of the aligned law, same shape.
    :param title: over the page.
    :param base_title: over the base digits.
    :param aligned_title: over the aligned digits.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12.5, 5.6), dpi=120)
    left, right = figure.subplots(1, 2)
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.015, top=0.86, wspace=0.04)
    _show(left, base, base_title)
    _show(right, aligned, aligned_title)
    figure.suptitle(title, fontsize=15, y=0.975)
    return figure


def _show(ax: Axes, images: Tensor, title: str) -> None:
    page = torch.nn.functional.pad(mosaic(images), (2, 2, 2, 2))
    ax.imshow(page.numpy(), cmap="gray_r", vmin=0.0, vmax=1.0, interpolation="nearest")
    ax.set_title(title, fontsize=12)
    ax.set(xticks=[], yticks=[])
    for spine in ax.spines.values():
        spine.set_color("0.8")


def save_summary(path: Path, facts: dict[str, Any]) -> None:
    """
    Writes JSON, with null where a number is not finite.

    :param path: the file.
    :param facts: nested dictionaries of plain values.
    """
    path.write_text(json.dumps(_finite(facts), indent=2, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
