# SPDX-License-Identifier: Apache-2.0
"""What the command writes and prints after a run."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

import typer

from pyro_tilt.cli.failing import USAGE, fail

if TYPE_CHECKING:
    from pyro_tilt.infer import WeightedSamples

__all__ = ["make_folder", "write_result", "write_texts"]


def make_folder(out: Path) -> None:
    """
    The folder, or a message why it cannot be made or written to.

    :param out: where.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=out):
            pass
    except OSError as error:
        what = "written to" if out.is_dir() else "made"
        fail(f"--out {out} cannot be {what}: {error.strerror}", USAGE)


def write_result(result: WeightedSamples, out: Path) -> None:
    """
    Writes draws, health page and summary, and prints the summary.

    :param result: of the run.
    :param out: an existing folder.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from pyro_tilt import diagnostics

    summary = diagnostics.summary(result)
    typer.echo(str(summary))
    result.save(out / "samples.nc", arviz=True)
    (out / "summary.json").write_text(
        json.dumps(summary.to_dict(), indent=2, allow_nan=False) + "\n"
    )
    figure = diagnostics.plot_health(result)
    figure.savefig(out / "health.png", dpi=120)
    plt.close(figure)
    typer.echo(f"wrote {out / 'samples.nc'}, {out / 'health.png'}, {out / 'summary.json'}")


def write_texts(result: WeightedSamples, program: Any, out: Path, show: int) -> None:
    """
    Prints the texts of most weight, and writes all draws with their rewards and weights.

    :param result: of the run.
    :param program: with a method ``decode``.
    :param out: an existing folder.
    :param show: how many to print.
    """
    site = getattr(program, "site", "tokens")
    tokens = result.samples[site]
    weights, texts = result.get_normalized_weights().tolist(), program.decode(tokens)
    rewards = result.stats["reward"].tolist() if "reward" in result.stats else [None] * len(texts)
    rows = list(zip(rewards, weights, texts))
    with (out / "texts.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["reward", "weight", "text"])
        writer.writerows(rows)
    _show_texts(rows, show)
    finished = result.samples.get(f"{site}_finished")
    if finished is not None and not bool(finished.all()):
        cut = int((~finished).sum())
        typer.echo(f"{cut} of {len(rows)} sequences were cut at the limit, without a stop token")
    typer.echo(f"wrote {out / 'texts.csv'}")


def _show_texts(rows: list[tuple[float | None, float, str]], show: int) -> None:
    shared: dict[str, tuple[float | None, float]] = {}
    for reward, weight, text in rows:
        shared[text] = reward, weight + shared.get(text, (None, 0.0))[1]
    best = sorted(shared.items(), key=lambda item: (-item[1][1], -(item[1][0] or 0.0)))[:show]
    if best:
        typer.echo(f"{'reward':>10} {'weight':>8}  text ({len(shared)} different ones)")
    for text, (reward, weight) in best:
        typer.echo(f"{'' if reward is None else f'{reward:.4g}':>10} {weight:8.4f}  {text}")
