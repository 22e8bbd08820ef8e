# SPDX-License-Identifier: Apache-2.0
"""How the command ends where it cannot go on."""

from __future__ import annotations

import sysconfig
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

__all__ = ["FAILED", "USAGE", "fail", "running"]

# Exit codes, after the shell's custom: 2 for a wrong command line, 1 for a run that failed.
USAGE, FAILED = 2, 1
_OURS = str(Path(__file__).resolve().parent.parent)
_TRACE_SHAPES = "\nTrace Shapes:"
"""From here on Pyro adds the sites seen so far to a message."""


def fail(message: str, code: int) -> Any:
    """
    Prints a message and ends the command.

    :param message: says what to change.
    :param code: of the exit.
    """
    typer.echo(f"pyro-tilt: {message}", err=True)
    raise typer.Exit(code)


@contextmanager
def running() -> Iterator[None]:
    """
    Ends the command with a message where the work inside raises, and prints warnings plainly.

    A message names the line of the user's file that it comes from. An error that passed through no
    such line is a fault of this package unless it is one of those that samplers raise on purpose,
    and keeps its traceback.
    """
    from pyro_tilt.infer import SamplerWarning

    plain = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *rest: Any, **named: Any) -> None:
        if issubclass(category, SamplerWarning):
            typer.echo(f"pyro-tilt: warning: {message}", err=True)
        else:
            plain(message, category, *rest, **named)

    with warnings.catch_warnings():
        warnings.showwarning = show
        try:
            yield
        except typer.Exit:
            raise
        except Exception as error:
            place, meant = _place(error), isinstance(error, ValueError | TypeError)
            if not (place or meant or isinstance(error, NotImplementedError)):
                raise
            text = str(error).split(_TRACE_SHAPES)[0].rstrip()
            kind = "" if meant and text else f"{type(error).__name__}: "
            fail(f"{place}{kind}{text}".removesuffix(": "), FAILED)


def _place(error: BaseException) -> str:
    """The innermost line outside of installed packages that this package called, or nothing."""
    installed = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib")]
    found, called = "", False
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename.startswith(_OURS):
            called = True
        elif called and not frame.filename.startswith(("<", *installed)):
            found = f"{Path(frame.filename).name}, line {frame.lineno}, in {frame.name}: "
    return found
