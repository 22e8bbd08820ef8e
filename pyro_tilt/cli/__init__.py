# SPDX-License-Identifier: Apache-2.0
"""The ``pyro-tilt`` command: align a program from a shell and write what the draws are worth."""

from pyro_tilt.cli.app import app

__all__ = ["app"]
