# SPDX-License-Identifier: Apache-2.0
"""Inference-time alignment of generative models as conditioning of Pyro programs."""

from pyro_tilt._version import __version__

__all__ = ["__version__"]
