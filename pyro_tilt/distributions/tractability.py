# SPDX-License-Identifier: Apache-2.0
"""What is known of one tilted distribution, in words."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Tractability:
    """
    How a :class:`~pyro_tilt.distributions.Tilted` is sampled and normalised.

    :ivar sampling: ``"exact"``; ``"quadrature"``, within ``error`` in total variation;
        ``"rejection"``, exact at the price of proposals; or ``"lcb"``, rejection with a learned
        Chernoff baseline, which is consistent.
    :ivar normalizer: ``"closed form"``, ``"enumeration"``, ``"quadrature"``, ``"given"``,
        ``"constant"`` or ``"unknown"``.
    :ivar error: bound on the error of the log normaliser (and on the total variation of a
        quadrature law); None where neither is known.
    :ivar reason: why it is so, as a sentence.

    >>> known = Tractability("exact", "closed form", 0.0, "Normal tilted by Linear: closed form")
    >>> known.sampling
    'exact'
    """

    sampling: str
    normalizer: str
    error: float | None
    reason: str
