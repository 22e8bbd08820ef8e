# SPDX-License-Identifier: Apache-2.0
"""The rules of the primitives; importing them registers them."""

from pyro_tilt.tractability.rules import (
    algebra,
    convex,
    importance,
    lcb,
    linear,
    quadratic,
    rejection,
    smc,
    tempered,
    tilted,
    transport,
)

RULES = (
    tilted,
    linear,
    quadratic,
    convex,
    algebra,
    rejection,
    importance,
    smc,
    tempered,
    lcb,
    transport,
)
