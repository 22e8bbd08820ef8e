# SPDX-License-Identifier: Apache-2.0
"""The table of the comparison of ways to align the molecules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pyro_tilt.examples.molecules.compare_methods import CompareSettings
from pyro_tilt.examples.molecules.compare_outcome import Outcome

HEADER = (
    "method",
    "draws",
    "QED",
    "QED, corrected (ESS)",
    "valid",
    "distinct",
    "KL from the base",
    "target rows",
    "draft rows",
    "training rows",
    "seconds",
    "certificate",
)
NOTES = """\
The budget is rows of the target network, one per character that it reads; what values were learned
from stands apart. *QED* is the mean of the draws as they are, by weight where they have weights;
*corrected* is under the weights that aim at the tilt itself, with their effective sample size.
*distinct* counts different molecules among as many equally weighted draws. The certificate's word
speaks of the target named beside it. How each *KL* was found stands below.

Values learned from so few molecules err by some tenths of a nat at every character. SMC weighs what
they get wrong, and resamples by what is left. LCB by steps and GSI by blocks draw from what the
values say, so that errors of thirty characters add up: the divergence that they spend buys little
reward, and only the corrected mean of LCB speaks of the tilt.
"""


def markdown(
    outcomes: Sequence[Outcome], settings: CompareSettings, base: Mapping[str, float]
) -> str:
    """
    The table, and how each divergence was found.

    :param outcomes: one per method.
    :param settings: what was compared.
    :param base: numbers of the model alone.
    """
    title = f"# Molecules to order, beta = {settings.beta:g}, {settings.budget_rows:,} target rows"
    alone = f"The model alone: QED {base['qed']:.3f}, valid {base['valid']:.3f}."
    lines = [title, "", NOTES, alone, "", _row(HEADER), _row(["---"] * len(HEADER))]
    lines += [_row(_cells(each)) for each in outcomes]
    lines += ["", "KL: " + "; ".join(f"{o.method}: {o.kl.how}" for o in outcomes) + "."]
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cells(each: Outcome) -> list[str]:
    corrected = ""
    if each.corrected is not None and each.ess is not None:
        corrected = f"{_pair(each.corrected)} ({each.ess:.0f})"
    elif each.ess is not None:
        corrected = f"({each.ess:.0f})"
    return [
        each.method,
        f"{each.draws:,}",
        _pair(each.qed),
        corrected,
        f"{each.valid:.3f}",
        f"{each.distinct:,}",
        _spent(each),
        f"{each.target_rows:,}",
        f"{each.draft_rows:,}" if each.draft_rows else "",
        f"{each.training_rows:,}" if each.training_rows else "",
        f"{each.seconds:.1f}",
        f"{each.law} ({each.target})",
    ]


def _spent(each: Outcome) -> str:
    kl = each.kl
    if kl.value is None:
        return ""
    value = _pair((kl.value, kl.error), digits=2)
    return f"≤ {value}" if kl.kind == "bound" else value


def _pair(pair: tuple[float, float], digits: int = 3) -> str:
    value, error = pair
    return f"{value:.{digits}f} ± {error:.{digits}f}" if error == error else f"{value:.{digits}f}"
