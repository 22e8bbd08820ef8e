# SPDX-License-Identifier: Apache-2.0
"""Aligns molecules to drug-likeness in several ways at equal rows of one network."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pyro_tilt.diagnostics import FrontierPoint
from pyro_tilt.examples.molecules.compare_kl import tilts
from pyro_tilt.examples.molecules.compare_methods import (
    CompareSettings,
    Method,
    take_yardstick,
    train_value,
)
from pyro_tilt.examples.molecules.compare_outcome import Outcome, describe
from pyro_tilt.examples.molecules.compare_page import page
from pyro_tilt.examples.molecules.compare_table import markdown
from pyro_tilt.examples.molecules.compare_ways import Ways
from pyro_tilt.examples.molecules.model import load_molecule_model
from pyro_tilt.examples.molecules.reward import drug_likeness
from pyro_tilt.infer import Sampler, SamplerWarning, WeightedSamples, merge
from pyro_tilt.infer.seeding import derive_seed

# Of the budget, what a first run may spend; a second one spends the rest at the price it showed.
FIRST = 0.7
# Of beta, for the curve of tilts.
SHARES = (0.0, 0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0)


@dataclass
class Comparison:
    """
    What :func:`compare` found.

    :ivar settings: what was asked for.
    :ivar outcomes: one per method, in the order of the table.
    :ivar base: mean QED, share of valid molecules and characters of a molecule, of the model alone.
    :ivar tilts: the best that any law can do, at several betas, by weights of base draws.
    :ivar results: what the samplers returned, by method.
    :ivar seconds: of all, training included.
    """

    settings: CompareSettings
    outcomes: list[Outcome]
    base: dict[str, float]
    tilts: list[FrontierPoint] = field(default_factory=list)
    results: dict[str, WeightedSamples] = field(default_factory=dict, repr=False)
    seconds: float = 0.0

    def __getitem__(self, method: str) -> Outcome:
        for each in self.outcomes:
            if each.method == method:
                return each
        raise KeyError(f"no method {method!r}; there are {[o.method for o in self.outcomes]}")

    def table(self) -> str:
        """The outcomes as a table in Markdown."""
        return markdown(self.outcomes, self.settings, self.base)

    def frontier(self) -> list[FrontierPoint]:
        """Points for :func:`~pyro_tilt.diagnostics.plot_frontier`, of methods whose KL is known."""
        points = (each.point() for each in self.outcomes)
        return [*self.tilts, *(point for point in points if point is not None)]

    def facts(self) -> dict[str, Any]:
        """Everything but the draws, for JSON."""
        return {
            "settings": asdict(self.settings),
            "base": self.base,
            "outcomes": [each.facts() for each in self.outcomes],
            "seconds": self.seconds,
        }


def compare(
    *,
    budget_rows: int = 100_000,
    beta: float = 10.0,
    seed: int = 0,
    only: Sequence[str] | None = None,
    progress: bool | None = None,
    say: Callable[[str], object] | None = None,
    **options: Any,
) -> Comparison:
    """
    Runs every method for about so many rows of the target network, a row being a character read.

    A small run, outside the budget, first finds out what a draw takes. Outside it are also what the
    values were learned from, which the table states, and draws that the divergences are computed
    with.

    :param budget_rows: rows of the target network for each method.
    :param beta: multiplies the reward.
    :param seed: makes the comparison reproduce.
    :param only: run the methods whose name begins with one of these; all by default.
    :param progress: show a progress bar of the training; None shows one where it takes seconds.
    :param say: is told one line per method, such as ``print``.
    :param options: of :class:`CompareSettings`.
    """
    started = time.perf_counter()
    settings = CompareSettings(budget_rows=budget_rows, beta=beta, seed=seed, **options)
    target, draft = load_molecule_model("gru"), load_molecule_model("draft")
    reward = drug_likeness()
    trained = train_value(target, reward, settings, progress=progress)
    yardstick = take_yardstick(target, draft, reward, settings)
    found = Ways(target, draft, reward, settings, trained, yardstick).all()
    base = {
        "qed": float(yardstick.base.mean()),
        "valid": float((yardstick.base > 0).double().mean()),
    }
    outcomes: list[Outcome] = []
    results: dict[str, WeightedSamples] = {}
    for place, method in enumerate(found):
        if only is not None and not method.name.startswith(tuple(only)):
            continue
        result = spend(method, settings.budget_rows, derive_seed(settings.seed, place))
        results[method.name] = result
        outcomes.append(outcome_of(method, result))
        if say is not None:
            say(outcomes[-1].line())
    ideal = tilts(yardstick, [share * beta for share in SHARES])
    return Comparison(settings, outcomes, base, ideal, results, time.perf_counter() - started)


def save(found: Comparison, out: Path) -> None:
    """
    Writes ``compare.md``, ``compare.json`` and ``compare.png``.

    :param found: from :func:`compare`.
    :param out: folder, made where missing.
    """
    out.mkdir(parents=True, exist_ok=True)
    (out / "compare.md").write_text(found.table() + "\n")
    (out / "compare.json").write_text(json.dumps(found.facts(), indent=2) + "\n")
    s = found.settings
    title = f"Molecules to order, beta = {s.beta:g}, {s.budget_rows:,} rows of the network each"
    page(found.outcomes, found.tilts, title).savefig(out / "compare.png")


def outcome_of(method: Method, result: WeightedSamples) -> Outcome:
    """
    The row of a method.

    :param method: the method.
    :param result: what it returned.
    """
    return describe(
        method.name,
        result,
        method.spent(result),
        correction=None if method.correction is None else method.correction(result),
        training_rows=method.training_rows,
        training_seconds=method.training_seconds,
    )


def spend(method: Method, rows: int, seed: int) -> WeightedSamples:
    """
    Runs a method for about so many rows of the target network.

    :param method: the method.
    :param rows: the budget.
    :param seed: of the run.
    """
    unit, each, draws = method.unit, 0.0, 0

    def count(goal: float) -> int:
        return unit * round(goal / each / unit)

    # A first guess at the price of a draw comes from the fewest draws there are.
    for place, share in enumerate((0.0, *method.pilots)):
        draws = max(unit, count(share * rows)) if each else unit
        pilot = _run(method.make(draws, derive_seed(seed, 1, place)))
        each = target_rows(pilot) / len(pilot)
    if not method.parts:
        return _run(method.make(max(unit, count(rows)), seed))
    first = _run(method.make(max(unit, count(FIRST * rows)), seed))
    each = target_rows(first) / len(first)
    draws = count(rows - target_rows(first))
    return first if draws < unit else merge(first, _run(method.make(draws, derive_seed(seed, 2))))


def target_rows(result: WeightedSamples) -> float:
    """
    Rows of the target network that a run took.

    :param result: of one method.
    """
    return result.info.get("target_network_rows", float(result.cost.network_rows or 0))


def _run(sampler: Sampler) -> WeightedSamples:
    with warnings.catch_warnings():
        # What they warn of stands in the table.
        warnings.simplefilter("ignore", SamplerWarning)
        return sampler.run()
