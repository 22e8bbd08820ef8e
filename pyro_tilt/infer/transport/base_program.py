# SPDX-License-Identifier: Apache-2.0
"""The value that transport moves: a named site, the return value, or a draw of a distribution."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor
from torch.distributions import Distribution

from pyro_tilt.infer.seeding import preserved_rng
from pyro_tilt.poutine.capture_messenger import CaptureMessenger

__all__ = ["DistributionProgram", "ReturnValue", "as_program", "value_site"]

RETURNED = "return_value"


class DistributionProgram:
    """
    A distribution as a program with one site, ``"x"``.

    :param base: the distribution, without batch dims.
    :raises ValueError: for batch dims.
    """

    def __init__(self, base: TorchDistributionMixin) -> None:
        if len(base.batch_shape):
            raise ValueError(
                f"the distribution has batch shape {tuple(base.batch_shape)}; transport moves one "
                "value at a time: declare its dims by .to_event()"
            )
        self.base = base

    def __call__(self) -> Tensor:
        return pyro.sample("x", self.base)


class ReturnValue:
    """
    A program whose return value is a site of its own.

    :param program: any program that returns a tensor.
    """

    def __init__(self, program: Callable[..., Any]) -> None:
        self.program = program

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return pyro.deterministic(RETURNED, self.program(*args, **kwargs))


def as_program(base: Any) -> Callable[..., Any]:
    """
    A program as it is, a distribution as a program.

    :param base: either.
    :raises TypeError: for anything else.
    """
    if isinstance(base, TorchDistributionMixin):
        return DistributionProgram(base)
    if callable(base):
        return base
    if isinstance(base, Distribution):
        raise TypeError(
            f"the base must be a distribution of pyro.distributions, got {type(base).__module__}."
            f"{type(base).__name__}"
        )
    raise TypeError(f"the base must be a program or a distribution, got {type(base).__name__}")


def value_site(
    program: Callable[..., Any], of: str | None, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Callable[..., Any], str]:
    """
    The program to run, and the site that holds the value to be moved.

    One plain run, which leaves all random states as they were, tells whether the return value is
    that of a site.

    :param program: the program.
    :param of: the name of a site, or None for the return value.
    :param args: the program's arguments.
    :param kwargs: its keyword arguments.
    :raises ValueError: for a name that is no site, or a return value that is no tensor.
    """
    with preserved_rng(), torch.no_grad(), _AllSites() as sites:
        result = program(*args, **kwargs)
    if of is not None:
        if of not in sites.values:
            raise ValueError(
                f"of={of!r} names no site of the program; its sites are {list(sites.names)}"
            )
        return program, of
    if not isinstance(result, Tensor):
        raise ValueError(
            f"the program returns {'nothing' if result is None else type(result).__name__}, so "
            "that there is no value to move; return a tensor or name a site by of=, one of "
            f"{list(sites.names)}"
        )
    for name, value in sites.values.items():
        if value is result:
            return program, name
    return ReturnValue(program), RETURNED


class _AllSites(CaptureMessenger):
    def _pyro_post_sample(self, msg: Any) -> None:
        self.names[msg["name"]] = None
        if not msg["is_observed"] or msg["infer"].get("_deterministic"):
            self.values[msg["name"]] = msg["value"]
