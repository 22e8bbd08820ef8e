# SPDX-License-Identifier: Apache-2.0
"""A run between two of its steps, on disk: plain tensors, and nothing that is executed."""

from __future__ import annotations

import os
from dataclasses import fields
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pyro_tilt._version import __version__
from pyro_tilt.infer.certificate import Certificate
from pyro_tilt.infer.cost import Cost
from pyro_tilt.infer.smc.errors import ResumeError
from pyro_tilt.infer.smc.paths import Paths, PathStore, _Level
from pyro_tilt.infer.smc.records import Group
from pyro_tilt.infer.weighted_samples import WeightedSamples

if TYPE_CHECKING:
    from pyro_tilt.infer.smc.messenger import StepMessenger
    from pyro_tilt.infer.smc.population import Population

FORMAT = "pyro_tilt steps 1"

_POPULATION = (
    "log_z",
    "log_weights",
    "twist",
    "rewards",
    "roots",
    "_before",
    "_killed",
    "resamplings",
    "ess",
    "log_normalizer",
    "resampled",
)
_MESSENGER = (
    "steps_done",
    "num_tilts",
    "value_calls",
    "ranks",
    "values",
    "subsamples",
    "_mark",
)
_NAMES = ("factors", "weighted", "dropped")


def write(path: str | PathLike[str], state: dict[str, Any]) -> None:
    """Writes a state; the file appears in whole or not at all."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        torch.save({"format": FORMAT, "version": __version__, **state}, partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read(path: str | PathLike[str]) -> dict[str, Any]:
    """
    Reads a state as weights, so that nothing in the file is executed.

    :param path: what :func:`write` wrote.
    :raises ResumeError: for any other file.
    """
    try:
        state = torch.load(Path(path), weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ResumeError(f"{path} is no saved run of this package: {error}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ResumeError(f"{path} is no saved run, or one of another version of this package")
    return state


def of_population(population: Population) -> dict[str, Any]:
    """What a population has become."""
    state = {name: getattr(population, name) for name in _POPULATION}
    return {**state, "parents": [int(count) for count in population.parents]}


def set_population(population: Population, state: dict[str, Any]) -> None:
    """Makes a population what it had become."""
    for name in (*_POPULATION, "parents"):
        setattr(population, name, state[name])


def of_messenger(messenger: StepMessenger) -> dict[str, Any]:
    """What the messenger of a run holds between two steps."""
    state = {name: getattr(messenger, name) for name in _MESSENGER}
    state |= {name: list(getattr(messenger, name)) for name in _NAMES}
    last = messenger.last
    return {
        **state,
        "claimed": sorted(messenger._claimed),
        "groups": [[group.names, group.index] for group in messenger.groups],
        "last": None if last is None else [last.names, last.index],
        "paths": None if messenger.paths is None else of_paths(messenger.paths),
        "population": of_population(messenger.population),
    }


def set_messenger(messenger: StepMessenger, state: dict[str, Any]) -> None:
    """Makes the messenger of a run what it was between two steps."""
    for name in _MESSENGER:
        setattr(messenger, name, state[name])
    for name in _NAMES:
        setattr(messenger, name, dict.fromkeys(state[name]))
    messenger._claimed = set(state["claimed"])
    messenger.groups = [Group(*each) for each in state["groups"]]
    messenger.last = None if state["last"] is None else Group(*state["last"])
    messenger.paths = None if state["paths"] is None else to_paths(state["paths"])
    messenger.replay = {}
    messenger.tilts.clear()
    messenger._total = messenger._log_guide = None
    set_population(messenger.population, state["population"])


def of_paths(store: PathStore) -> dict[str, Any]:
    """The tree of paths."""
    levels = [[level.size, level.values, level.parents] for level in store.levels]
    return {"size": store.size, "levels": levels, "heads": store.heads}


def to_paths(state: dict[str, Any]) -> PathStore:
    """What :func:`of_paths` was given."""
    levels = [_Level(*each) for each in state["levels"]]
    return PathStore(state["size"], levels, state["heads"])


def of_result(result: WeightedSamples) -> dict[str, Any]:
    """The result of a chain, paths included, without its program and arguments."""
    left_out = {"certificate", "cost", "program", "args", "kwargs", "paths", "base"}
    names = [field.name for field in fields(result) if field.name not in left_out]
    parts = None if result.paths is None else [of_paths(part) for part in result.paths.parts]
    return {
        "fields": {name: getattr(result, name) for name in names},
        "certificate": result.certificate.to_dict(),
        "cost": result.cost.to_dict(),
        "paths": parts,
    }


def to_result(state: dict[str, Any], **program: Any) -> WeightedSamples:
    """What :func:`of_result` was given, with its program and arguments."""
    parts = state["paths"]
    return WeightedSamples(
        **state["fields"],
        **program,
        certificate=Certificate.from_dict(state["certificate"]),
        cost=Cost.from_dict(state["cost"]),
        paths=None if parts is None else Paths([to_paths(part) for part in parts]),
    )
