# SPDX-License-Identifier: Apache-2.0
"""The conditional tilt of a distribution, and which tilts are known exactly."""

from pyro_tilt.distributions import enumeration as _enumeration
from pyro_tilt.distributions import exact as _exact
from pyro_tilt.distributions import kl as _kl
from pyro_tilt.distributions import nested as _nested
from pyro_tilt.distributions import quadrature as _quadrature
from pyro_tilt.distributions.generalized_logistic import GeneralizedGumbel, GeneralizedLogistic
from pyro_tilt.distributions.registry import ExactTilt, find_tilt, register_tilt
from pyro_tilt.distributions.tilted import Tilted
from pyro_tilt.distributions.tractability import Tractability
from pyro_tilt.distributions.truncated_exponential import TruncatedExponential
from pyro_tilt.distributions.truncated_normal import TruncatedNormal

__all__ = [
    "ExactTilt",
    "GeneralizedGumbel",
    "GeneralizedLogistic",
    "Tilted",
    "Tractability",
    "TruncatedExponential",
    "TruncatedNormal",
    "find_tilt",
    "register_tilt",
]

# These modules register their rules as they are imported.
_REGISTERED = (_enumeration, _exact, _kl, _nested, _quadrature)
