# SPDX-License-Identifier: Apache-2.0
"""Sequential Monte Carlo over programs with steps."""

from pyro_tilt.infer.smc.errors import LineageError, ResumeError, StepError, TwistError
from pyro_tilt.infer.smc.lineage import check_lineage
from pyro_tilt.infer.smc.online import OnlineSMC
from pyro_tilt.infer.smc.paths import Paths
from pyro_tilt.infer.smc.proposals import gradient_proposal
from pyro_tilt.infer.smc.smc import SMC

__all__ = [
    "SMC",
    "LineageError",
    "OnlineSMC",
    "Paths",
    "ResumeError",
    "StepError",
    "TwistError",
    "check_lineage",
    "gradient_proposal",
]
