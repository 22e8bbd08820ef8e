# SPDX-License-Identifier: Apache-2.0
"""A plan as a table, for terminals and for notebooks."""

from __future__ import annotations

import textwrap
from html import escape
from typing import TYPE_CHECKING

from pyro_tilt.tractability.entry import Entry

if TYPE_CHECKING:
    from pyro_tilt.tractability.result import Plan

__all__ = ["plan_html", "plan_text"]

HEADINGS = ("primitive", "law", "acceptance", "cost per draw", "why, or why not")
WIDTH, REASON = 100, 42


def plan_text(plan: Plan) -> str:
    """
    The plan in lines of about a hundred characters.

    :param plan: the plan.
    """
    rows = [_cells(entry) for entry in plan.entries]
    widths = [max(len(row[i]) for row in [HEADINGS, *rows]) for i in range(4)]
    room = max(REASON, WIDTH - sum(widths) - 2 * 4 - 3)
    lines = [*textwrap.wrap(f"plan: {plan.problem}", WIDTH, subsequent_indent="      "), ""]
    lines += _row(HEADINGS, widths, room, " ")
    lines.append("   " + "  ".join("-" * width for width in [*widths, room]))
    for entry, row in zip(plan.entries, rows):
        lines += _row(row, widths, room, ">" if entry is plan.choice else " ")
    lines.append("")
    for text in _notes(plan):
        lines += textwrap.wrap(text, WIDTH, subsequent_indent="  ")
    return "\n".join(lines)


def plan_html(plan: Plan) -> str:
    """
    The plan as an HTML table.

    :param plan: the plan.
    """
    head = "".join(f"<th style='text-align:left'>{escape(text)}</th>" for text in HEADINGS)
    rows = []
    for entry in plan.entries:
        style = "font-weight:bold" if entry is plan.choice else ""
        style += "" if entry.applicable else "opacity:0.55"
        cells = "".join(f"<td style='text-align:left'>{escape(c)}</td>" for c in _cells(entry))
        rows.append(f"<tr style='{style}'>{cells}</tr>")
    notes = "".join(f"<p>{escape(text)}</p>" for text in _notes(plan))
    return (
        f"<p>{escape(f'plan: {plan.problem}')}</p><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table>{notes}"
    )


def _cells(entry: Entry) -> tuple[str, ...]:
    reason = entry.reason + (f" [{entry.source}]" if entry.source else "")
    if not entry.applicable:
        return entry.name, "-", "-", "-", reason
    cost = "-" if entry.cost is None else _count(entry.cost, entry.cost_unit)
    return entry.name, str(entry.law), _acceptance(entry), cost, reason


def _acceptance(entry: Entry) -> str:
    if entry.acceptance is None:
        return "-"
    error = entry.acceptance_error
    spread = "" if not error or error != error else f" ± {error:.1g}"
    return f"{entry.acceptance:.3g}{spread}{'' if entry.trusted else ' (?)'}"


def _count(value: float, unit: str) -> str:
    number = f"{value:.0f}" if 10.0 <= value < 1e5 else f"{value:.3g}"
    return f"{number} {unit.removesuffix('s') if number == '1' else unit}"


def _row(cells: tuple[str, ...], widths: list[int], room: int, mark: str) -> list[str]:
    *short, reason = cells
    lines = []
    for i, part in enumerate(textwrap.wrap(reason, room) or [""]):
        columns = short if i == 0 else [""] * len(short)
        shown = "  ".join(text.ljust(width) for text, width in zip(columns, widths))
        lines.append(f" {mark if i == 0 else ' '} {shown}  {part}".rstrip())
    return lines


def _notes(plan: Plan) -> list[str]:
    notes = []
    if plan.choice is None:
        notes.append(
            f"Nothing is picked: {plan.why_none} run(method=...) takes one of them all the same."
        )
    else:
        choice = plan.choice
        weak = ""
        if choice.law == "search":
            weak = ", which certifies nothing"
        elif choice.law == "consistent" and plan.hardness:
            weak = ", a weaker certificate than a bound or an exact law"
        notes.append(f"Picked: {choice.name}; law {choice.law}{weak}; target: {choice.target}.")
    notes += [f"Hard in general: {hard}." for hard in plan.hardness]
    if plan.advice:
        notes.append(plan.advice)
    return notes
