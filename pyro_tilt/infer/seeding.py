# SPDX-License-Identifier: Apache-2.0
"""Random states: runs that reproduce and that leave the caller's generators as they found them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import pyro
import torch

__all__ = ["derive_seed", "preserved_rng", "seeded"]


@contextmanager
def preserved_rng(*, numpy: bool = True) -> Iterator[None]:
    """
    Restores the random states of torch, numpy and random on exit.

    :param numpy: whether those of numpy and random too; they cost more than torch's.
    """
    if numpy:
        numpy_state, python_state = np.random.get_state(), random.getstate()
    # fork_rng costs tens of microseconds, which short runs would notice, even without a GPU.
    cuda = torch.cuda.is_available()
    cpu_state = torch.get_rng_state()
    try:
        with torch.random.fork_rng() if cuda else nullcontext():
            yield
    finally:
        torch.set_rng_state(cpu_state)
        if numpy:
            np.random.set_state(numpy_state)
            random.setstate(python_state)


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Seeds Pyro for the block and restores the caller's states; does nothing if seed is None."""
    if seed is None:
        yield
        return
    with preserved_rng():
        pyro.set_rng_seed(seed)
        yield


def derive_seed(seed: int, *key: int) -> int:
    """An independent seed for the part of a run that ``key`` names.

    >>> derive_seed(0, 1) == derive_seed(0, 1), derive_seed(0, 1) == derive_seed(0, 2)
    (True, False)
    """
    return int(np.random.SeedSequence([seed % 2**64, *key]).generate_state(1, np.uint32)[0])
