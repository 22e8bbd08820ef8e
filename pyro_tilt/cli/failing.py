# SPDX-License-Identifier: Apache-2.0
"""How the command ends where it cannot go on."""

from __future__ import annotations

from typing import Any

import typer

__all__ = ["FAILED", "USAGE", "fail"]

# Exit codes, after the shell's custom: 2 for a wrong command line, 1 for a run that failed.
USAGE, FAILED = 2, 1


def fail(message: str, code: int) -> Any:
    """
    Prints a message and ends the command.

    :param message: says what to change.
    :param code: of the exit.
    """
    typer.echo(f"pyro-tilt: {message}", err=True)
    raise typer.Exit(code)
