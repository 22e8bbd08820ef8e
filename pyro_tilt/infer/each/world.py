# SPDX-License-Identifier: Apache-2.0
"""The state that all threads of a process have in common, so that runs can take turns with it."""

from __future__ import annotations

import random
import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyro
import torch
from pyro.poutine.runtime import _DIM_ALLOCATOR, _ENUM_ALLOCATOR, _PYRO_PARAM_STORE, _PYRO_STACK
from torch import Tensor

__all__ = ["World"]

_STORE = ("_params", "_param_to_name", "_constraints")


@dataclass(frozen=True)
class World:
    """
    What a run finds and leaves in places that are one for the whole process.

    :ivar frames: Pyro's handlers.
    :ivar plates: the dimensions that plates hold.
    :ivar enumeration: where enumeration stands.
    :ivar store: the three tables of Pyro's parameters.
    :ivar settings: Pyro's settings, whether it validates among them.
    :ivar torch_state: random state of torch.
    :ivar cuda_states: those of its GPUs, where they are in use.
    :ivar numpy_state: of numpy.
    :ivar python_state: of random.
    :ivar dtype: torch's default.
    :ivar warned: filters of warnings and how they are shown.
    """

    frames: list[Any]
    plates: list[Any]
    enumeration: dict[str, Any]
    store: tuple[dict[Any, Any], ...]
    settings: dict[str, Any]
    torch_state: Tensor
    cuda_states: list[Tensor]
    numpy_state: dict[str, Any]
    python_state: tuple[Any, ...]
    dtype: torch.dtype
    warned: tuple[Any, ...]

    @classmethod
    def current(cls) -> World:
        """The state as it is now."""
        return cls(
            frames=list(_PYRO_STACK),
            plates=list(_DIM_ALLOCATOR._stack),
            enumeration=dict(vars(_ENUM_ALLOCATOR)),
            store=tuple(getattr(_PYRO_PARAM_STORE, name) for name in _STORE),
            settings=pyro.settings.get(),
            torch_state=torch.get_rng_state(),
            cuda_states=torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
            numpy_state=np.random.get_state(legacy=False),
            python_state=random.getstate(),
            dtype=torch.get_default_dtype(),
            warned=_warned(),
        )

    def fork(self, seed: int | None) -> World:
        """
        The state that a run begins with: this one, with tables of parameters of its own.

        :param seed: of other random states; None for the same.
        """
        store = tuple(dict(table) for table in self.store)
        if seed is None:
            return replace(self, store=store)
        pyro.set_rng_seed(seed)
        fresh = World.current()
        self.install()
        return replace(fresh, store=store)

    def install(self, present: World | None = None) -> None:
        """
        Puts this state in place of the present one.

        :param present: the present state, where it is known; what is the same is left.
        """
        _PYRO_STACK[:] = self.frames
        _DIM_ALLOCATOR._stack[:] = self.plates
        vars(_ENUM_ALLOCATOR).clear()
        vars(_ENUM_ALLOCATOR).update(self.enumeration)
        for name, table in zip(_STORE, self.store):
            setattr(_PYRO_PARAM_STORE, name, table)
        if present is None or present.settings != self.settings:
            pyro.settings.set(**self.settings)
        torch.set_rng_state(self.torch_state)
        if self.cuda_states:
            torch.cuda.set_rng_state_all(self.cuda_states)
        if present is None or not _same_numbers(present.numpy_state, self.numpy_state):
            np.random.set_state(self.numpy_state)
        if present is None or present.python_state != self.python_state:
            random.setstate(self.python_state)
        if torch.get_default_dtype() != self.dtype:
            torch.set_default_dtype(self.dtype)
        _warn_as(self.warned)

    def adopt(self, runs: list[World]) -> None:
        """
        Takes over the parameters that runs made or replaced; of one name, those of the first run.

        :param runs: how the runs left the process.
        """
        ours, names, constraints = self.store
        before = dict(ours)
        for run in reversed(runs):
            for name, value in run.store[0].items():
                if before.get(name) is not value:
                    names.pop(ours.get(name), None)
                    ours[name], names[value] = value, name
                    constraints[name] = run.store[2][name]


def _same_numbers(first: dict[str, Any], second: dict[str, Any]) -> bool:
    ours, theirs = first["state"], second["state"]
    return (
        first["bit_generator"] == second["bit_generator"] == "MT19937"
        and ours["pos"] == theirs["pos"]
        and np.array_equal(ours["key"], theirs["key"])
        and (first["has_gauss"], first["gauss"]) == (second["has_gauss"], second["gauss"])
    )


def _warned() -> tuple[Any, ...]:
    found: Any = warnings
    return found.filters, found.showwarning, found._showwarnmsg_impl


def _warn_as(state: tuple[Any, ...]) -> None:
    if _warned() != state:
        place: Any = warnings
        place.filters, place.showwarning, place._showwarnmsg_impl = state
        place._filters_mutated()
