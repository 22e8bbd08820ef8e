# SPDX-License-Identifier: Apache-2.0
"""Several runs side by side."""

from pyro_tilt.infer.each.errors import RunsFailed
from pyro_tilt.infer.each.run_each import run_each

__all__ = ["RunsFailed", "run_each"]
