# SPDX-License-Identifier: Apache-2.0
"""Posterior prediction from aligned draws."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pyro.infer import Predictive
from torch import Tensor

from pyro_tilt.poutine.align import AlignedProgram


def unalign(program: Callable[..., Any]) -> Callable[..., Any]:
    """
    The program under any number of alignments.

    :param program: a program, aligned or not.

    >>> def program():
    ...     return 1.0
    >>> unalign(AlignedProgram(AlignedProgram(program, abs, 1.0), abs, 2.0)) is program
    True
    """
    while isinstance(program, AlignedProgram):
        program = program.program
    return program


def predictive(
    program: Callable[..., Any] | None,
    samples: Mapping[str, Tensor],
    return_sites: Sequence[str] = (),
    parallel: bool = False,
) -> Predictive:
    """
    Pyro's ``Predictive`` over equally weighted aligned draws.

    The draws are aligned already, so the program runs without its reward.

    :param program: the program, aligned or not.
    :param samples: site name to ``(N,)`` + site shape.
    :param return_sites: see Pyro's ``Predictive``.
    :param parallel: see Pyro's ``Predictive``.
    :raises ValueError: without a program.
    """
    if program is None:
        raise ValueError(
            "this result does not know its program (a program is not saved to disk): "
            "give predictive(program)"
        )
    return Predictive(
        unalign(program),
        posterior_samples=dict(samples),
        return_sites=tuple(return_sites),
        parallel=parallel,
    )
