# SPDX-License-Identifier: Apache-2.0
"""The table that a summary prints."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator
from typing import Any

from pyro_tilt.diagnostics.site_rows import site_rows
from pyro_tilt.infer.certificate import Certificate

WIDTH = 92
_LABEL = 15


def render(numbers: dict[str, Any], warnings: list[str], verdict: str) -> str:
    """
    The numbers of a summary as an aligned table.

    :param numbers: the entries of :class:`~pyro_tilt.diagnostics.summary.Summary`.
    :param warnings: the sentences under the table.
    :param verdict: the last line.
    """
    lines = [headline(numbers), "-" * WIDTH]
    for label, text in [*_certificate_entries(numbers["certificate"]), *_entries(numbers)]:
        lines += _row(label, text, WIDTH)
    rows = site_rows(numbers["sites"])
    lines += rows
    if rows and numbers.get("smoothed"):
        lines.append("(means and spreads under the smoothed weights, all else under the raw ones)")
    lines.append("-" * WIDTH)
    for warning in warnings:
        lines += textwrap.wrap(warning, WIDTH, initial_indent="! ", subsequent_indent="  ")
    lines.append(f"verdict: {verdict}")
    return "\n".join(lines)


def headline(numbers: dict[str, Any]) -> str:
    """
    Sampler, draws and runs in one line.

    :param numbers: the entries of a summary.
    """
    kind = {"chain": "chained", "transport": "transported"}.get(numbers["kind"], numbers["kind"])
    draws = "draw" if numbers["draws"] == 1 else "draws"
    return f"{numbers['sampler']}: {numbers['draws']:,} {kind} {draws}{_runs(numbers['chains'])}"


def key_lines(numbers: dict[str, Any], width: int) -> list[str]:
    """
    The table without certificate, sites and warnings.

    :param numbers: the entries of a summary.
    :param width: of the lines.
    """
    return [line for label, text in _entries(numbers) for line in _row(label, text, width)]


def plus_minus(value: float | None, error: float | None) -> str:
    """
    A number with its error, both to the error's second digit.

    :param value: the number, or None.
    :param error: its standard error; None or nan where unknown.

    >>> plus_minus(1.23456, 0.0123)
    '1.235 ± 0.012'
    >>> plus_minus(1.23456, None)
    '1.235'
    """
    if value is None or math.isnan(value):
        return "unknown"
    value += 0.0  # minus zero becomes zero
    if error is None or not math.isfinite(error) or not math.isfinite(value):
        return f"{value:.4g}"
    if error == 0.0:
        return f"{value:.6g} ± 0"
    digits = min(max(0, 1 - math.floor(math.log10(error))), 12)
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def kl_text(kl: dict[str, Any]) -> str:
    """
    A divergence in nats, with its error where it is no bound.

    :param kl: its ``value``, ``error`` and ``kind``.

    >>> kl_text({"value": 1.5, "error": 0.0, "kind": "bound"})
    'at most 1.5 nats'
    """
    if kl["kind"] == "bound":
        return f"at most {kl['value']:.3g} nats"
    return f"{plus_minus(kl['value'], kl['error'])} nats"


def _runs(sizes: list[int]) -> str:
    if len(sizes) < 2:
        return ""
    if len(set(sizes)) == 1:
        return f" in {len(sizes)} runs of {sizes[0]:,}"
    return f" in {len(sizes)} runs of {min(sizes):,} to {max(sizes):,}"


def _entries(numbers: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "log evidence", _evidence_text(numbers["log_evidence"])
    ess = numbers["ess"]
    share = "" if ess["fraction"] is None else f" ({ess['fraction']:.1%})"
    text = f"{ess['value']:,.1f} of {numbers['draws']:,}{share}"
    if numbers["kind"] == "chain":
        text += ", of the weights alone: autocorrelation is not counted"
    yield "ESS", text
    lowest = numbers.get("lowest_ess")
    if lowest is not None:
        share = f"{lowest['value']:,.1f} of {lowest['particles']:,}, at step {lowest['step']}"
        yield "lowest ESS", share
    tail = numbers["pareto_k"]
    if tail is not None:
        value = tail["reason"] if tail["value"] is None else f"{tail['value']:.2f}"
        yield "k-hat", f"{value}, threshold {tail['threshold']:.2f}: {tail['verdict']}"
    if numbers["acceptance"] is not None:
        label = "proposals" if numbers["acceptance"]["rate"] is None else "acceptance"
        yield label, _acceptance_text(numbers["acceptance"])
    if numbers["clipping"] is not None:
        yield "clipped mass", _clipping_text(numbers["clipping"])
    if numbers["capped"] is not None:
        yield "capped draws", f"{numbers['capped']:,}"
    for name, mass in (numbers.get("unfinished") or {}).items():
        yield "cut off", f"{mass:.1%} of the mass ({name} is False)"
    if numbers["reward"] is not None:
        yield "reward", _reward_text(numbers["reward"])
        gain = numbers["reward"].get("gain", math.nan)
        if math.isfinite(gain):
            yield "reward gain", plus_minus(gain, numbers["reward"]["gain_error"])
    if numbers["kl"] is not None and not math.isnan(numbers["kl"]["value"]):
        yield "KL spent", f"{kl_text(numbers['kl'])} from the base program"
    yield "cost", _cost_text(numbers["cost"])


def _certificate_entries(fields: dict[str, Any]) -> Iterator[tuple[str, str]]:
    bare = Certificate.from_dict({**fields, "covers": "", "excludes": ""})
    yield "law", f"{fields['law']}. {bare}"
    if fields["covers"]:
        yield "  covers", fields["covers"]
    if fields["excludes"]:
        yield "  excludes", fields["excludes"]


def _evidence_text(evidence: dict[str, Any]) -> str:
    if math.isnan(evidence["value"]):
        return "none"
    text = plus_minus(evidence["value"], evidence["error"])
    if evidence["spread"] is not None:
        text += f"; sd over {len(evidence['per_chain'])} runs {evidence['spread']:.2g}"
    return text


def _acceptance_text(acceptance: dict[str, Any]) -> str:
    parts = [] if acceptance["rate"] is None else [f"{acceptance['rate']:.4g}"]
    if acceptance["proposals"] is not None:
        words = " proposals" if parts else ""
        parts.append(f"{acceptance['proposals']:,}{words}")
    return ", ".join(parts)


def _clipping_text(clipping: dict[str, Any]) -> str:
    parts = [] if clipping["mass"] is None else [f"{clipping['mass']:.3g}"]
    if clipping["mass_upper"] is not None:
        parts.append(f"at most {clipping['mass_upper']:.3g}")
    if clipping["baseline"] is not None:
        parts.append(f"above the baseline {clipping['baseline']:.4g}")
    return ", ".join(parts)


def _reward_text(reward: dict[str, Any]) -> str:
    after = plus_minus(reward["after"], reward["after_error"])
    if "before" not in reward:
        return f"{after} (aligned)"
    text = f"{plus_minus(reward['before'], reward['before_error'])} (base) -> {after} (aligned)"
    if reward["before_impossible"]:
        text += f"; {reward['before_impossible']:.1%} of the base at -inf"
    return text


def _cost_text(cost: dict[str, Any]) -> str:
    words = {
        "base_draws": "base draws",
        "reward_calls": "reward calls",
        "value_calls": "value calls",
        "network_rows": "network rows",
    }
    parts = [f"{cost[name]:,} {word}" for name, word in words.items() if cost[name]]
    return ", ".join([*parts, f"{cost['seconds']:.2f} s"])


def _row(label: str, text: str, width: int) -> list[str]:
    return textwrap.wrap(
        text,
        width,
        initial_indent=label.ljust(_LABEL),
        subsequent_indent=" " * _LABEL,
    ) or [label]
