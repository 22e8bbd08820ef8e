# SPDX-License-Identifier: Apache-2.0
"""
What the molecule models write: ``python -m pyro_tilt.examples.molecules``.

With ``--compare`` it aligns one of them in several ways at equal rows of the network.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from torch import Tensor

from pyro_tilt.examples.molecules.compare import compare, save
from pyro_tilt.examples.molecules.data import canonical, load_molecules
from pyro_tilt.examples.molecules.model import MAKERS, WEIGHTS, load_facts, load_molecule_model
from pyro_tilt.examples.molecules.reward import drug_likeness, qed_of_tokens
from pyro_tilt.infer import SMC, BestOfN
from pyro_tilt.language import NeuralLM


def quality(lm: NeuralLM, tokens: Tensor) -> dict[str, float]:
    """
    Shares and means over written sequences.

    :param lm: the model that wrote them.
    :param tokens: shape ``(n, length)``.
    :returns: ``finished``; ``valid``, those that rdkit reads; ``unique`` of the valid ones, and
        ``novel`` of the unique ones, not among the real molecules; ``qed`` with 0 for invalid
        ones, and ``qed_valid`` of the valid ones alone.
    """
    finished = lm.finished(tokens)
    strings = [s for s, ended in zip(lm.decode(tokens), finished.tolist()) if ended and s]
    molecules = list(canonical(strings, fitting=False))
    different = set(molecules)
    scores = qed_of_tokens(tokens)
    return {
        "finished": float(finished.double().mean()),
        "valid": len(molecules) / len(tokens),
        "unique": len(different) / max(1, len(molecules)),
        "novel": len(different - set(load_molecules())) / max(1, len(different)),
        "qed": float(scores.mean()),
        "qed_valid": float(scores.sum()) / max(1, len(molecules)),
    }


def report(names: list[str], *, draws: int, beta: float, n: int, seed: int) -> dict[str, Any]:
    """
    Every model as it writes, the first one also aligned to drug-likeness.

    :param names: of the models.
    :param draws: sequences of each.
    :param beta: of the joint tilt that SMC draws from.
    :param n: of best-of-n.
    :param seed: makes the report reproduce.
    """
    found: dict[str, Any] = {}
    for name in names:
        lm = load_molecule_model(name)
        found[name] = quality(lm, lm.generate(draws, seed=seed).tokens)
        found[name]["held_out_nats"] = load_facts(name)["held_out_nats"]
    lm = load_molecule_model(names[0])
    smc = SMC(lm.program(), reward=drug_likeness(), beta=beta, num_particles=draws, seed=seed).run()
    aligned = smc.get_samples(draws)["tokens"]
    found[f"{names[0]}, SMC, beta {beta:g}"] = quality(lm, aligned)
    kept = max(1, draws // n)
    best = BestOfN(lm.program(), reward=drug_likeness(), n=n, num_samples=kept, seed=seed).run()
    found[f"{names[0]}, best of {n}"] = quality(lm, best.samples["tokens"])
    return found


def as_text(found: dict[str, Any]) -> str:
    """
    The report as a table.

    :param found: from :func:`report`.
    """
    columns = ["finished", "valid", "unique", "novel", "qed", "qed_valid", "held_out_nats"]
    lines = [" " * 24 + "".join(f"{column.replace('_', ' '):>15}" for column in columns)]
    for name, row in found.items():
        cells = [f"{row[column]:15.3f}" if column in row else f"{'':15}" for column in columns]
        lines.append(f"{name:24}" + "".join(cells))
    return "\n".join(line.rstrip() for line in lines)


def main(arguments: list[str] | None = None) -> None:
    """
    The command line of the report.

    :param arguments: by default those of the process.
    """
    shipped = [name for name in MAKERS if (WEIGHTS / f"{name}.safetensors").exists()]
    parser = argparse.ArgumentParser(
        prog="python -m pyro_tilt.examples.molecules",
        description="What the molecule models write, before and after alignment to QED.",
    )
    parser.add_argument("--models", nargs="+", choices=list(MAKERS), default=shipped)
    parser.add_argument("--draws", type=int, default=1000, help="sequences of each")
    parser.add_argument("--beta", type=float, default=10.0, help="of the joint tilt")
    parser.add_argument("-n", type=int, default=16, help="of best-of-n")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", type=Path, help="a JSON file for the figures; with --compare a folder"
    )
    parser.add_argument(
        "--compare", action="store_true", help="compare ways of alignment at equal network rows"
    )
    parser.add_argument(
        "--budget-rows", type=int, default=100_000, help="of each way, with --compare"
    )
    given = parser.parse_args(arguments)
    try:
        if given.compare:
            compared = compare(
                budget_rows=given.budget_rows, beta=given.beta, seed=given.seed, say=print
            )
            print(f"\n{compared.table()}")
            if given.out is not None:
                save(compared, given.out)
            return
        found = report(given.models, draws=given.draws, beta=given.beta, n=given.n, seed=given.seed)
    except (ImportError, FileNotFoundError) as error:
        sys.exit(str(error))
    print(as_text(found))
    if given.out is not None:
        given.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
