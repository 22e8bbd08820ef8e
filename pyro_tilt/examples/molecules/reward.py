# SPDX-License-Identifier: Apache-2.0
"""Drug-likeness of a written molecule."""

from functools import lru_cache

import torch
from torch import Tensor

from pyro_tilt.examples.extras import require
from pyro_tilt.examples.molecules.data import quiet
from pyro_tilt.examples.molecules.model import VOCABULARY
from pyro_tilt.rewards import Bounded


@lru_cache(maxsize=100_000)
def qed(string: str) -> float:
    """
    Quantitative estimate of drug-likeness, 0 for a string that is no molecule.

    Bickerton, Paolini, Besnard, Muresan and Hopkins (2012), Nature Chemistry 4, 90-98, as rdkit
    computes it. Between 0 and 1; 0 also for the rare molecule that rdkit reads and cannot rate.

    :param string: a SMILES string.
    :raises ImportError: where rdkit is not installed, naming the extra.
    """
    chem = require("rdkit.Chem", extra="language")
    with quiet():
        molecule = chem.MolFromSmiles(string) if string else None
        if molecule is None:
            return 0.0
        try:
            return float(require("rdkit.Chem.QED", extra="language").qed(molecule))
        except chem.MolSanitizeException:
            # A few strings are read and have no aromatic form once their hydrogens are removed.
            return 0.0


def is_valid(string: str) -> bool:
    """
    Whether rdkit reads the string as a molecule.

    :param string: a SMILES string; the empty one is none.
    """
    chem = require("rdkit.Chem", extra="language")
    with quiet():
        return bool(string) and chem.MolFromSmiles(string) is not None


def qed_of_tokens(tokens: Tensor) -> Tensor:
    """
    :func:`qed` of each row of tokens; a row without a stop is no finished molecule and scores 0.

    :param tokens: shape ``(..., length)``, without the begin mark.
    :returns: shape ``(...)``, float32.
    """
    rows = tokens.reshape(-1, tokens.shape[-1])
    finished = (rows == VOCABULARY.stop).any(-1).tolist()
    scores = [qed(s) if f else 0.0 for s, f in zip(VOCABULARY.decode(rows), finished)]
    return torch.tensor(scores, device=tokens.device).reshape(tokens.shape[:-1])


def drug_likeness() -> Bounded:
    """The reward of a row of tokens, a black box known to lie between 0 and 1."""
    return Bounded(qed_of_tokens, low=0.0, high=1.0, event_dim=1)
