# SPDX-License-Identifier: Apache-2.0
"""Objects by the names that a command line gives them."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from pyro_tilt.cli.failing import USAGE, fail

__all__ = ["as_runnable", "check_callable", "load"]


def load(spec: str, option: str, *, call: bool = True) -> Any:
    """
    The object that ``FILE_OR_MODULE:NAME`` names.

    :param spec: as given.
    :param option: where it was given.
    :param call: whether it must be something to call.
    """
    source, separator, name = spec.rpartition(":")
    if not separator or not source or not name:
        fail(f"{option} must have the form FILE_OR_MODULE:NAME, got {spec!r}", USAGE)
    module = _import(source, option)
    target: Any = module
    for part in name.split("."):
        if not hasattr(target, part):
            known = ", ".join(sorted(n for n in vars(module) if not n.startswith("_")))
            fail(f"{option}: {source} has no {name!r}; it defines {known or 'nothing'}", USAGE)
        target = getattr(target, part)
    if call and not callable(target):
        fail(f"{option}: {spec} is a {type(target).__name__}, not something to call", USAGE)
    return target


def as_runnable(base: Any, option: str) -> Any:
    """
    The Pyro program of a base, or a message that it is none.

    :param base: a program, distribution, diffusion or language model.
    :param option: where it was given.
    """
    from torch.distributions import Distribution

    from pyro_tilt.tractability.base import as_base

    if callable(base) and not isinstance(base, Distribution):
        check_callable(base, option)
        return base
    try:
        found = as_base(base)
    except (TypeError, ValueError) as error:
        return fail(f"{option}: {str(error).removeprefix('plan: ')}", USAGE)
    return found.steps_program or found.program


def check_callable(base: Any, option: str) -> None:
    """
    Ends the command where a program cannot run without arguments.

    :param base: a program; anything else passes.
    :param option: where it was given.
    """
    if not inspect.isroutine(base):
        return
    try:
        parameters = inspect.signature(base).parameters.values()
    except ValueError:
        return
    free = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in free]
    if needed:
        fail(
            f"{option}: {base.__name__} needs {', '.join(needed)}, and a program runs without "
            "arguments here; define one that fills them in, as by functools.partial",
            USAGE,
        )


def _import(source: str, option: str) -> ModuleType:
    path = Path(source)
    is_file = path.suffix == ".py" or "/" in source
    if is_file and not path.is_file():
        fail(f"{option}: no such file {source}", USAGE)
    try:
        if not is_file:
            sys.path.insert(0, str(Path.cwd()))
            return importlib.import_module(source)
        # One module object per file, so that a program and a reward of one file share its state.
        key = f"_pyro_tilt_{path.resolve().stem}_{abs(hash(path.resolve()))}"
        if key in sys.modules:
            return sys.modules[key]
        spec = importlib.util.spec_from_file_location(key, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[key] = module
        sys.path.insert(0, str(path.resolve().parent))
        spec.loader.exec_module(module)
    except Exception as error:
        fail(f"{option}: importing {source} raised {type(error).__name__}: {error}", USAGE)
    return module
