# SPDX-License-Identifier: Apache-2.0
"""Real molecules that are shipped with rdkit, as canonical SMILES strings."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from pyro_tilt.examples.extras import require

SHORTEST, LONGEST = 5, 64
HELD_OUT = 1464
SPLIT_SEED = 20241
SEPARATORS = str.maketrans({",": " ", '"': " "})
FILES = ("NCI/first_5K.smi", "Pains/test_data/wehi_mols.csv")


@dataclass(frozen=True)
class Split:
    """
    Two disjoint parts of the molecules.

    :param train: what the models learn from.
    :param held_out: what no weight has seen.
    """

    train: list[str]
    held_out: list[str]


@cache
def load_molecules() -> tuple[str, ...]:
    """
    All molecules of one component and 5 to 64 characters, each once, in the order of the files.

    The two files are shipped with rdkit (BSD licence); canonical SMILES are written by rdkit.

    :returns: 14,636 strings with rdkit 2026.9.
    :raises ImportError: where rdkit is not installed, naming the extra.
    """
    return tuple(dict.fromkeys(canonical(raw_strings())))


def split_molecules(seed: int = SPLIT_SEED) -> Split:
    """
    The fixed split of the molecules.

    :param seed: seed of the permutation.
    """
    molecules = load_molecules()
    order = torch.randperm(len(molecules), generator=torch.Generator().manual_seed(seed)).tolist()
    shuffled = [molecules[i] for i in order]
    return Split(train=shuffled[:-HELD_OUT], held_out=shuffled[-HELD_OUT:])


def raw_strings() -> Iterator[str]:
    """The SMILES column of both files."""
    folder = Path(require("rdkit.RDConfig", extra="language").RDDataDir)
    for name in FILES:
        for line in (folder / name).read_text().splitlines():
            fields = line.translate(SEPARATORS).split()
            if fields:
                yield fields[0]


def canonical(strings: Iterable[str], *, fitting: bool = True) -> Iterator[str]:
    """
    The strings that rdkit can read, rewritten in canonical form.

    :param strings: SMILES strings, good and bad.
    :param fitting: leave out molecules of several components and of too few or many characters.
    """
    chem = require("rdkit.Chem", extra="language")
    with quiet():
        for string in strings:
            molecule = chem.MolFromSmiles(string)
            if molecule is None:
                continue
            text = chem.MolToSmiles(molecule)
            fits = "." not in text and SHORTEST <= len(text) <= LONGEST
            if fits or not fitting:
                yield text


def quiet() -> AbstractContextManager[object]:
    """A context in which rdkit does not print what it cannot read."""
    return require("rdkit.rdBase", extra="language").BlockLogs()
