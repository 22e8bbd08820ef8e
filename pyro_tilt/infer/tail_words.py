# SPDX-License-Identifier: Apache-2.0
"""What the tail of importance weights adds to a certificate, in words."""

from __future__ import annotations

import math

from pyro_tilt.ops.psis import khat_threshold

__all__ = ["judged_tail", "without_judgement"]

_TOO_HEAVY = "; pareto_k says that the weights are too heavy"
_NOT_JUDGED = "; no tail was fitted, so that the weights were not judged"


def judged_tail(pareto_k: float | None, num: int) -> str:
    """
    The words for a shape of the tail, none where it is light enough.

    :param pareto_k: the shape; None or inf where no tail was fitted, nan where it is flat.
    :param num: number of draws.

    >>> judged_tail(0.5, 1000), judged_tail(0.9, 1000)
    ('', '; pareto_k says that the weights are too heavy')
    """
    if pareto_k is None or math.isinf(pareto_k):
        return _NOT_JUDGED
    return _TOO_HEAVY if pareto_k > khat_threshold(num) else ""


def without_judgement(text: str) -> str:
    """
    A text without those words, which hold for one set of weights.

    :param text: what a certificate excludes.
    """
    return text.replace(_TOO_HEAVY, "").replace(_NOT_JUDGED, "")
