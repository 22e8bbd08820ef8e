# SPDX-License-Identifier: Apache-2.0
"""A hint about the future of a program, for samplers over steps."""

from collections.abc import Callable

from pyro.poutine.runtime import am_i_wrapped
from torch import Tensor

from pyro_tilt.poutine.scan import apply_effect

LogPsi = Tensor | Callable[[], Tensor]


def twist(name: str, log_psi: LogPsi) -> None:
    r"""
    States an estimate of what is still to come, in logarithms.

    .. math:: \log\psi(c) \approx \log E[e^{\text{later factors and observations}} \mid c]

    To be said inside a step of :func:`~pyro_tilt.poutine.scan` or before a
    :func:`~pyro_tilt.poutine.checkpoint`. A sampler weighs by the new value minus the old one and
    removes the last one at the end, when the true factors have entered: a wrong twist costs
    variance and biases nothing, provided that it is positive wherever later mass is. Several
    twists in one step add; in a step without one the old value stays. Everywhere else, as in
    NUTS, SVI or a trace, the statement does nothing and leaves no site.

    :param name: name of the statement, unique in the program.
    :param log_psi: one number per particle (and per element of the plates around), or a function
        without arguments that returns it and is called only where a sampler listens.
    :raises ValueError: under a sampler, for a wrong shape, NaN or ``+inf``.

    >>> import torch
    >>> twist("psi", torch.tensor(-0.5))
    """
    if am_i_wrapped():
        apply_effect("tilt_twist", name, _nothing, (log_psi,))


def _nothing(log_psi: LogPsi) -> None:
    return None
