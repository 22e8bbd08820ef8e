# SPDX-License-Identifier: Apache-2.0
"""Language models as Pyro programs, and the exact laws of choosing among their sequences."""

from pyro_tilt.language import laws
from pyro_tilt.language.neural import NeuralLM
from pyro_tilt.language.neural_choice import TokenChoice
from pyro_tilt.language.neural_generation import Generation
from pyro_tilt.language.neural_networks import RecurrentModel
from pyro_tilt.language.neural_program import NeuralProgram
from pyro_tilt.language.protocols import Decoding, LanguageModel
from pyro_tilt.language.tabular import TabularLM
from pyro_tilt.language.tabular_program import TabularProgram

__all__ = [
    "Decoding",
    "Generation",
    "LanguageModel",
    "NeuralLM",
    "NeuralProgram",
    "RecurrentModel",
    "TabularLM",
    "TabularProgram",
    "TokenChoice",
    "laws",
]
