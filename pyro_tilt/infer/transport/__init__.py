# SPDX-License-Identifier: Apache-2.0
"""Wasserstein alignment: the output of a program, moved by a proximal map."""

from pyro_tilt.infer.transport import closed_rules, gradient_rules, low_dim_rules
from pyro_tilt.infer.transport.oracle import (
    ProximalOracle,
    ProximalProblem,
    find_proximal,
    register_proximal,
)
from pyro_tilt.infer.transport.pieces import MaxOf, TokenScores
from pyro_tilt.infer.transport.proximal_transport import ProximalTransport

# Importing the rules registers them.
_RULES = (closed_rules, gradient_rules, low_dim_rules)

__all__ = [
    "MaxOf",
    "ProximalOracle",
    "ProximalProblem",
    "ProximalTransport",
    "TokenScores",
    "find_proximal",
    "register_proximal",
]
