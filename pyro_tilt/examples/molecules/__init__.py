# SPDX-License-Identifier: Apache-2.0
"""Language models of real molecules: ``python -m pyro_tilt.examples.molecules``."""

from pyro_tilt.examples.molecules.data import load_molecules, split_molecules
from pyro_tilt.examples.molecules.draw import draw_molecule, draw_molecules, molecule_image
from pyro_tilt.examples.molecules.model import VOCABULARY, load_molecule_model
from pyro_tilt.examples.molecules.reward import drug_likeness, is_valid, qed
from pyro_tilt.examples.molecules.vocabulary import Vocabulary

__all__ = [
    "VOCABULARY",
    "Vocabulary",
    "draw_molecule",
    "draw_molecules",
    "drug_likeness",
    "is_valid",
    "load_molecule_model",
    "load_molecules",
    "molecule_image",
    "qed",
    "split_molecules",
]
