# SPDX-License-Identifier: Apache-2.0
"""What a program with steps may not do, in words that name the place."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pyro_tilt.infer.smc.errors import TwistError

_TOGETHER = (
    "All particles go through the program together, so that the number of its steps, its branches "
    "and its indices cannot depend on what they sample: make as many steps as the longest path "
    "needs, and switch off what is not wanted by pyro.poutine.mask or torch.where"
)
_ONE_NUMBER = (
    "converted to Scalar",
    "converted to Python scalar",
    "is ambiguous",
    "only integer tensors of a single element",
)


def advice(error: Exception, last_site: str | None) -> str:
    """
    What to do where a program took the values of all particles for one; otherwise nothing.

    :param error: what the program raised.
    :param last_site: the site that it had last sampled.
    """
    if not any(words in str(error) for words in _ONE_NUMBER):
        return ""
    place = "" if last_site is None else f" (after site '{last_site}')"
    return f"{place}. {_TOGETHER}"


def outside_plates(kind: str, name: str, msg: Any) -> None:
    """
    Refuses a place of exchange inside a plate.

    :param kind: what stands there.
    :param name: its name.
    :param msg: its message.
    :raises ValueError: naming the plate.
    """
    inner = [frame for frame in msg["cond_indep_stack"] if frame.name != "particles"]
    if inner:
        raise ValueError(
            f"{kind} '{name}' stands inside plate '{inner[-1].name}'; particles are exchanged "
            "whole, so put the plate inside the step"
        )


def one_per_particle(twist: Any, size: int, where: str) -> Tensor:
    """
    A twist as ``(size,)``.

    :param twist: what the function gave.
    :param size: number of particles.
    :param where: names the step.
    :raises TwistError: for another shape, or no tensor.
    """
    if not isinstance(twist, Tensor):
        raise TwistError(f"{where}: the twist is a {type(twist).__name__}, not a tensor")
    shape = tuple(twist.shape)
    if shape[:1] != (size,) or twist.numel() != size:
        raise TwistError(
            f"{where}: the twist has shape {shape}, expected ({size},), one log value per particle"
        )
    return twist.reshape(size)


def without_density(name: str, fn: Any, error: NotImplementedError) -> NotImplementedError:
    """
    The error of a law that has no density, naming its site.

    :param name: the site.
    :param fn: its law.
    :param error: what the law raised.
    """
    if f"'{name}'" in str(error):
        return error
    return NotImplementedError(
        f"site '{name}': its law ({type(fn).__name__}), or the one proposed for it, has no "
        "density, which an observation, a proposal and a guide need; leave the site to the "
        f"program. {error}".rstrip()
    )
