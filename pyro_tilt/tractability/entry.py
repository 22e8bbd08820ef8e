# SPDX-License-Identifier: Apache-2.0
"""One line of a plan: a primitive, whether it applies, and what it would be worth."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

from pyro_tilt.infer.certificate import LAWS
from pyro_tilt.infer.sampler import Sampler

__all__ = ["Entry", "applies", "declines"]

Make = Callable[..., Sampler]


@dataclass(frozen=True)
class Entry:
    """
    What a plan says of one primitive.

    :ivar name: the primitive, such as ``"LinearTilt"``.
    :ivar applicable: whether it can be run on this problem.
    :ivar reason: why, or why not.
    :ivar law: the word of the certificate that its draws would have.
    :ivar target: the law that certificate would be about.
    :ivar acceptance: predicted acceptance rate, or share of effective draws; None where there is
        no prediction.
    :ivar acceptance_error: standard error of that prediction; None where it has none.
    :ivar trusted: whether that prediction can be relied on; what cannot is not picked.
    :ivar cost: predicted cost of one draw (one effective draw, where draws are weighted).
    :ivar cost_unit: what the cost counts.
    :ivar source: where the method is from.
    :ivar make: makes the sampler, from its options; None where the primitive does not apply.
    """

    name: str
    applicable: bool
    reason: str
    law: str | None = None
    target: str | None = None
    acceptance: float | None = None
    acceptance_error: float | None = None
    trusted: bool = True
    cost: float | None = None
    cost_unit: str = "base draws"
    source: str = ""
    make: Make | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.applicable and (self.make is None or self.law not in LAWS):
            raise ValueError(
                f"{self.name or 'an entry'} applies, so it needs make= and a law among "
                f"{', '.join(LAWS)}; got law={self.law!r}"
            )

    def to_dict(self) -> dict[str, Any]:
        """The fields as a dictionary of numbers and words, without ``make``."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "make"}
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in plain.items()
        }


def applies(reason: str, make: Make, law: str, target: str, **numbers: Any) -> Entry:
    """
    The entry of a primitive that can be run; the registry adds its name.

    :param reason: why it applies.
    :param make: makes the sampler from ``num_samples``, ``seed`` and other options.
    :param law: the word of its certificate.
    :param target: what that certificate is about.
    :param numbers: more fields of :class:`Entry`.
    """
    return Entry("", True, reason, law=law, target=target, make=make, **numbers)


def declines(reason: str, **more: Any) -> Entry:
    """
    The entry of a primitive that cannot be run.

    :param reason: why not.
    :param more: more fields of :class:`Entry`.

    >>> declines("the reward is not linear").applicable
    False
    """
    return Entry("", False, reason, **more)
