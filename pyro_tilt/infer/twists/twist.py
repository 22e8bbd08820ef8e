# SPDX-License-Identifier: Apache-2.0
"""The interface of all twists."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, TypeVar

from torch import Tensor

from pyro_tilt.infer.smc.errors import TwistError
from pyro_tilt.rewards.moving import move

__all__ = ["Twist"]

T = TypeVar("T", bound="Twist")


class Twist(ABC):
    r"""
    A function of the carry after a step and of the element of ``xs`` of that step.

    .. math:: \log\psi(c, x) \approx \log E[e^{\text{later factors and rewards}} \mid c]

    To be handed to a sampler over steps as ``twist=``. A wrong twist costs variance and biases
    nothing, provided that it is positive wherever later mass is. Any function will do; this class
    adds checks, a count of the work, and :meth:`to`.

    :ivar value_calls: rows evaluated so far.
    """

    def __init__(self) -> None:
        self.value_calls = 0

    @abstractmethod
    def log_psi(self, carry: Any, x: Any) -> Tensor:
        """
        The log twist, unchecked.

        :param carry: the state of N particles, which are leftmost in every tensor.
        :param x: the element of ``xs`` of the step that made it.
        :returns: shape (N,); ``-inf`` only where no later factor leaves any mass.
        """

    def __call__(self, carry: Any, x: Any = None) -> Tensor:
        """
        The log twist, checked and counted.

        :param carry: as in :meth:`log_psi`.
        :param x: as in :meth:`log_psi`.
        :raises TwistError: if the result is no tensor with one number per particle, or holds NaN
            or ``+inf``.
        """
        values = self.log_psi(carry, x)
        if not isinstance(values, Tensor) or values.dim() == 0 or values.numel() != len(values):
            found = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise TwistError(
                f"{self._name(x)} must return one number per particle, shape (N,), got {found}"
            )
        values = values.reshape(len(values))
        self.value_calls += self._rows(values)
        # The maximum shows both NaN and +inf.
        if values.numel() and not float(values.detach().amax()) < math.inf:
            kind, bad = "NaN", int(values.isnan().sum())
            if not bad:
                kind, bad = "+inf", int((values == math.inf).sum())
            raise TwistError(
                f"{self._name(x)} is {kind} for {bad} of {len(values)} particles; it is the log of "
                "an expectation, finite or -inf"
            )
        return values

    def to(self: T, *args: Any, **kwargs: Any) -> T:
        """
        A copy whose tensors and modules are moved or cast as by :meth:`torch.Tensor.to`; the twist
        itself where nothing changes.
        """
        return move(self, *args, **kwargs)

    def _rows(self, values: Tensor) -> int:
        return len(values)

    def _name(self, x: Any) -> str:
        text = repr(x)
        return f"{type(self).__name__} after step {text if len(text) < 40 else text[:37] + '...'}"
