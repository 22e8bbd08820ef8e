# SPDX-License-Identifier: Apache-2.0
"""The ``pyro-tilt`` command: align a program from a shell and write what the draws are worth."""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pyro_tilt.infer import WeightedSamples

__all__ = ["app"]

# Exit codes, after the shell's custom: 2 for a wrong command line, 1 for a run that failed.
_USAGE, _FAILED = 2, 1

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


class Method(StrEnum):
    """How to sample: auto is rejection where a bound is known, otherwise importance."""

    auto = "auto"
    importance = "importance"
    rejection = "rejection"
    lcb = "lcb"


@app.callback()
def main() -> None:
    """Inference-time alignment of Pyro programs."""


@app.command()
def align(
    program: Annotated[
        str, typer.Argument(metavar="FILE_OR_MODULE:NAME", help="The Pyro program; no arguments.")
    ],
    reward: Annotated[
        str,
        typer.Option(
            metavar="FILE_OR_MODULE:NAME", help="The reward of the program's return value."
        ),
    ],
    beta: Annotated[
        float, typer.Option(help="Multiplies the reward (RLHF's KL coefficient, inverted).")
    ],
    method: Annotated[Method, typer.Option(help="The sampler.")] = Method.auto,
    num_samples: Annotated[int, typer.Option("--num-samples", "-n", min=1, help="Draws.")] = 1000,
    seed: Annotated[int, typer.Option(help="Makes the run reproduce.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for what is written.")] = Path("pyro-tilt-out"),
) -> None:
    """Sample a program reweighted by exp(beta * reward).

    Writes samples.nc, health.png and summary.json to the --out folder and prints the summary.
    """
    if not math.isfinite(beta):
        _fail(f"--beta must be finite, got {beta}", _USAGE)
    base = _load(program, "PROGRAM")
    scorer = _load(reward, "--reward")
    _make_folder(out)
    try:
        sampler = _sampler(base, scorer, beta, method, num_samples=num_samples, seed=seed)
        result = sampler.run()
    except (ValueError, NotImplementedError, TypeError) as error:
        _fail(str(error), _FAILED)
    _write(result, out)


def _sampler(
    program: Callable[..., Any], reward: Any, beta: float, method: Method, **options: Any
) -> Any:
    from pyro_tilt import infer

    if method is Method.auto:
        aligned = infer.Rejection(program, reward=reward, beta=beta).program
        known = math.isfinite(infer.ProgramProposal(aligned, (), {}).log_bound)
        method = Method.rejection if known else Method.importance
        typer.echo(
            f"method: {method.value} ({'a' if known else 'no'} bound on the reward is known)"
        )
    samplers = {
        Method.importance: infer.ImportanceSampler,
        Method.rejection: infer.Rejection,
        Method.lcb: infer.LCB,
    }
    return samplers[method](program, reward=reward, beta=beta, **options)


def _write(result: WeightedSamples, out: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from pyro_tilt import diagnostics

    summary = diagnostics.summary(result)
    typer.echo(str(summary))
    result.save(out / "samples.nc", arviz=True)
    (out / "summary.json").write_text(
        json.dumps(summary.to_dict(), indent=2, allow_nan=False) + "\n"
    )
    figure = diagnostics.plot_health(result)
    figure.savefig(out / "health.png", dpi=120)
    typer.echo(f"wrote {out / 'samples.nc'}, {out / 'health.png'}, {out / 'summary.json'}")


def _load(spec: str, option: str) -> Any:
    """The object that ``FILE_OR_MODULE:NAME`` names."""
    source, separator, name = spec.rpartition(":")
    if not separator or not source or not name:
        _fail(f"{option} must have the form FILE_OR_MODULE:NAME, got {spec!r}", _USAGE)
    module = _import(source, option)
    target: Any = module
    for part in name.split("."):
        if not hasattr(target, part):
            known = ", ".join(sorted(n for n in vars(module) if not n.startswith("_")))
            _fail(f"{option}: {source} has no {name!r}; it defines {known or 'nothing'}", _USAGE)
        target = getattr(target, part)
    if not callable(target):
        _fail(f"{option}: {spec} is a {type(target).__name__}, not something to call", _USAGE)
    return target


def _import(source: str, option: str) -> ModuleType:
    path = Path(source)
    is_file = path.suffix == ".py" or "/" in source
    if is_file and not path.is_file():
        _fail(f"{option}: no such file {source}", _USAGE)
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
        _fail(f"{option}: importing {source} raised {type(error).__name__}: {error}", _USAGE)
    return module


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _fail(f"--out {out} cannot be made: {error.strerror}", _USAGE)


def _fail(message: str, code: int) -> Any:
    typer.echo(f"pyro-tilt: {message}", err=True)
    raise typer.Exit(code)
