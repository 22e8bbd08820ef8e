# SPDX-License-Identifier: Apache-2.0
"""A twist that is given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from pyro_tilt.infer.twists.twist import Twist

__all__ = ["ExactTwist"]


class ExactTwist(Twist):
    """
    A twist whose log soft value is known, or computed by a function of the user's.

    With exact values and the optimal kernels all weights of a sampler over steps are equal; with
    the program's own kernels the evidence varies by what one step adds.

    :param fn: a function of the carry and the element of ``xs`` to one number per particle.

    >>> import torch
    >>> twist = ExactTwist(lambda x, t: -x.square() / (1 + t))
    >>> twist(torch.tensor([1.0, 2.0]), 1), twist.value_calls
    (tensor([-0.5000, -2.0000]), 2)
    """

    def __init__(self, fn: Callable[[Any, Any], Tensor]) -> None:
        super().__init__()
        if not callable(fn):
            raise TypeError(f"ExactTwist: fn must be callable, got {type(fn).__name__}")
        self.fn = fn

    def log_psi(self, carry: Any, x: Any) -> Tensor:
        """See :meth:`Twist.log_psi`."""
        return self.fn(carry, x)
