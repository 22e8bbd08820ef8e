# SPDX-License-Identifier: Apache-2.0
"""Rebuilds each executed notebook from the percent script beside it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import jupytext
from nbclient import NotebookClient

FOLDER = Path(__file__).parent


def scripts() -> list[Path]:
    """The tutorials' sources, in reading order."""
    return sorted(FOLDER.glob("[0-9][0-9]_*.py"))


def build(script: Path) -> Path:
    """Runs one script as a notebook and writes it with its outputs."""
    notebook = jupytext.read(script)
    notebook.metadata["kernelspec"] = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    NotebookClient(
        notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(FOLDER)}}
    ).execute()
    for place, cell in enumerate(notebook.cells):
        cell.metadata.pop("execution", None)
        # Random names would make every build look new.
        cell["id"] = f"cell-{place}"
    target = script.with_suffix(".ipynb")
    jupytext.write(notebook, target)
    return target


def main() -> None:
    # tqdm asks for Jupyter widgets and would print a path of this machine into the outputs.
    os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"
    # A backend that is set outside, as the Makefile sets one, would leave the pictures out.
    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
    wanted = sys.argv[1:]
    for script in scripts():
        if not wanted or any(word in script.name for word in wanted):
            print(build(script).name, flush=True)


if __name__ == "__main__":
    main()
