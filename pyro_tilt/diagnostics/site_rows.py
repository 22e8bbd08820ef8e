# SPDX-License-Identifier: Apache-2.0
"""The sites of a summary as lines: means and spreads, numbered sites and labels in brief."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from typing import Any

_LABEL = 15
_MOST_ROWS = 24
_MOST_OF_A_RUN = 4
"""A longer run of numbered sites shows its first and its last."""

_NUMBERED = re.compile(r"(.*?)(\d+)")

Row = tuple[str, str, str]


def site_rows(sites: dict[str, Any]) -> list[str]:
    """
    Lines of the sites under a headline.

    :param sites: shape, mean and sd by site, and ``discrete`` where the values are labels, whose
        mean would say nothing.

    >>> label = {"shape": [], "mean": 1.5, "sd": 0.5, "discrete": True}
    >>> print("\\n".join(site_rows({f"token_{t}": label for t in range(65)})))
    <BLANKLINE>
    site                   mean          sd
    token_0 ... token_64: 65 discrete sites
    """
    rows = list(itertools.chain.from_iterable(_run(sites, run) for run in _runs(sites)))
    if not rows:
        return []
    widths = [len(row[0]) + 2 for row in rows if isinstance(row, tuple)]
    width = min(max(_LABEL, *widths, 0), 40)
    lines = ["", f"{'site'.ljust(width)}{'mean':>12}{'sd':>12}"]
    lines += [_line(row, width) for row in rows[:_MOST_ROWS]]
    if len(rows) > _MOST_ROWS:
        lines.append(f"... and {len(rows) - _MOST_ROWS} rows more")
    return lines


def _runs(sites: dict[str, Any]) -> list[list[str]]:
    """Names together that differ by a number alone and are alike, in the order of the first."""
    groups: dict[Any, list[str]] = {}
    for name, site in sites.items():
        found = _NUMBERED.fullmatch(name)
        alike = (tuple(site["shape"]), site.get("discrete", False))
        groups.setdefault((found.group(1), alike) if found else name, []).append(name)
    return list(groups.values())


def _run(sites: dict[str, Any], names: list[str]) -> Iterator[Row | str]:
    first, last, count = names[0], names[-1], len(names)
    shape = sites[first]["shape"]
    size = f" ({' x '.join(map(str, shape))})" if shape else ""
    if sites[first].get("discrete"):
        several = f"{first} ... {last}{size}: {count} discrete sites"
        yield several if count > 1 else f"{first}{size}: discrete"
    elif count > _MOST_OF_A_RUN:
        yield from _site(first, sites[first])
        yield f"... {count - 2} sites more"
        yield from _site(last, sites[last])
    else:
        for name in names:
            yield from _site(name, sites[name])


def _site(name: str, site: dict[str, Any]) -> Iterator[Row]:
    shape = site["shape"]
    if site["mean"] is None:
        yield f"{name} ({' x '.join(map(str, shape))})", "not listed", ""
        return
    for index in itertools.product(*(range(size) for size in shape)):
        mean, sd = site["mean"], site["sd"]
        for i in index:
            mean, sd = mean[i], sd[i]
        label = name if not shape else f"{name}[{', '.join(map(str, index))}]"
        yield label, f"{mean:.4g}", "unknown" if math.isnan(sd) else f"{sd:.4g}"


def _line(row: Row | str, width: int) -> str:
    if isinstance(row, str):
        return row
    label, mean, sd = row
    return f"{_short(label, width)}{mean:>12}{sd:>12}"


def _short(label: str, width: int) -> str:
    return (label if len(label) < width else label[: width - 4] + "...").ljust(width)
