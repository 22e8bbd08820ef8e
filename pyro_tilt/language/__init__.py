# SPDX-License-Identifier: Apache-2.0
"""Language models as Pyro programs, and the exact laws of choosing among their sequences."""

from pyro_tilt.language import laws
from pyro_tilt.language.protocols import Decoding, LanguageModel
from pyro_tilt.language.tabular import TabularLM

__all__ = ["Decoding", "LanguageModel", "TabularLM", "laws"]
