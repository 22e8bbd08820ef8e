# SPDX-License-Identifier: Apache-2.0
"""What a program must keep to that runs over many particles at once, and when to say so."""

from __future__ import annotations

import dis
from types import TracebackType

RULES = (
    "A program that runs over many particles at once must keep the leftmost (particle) axis: no "
    ".item(), 'if' or .mean() over sampled values, index from the right (x[..., 0], dim=-1), and "
    "declare independent dims with pyro.plate or .to_event(). Otherwise pass vectorized=False."
)

_LIBRARIES = ("torch", "pyro", "pyro_tilt")
# Code of these is the user's, wherever it lies.
_PROGRAMS = ("pyro_tilt.examples", "pyro_tilt.testing")


def note_rules(error: Exception, before: str = "") -> None:
    """
    Adds :data:`RULES` to an error that may come of breaking them.

    An operation on tensors of shapes that do not fit breaks off in the libraries, or in their
    compiled part at a line of the program. An error that a program, a reward or another package
    raises by a statement, or that has a type of its own, says what it is itself.

    :param error: the error, with its traceback.
    :param before: put in front.

    >>> error = RuntimeError("broken")
    >>> note_rules(error, "(step 2) ")
    >>> error.__notes__[0][:30]
    '(step 2) A program that runs o'
    """
    home = type(error).__module__
    if home != "builtins" and not _is_library(home):
        return
    if not _stated_elsewhere(error.__traceback__):
        error.add_note(before + RULES)


def _is_library(module: str) -> bool:
    inside = any(module == name or module.startswith(f"{name}.") for name in _LIBRARIES)
    return inside and not module.startswith(_PROGRAMS)


def _stated_elsewhere(traceback: TracebackType | None) -> bool:
    """Whether the innermost frame is a raise statement outside of the libraries."""
    if traceback is None:
        return False
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    if _is_library(str(traceback.tb_frame.f_globals.get("__name__", ""))):
        return False
    # A frame that an operation broke off ends in a call or an operator, not in a raise.
    code = traceback.tb_frame.f_code.co_code
    return dis.opname[code[traceback.tb_lasti]] in ("RAISE_VARARGS", "RERAISE")
