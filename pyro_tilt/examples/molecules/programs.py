# SPDX-License-Identifier: Apache-2.0
"""
The models as programs and their reward by name, for the command line.

``pyro-tilt align pyro_tilt.examples.molecules.programs:gru --reward
pyro_tilt.examples.molecules.programs:drug_likeness --beta 10 --method smc``
"""

from __future__ import annotations

from functools import cache
from typing import Any

from pyro_tilt.examples.molecules import reward
from pyro_tilt.examples.molecules.model import MAKERS, load_molecule_model

drug_likeness = reward.drug_likeness()


@cache
def __getattr__(name: str) -> Any:
    # Weights are read where a program is asked for, not where the module is imported.
    if name not in MAKERS:
        raise AttributeError(f"{__name__} has no {name!r}; its programs are {', '.join(MAKERS)}")
    return load_molecule_model(name).program()
