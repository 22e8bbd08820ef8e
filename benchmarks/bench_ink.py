# SPDX-License-Identifier: Apache-2.0
"""More ink on the diffusion of digits: linear tilt, importance sampling, steering by SMC."""

from __future__ import annotations

from pathlib import Path

from benchmarks.harness import Row
from pyro_tilt.examples.digits import load_classifier, load_denoiser
from pyro_tilt.examples.digits.ink_tilt import InkRow, InkSettings, compare_ink, ink_page

SETTINGS = InkSettings()
TITLE = f"More ink on the diffusion of digits at {SETTINGS.rows:,} network rows each"
FIGURE = Path(__file__).parent / "figures" / "ink.png"


def described(row: InkRow) -> Row:
    each = row.outcome
    z = "" if row.z_max is None else f"; z up to {row.z_max:.1f}"
    kl = "; no KL" if row.kl is None else f"; KL {row.kl:.2f}"
    return Row(
        f"{each.method}: mean ink, gain in base deviations, effective draws",
        f"{each.reward[0]:.4f} ± {each.reward[1]:.4f}; {row.gain:+.2f}; {row.ess:.0f} of "
        f"{each.draws:,} ({row.ess_of}){z}{kl}; still a digit {each.confirmed:.2f}; "
        f"{each.network_rows:,} rows, {each.seconds:.1f} s; certificate {each.law}",
        "-",
        True,
    )


def run() -> list[Row]:
    base, rows = compare_ink(load_denoiser(), load_classifier("b"), SETTINGS)
    FIGURE.parent.mkdir(exist_ok=True)
    ink_page(base, rows[1:]).savefig(FIGURE)
    off = max(abs(row.outcome.network_rows / SETTINGS.rows - 1.0) for row in rows[1:])
    return [
        *(described(row) for row in rows),
        Row(
            "largest departure of a method's network rows from the budget",
            f"{off:.1%}",
            "10 %",
            off <= 0.1,
        ),
    ]
