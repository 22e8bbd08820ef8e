# SPDX-License-Identifier: Apache-2.0
"""A place in a program where particles may be exchanged."""

from typing import Any

from pyro.poutine.runtime import am_i_wrapped

from pyro_tilt.poutine.scan import apply_effect


def checkpoint(name: str, *state: Any) -> Any:
    """
    Lets a sampler exchange particles in a hand-written loop; by itself the identity.

    Under :class:`~pyro_tilt.infer.SMC` the particles may be resampled here, and what is returned
    is their state. Everything that depends on earlier draws and is used later must pass through:
    a variable that is forgotten still belongs to the particles of before. Where a program can be
    written with :func:`~pyro_tilt.poutine.scan`, more samplers apply.

    :param name: name of the checkpoint, unique in the program.
    :param state: what survives, any nesting of tensors with the particles leftmost.
    :returns: the state; a tuple where there are several.

    >>> checkpoint("c", 1.0), checkpoint("d", 1.0, [2.0])
    (1.0, (1.0, [2.0]))
    """
    if not am_i_wrapped():
        return _identity(*state)
    return apply_effect("tilt_checkpoint", name, _identity, state)


def _identity(*state: Any) -> Any:
    return state[0] if len(state) == 1 else state
