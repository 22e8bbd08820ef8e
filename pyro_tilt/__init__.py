# SPDX-License-Identifier: Apache-2.0
"""Inference-time alignment of generative models as conditioning of Pyro programs.

The aligned law is the base law reweighted by ``exp(beta * reward)``. Write it down once, by
:class:`Tilted` for a distribution or :func:`align` for a program, and hand it to a sampler of
:mod:`pyro_tilt.infer`. :func:`plan` says which.
"""

from pyro_tilt import rewards
from pyro_tilt._version import __version__
from pyro_tilt.distributions import Tilted
from pyro_tilt.poutine import align, checkpoint, reward_factor, scan, twist
from pyro_tilt.tractability import plan

__all__ = [
    "Tilted",
    "__version__",
    "align",
    "checkpoint",
    "plan",
    "reward_factor",
    "rewards",
    "scan",
    "twist",
]
