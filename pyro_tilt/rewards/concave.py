# SPDX-License-Identifier: Apache-2.0
"""Concave rewards."""

from __future__ import annotations

from pyro_tilt.rewards.black_box import BlackBox


class Concave(BlackBox):
    """
    A callable that is concave in its value, on the user's word.

    :param fn: maps a value to a tensor of its batch shape.
    :param event_dim: the number of rightmost dimensions of a value that one number summarises,
        where there is such a number.
    :raises TypeError: if ``fn`` is not callable; on evaluation, if it does not return a tensor.

    >>> import torch
    >>> reward = Concave(torch.log)
    >>> reward.concave, (-reward).convex
    (True, True)
    """

    @property
    def concave(self) -> bool:
        return True
