# SPDX-License-Identifier: Apache-2.0
"""The ``pyro-tilt`` command: align a program from a shell and write what the draws are worth."""

from __future__ import annotations

import csv
import importlib
import importlib.util
import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
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
    """How to sample: auto is what ``pyro-tilt plan`` picks."""

    auto = "auto"
    importance = "importance"
    rejection = "rejection"
    lcb = "lcb"
    smc = "smc"
    best_of_n = "best-of-n"
    soft_best_of_n = "soft-best-of-n"
    gsi = "gsi"
    aisp = "aisp"


@dataclass(frozen=True)
class _Entry:
    """A sampler by name, whether it has a beta, and which further options it takes or needs."""

    sampler: str
    beta: bool = True
    options: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    num_samples: int = 1000


_METHODS = {
    Method.importance: _Entry("ImportanceSampler"),
    Method.rejection: _Entry("Rejection"),
    Method.lcb: _Entry("LCB"),
    Method.smc: _Entry("SMC"),
    Method.best_of_n: _Entry("BestOfN", beta=False, options=("n",)),
    Method.soft_best_of_n: _Entry("SoftBestOfN", options=("n",)),
    Method.gsi: _Entry("GSI", options=("n", "draft", "threshold"), needs=("draft",)),
    Method.aisp: _Entry("AISP", options=("n", "module"), needs=("module",), num_samples=1),
}
_FLAGS = {
    "n": "--choose-from",
    "draft": "--draft",
    "threshold": "--threshold",
    "module": "--module",
}


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
        float | None,
        typer.Option(
            help="Multiplies the reward (RLHF's KL coefficient, inverted); all but best-of-n need "
            "it."
        ),
    ] = None,
    method: Annotated[Method, typer.Option(help="The sampler.")] = Method.auto,
    num_samples: Annotated[
        int | None,
        typer.Option("--num-samples", "-n", min=1, help="Draws: 1000, or 1 search of aisp."),
    ] = None,
    choose_from: Annotated[
        int | None,
        typer.Option(min=1, help="Draws to choose from: best-of-n, soft-best-of-n, gsi, aisp."),
    ] = None,
    draft: Annotated[
        str | None,
        typer.Option(metavar="FILE_OR_MODULE:NAME", help="The program that proposes to gsi."),
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Of gsi: below it the target draws, not the draft.")
    ] = None,
    module: Annotated[
        str | None,
        typer.Option(
            metavar="FILE_OR_MODULE:NAME", help="Of aisp: what maps hidden states to logits."
        ),
    ] = None,
    show: Annotated[int, typer.Option(min=0, help="Texts of a language program to print.")] = 10,
    seed: Annotated[int, typer.Option(help="Makes the run reproduce.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for what is written.")] = Path("pyro-tilt-out"),
) -> None:
    """Sample a program reweighted by exp(beta * reward).

    Writes samples.nc, health.png and summary.json to the --out folder and prints the summary. A
    program that can decode its tokens is shown as text, with reward and weight, in texts.csv too.
    """
    given = {"n": choose_from, "draft": draft, "threshold": threshold, "module": module}
    given = {name: value for name, value in given.items() if value is not None}
    _check_options(method, beta, given)
    base = _load(program, "PROGRAM")
    scorer = _load(reward, "--reward")
    for name in given.keys() & {"draft", "module"}:
        given[name] = _load(str(given[name]), _FLAGS[name])
    _make_folder(out)
    try:
        count = _entry(method).num_samples if num_samples is None else num_samples
        options = {"num_samples": count, "seed": seed, **given}
        result = _sampler(base, scorer, beta, method, **options).run()
    except (ValueError, NotImplementedError, TypeError) as error:
        _fail(str(error), _FAILED)
    _write(result, out)
    if callable(getattr(base, "decode", None)):
        _write_texts(result, base, out, show)


def _entry(method: Method) -> _Entry:
    return _METHODS.get(method, _Entry("auto"))


def _check_options(method: Method, beta: float | None, given: dict[str, Any]) -> None:
    entry = _entry(method)
    if entry.beta and beta is None:
        _fail(f"--method {method.value} needs --beta", _USAGE)
    if not entry.beta and beta is not None:
        _fail(f"--method {method.value} has no --beta, only the order of rewards counts", _USAGE)
    if beta is not None and not math.isfinite(beta):
        _fail(f"--beta must be finite, got {beta}", _USAGE)
    for name in entry.needs:
        if name not in given:
            _fail(f"--method {method.value} needs {_FLAGS[name]} FILE_OR_MODULE:NAME", _USAGE)
    for name in given:
        if name not in entry.options:
            takers = [m.value for m, each in _METHODS.items() if name in each.options]
            _fail(f"{_FLAGS[name]} belongs to --method {' or '.join(takers)}", _USAGE)


def _sampler(
    program: Callable[..., Any], reward: Any, beta: float | None, method: Method, **options: Any
) -> Any:
    from pyro_tilt import infer

    if method is Method.auto:
        assert beta is not None
        return _planned(program, reward, beta, **options)
    entry = _METHODS[method]
    if entry.beta:
        options["beta"] = beta
    return getattr(infer, entry.sampler)(program, reward=reward, **options)


def _planned(program: Callable[..., Any], reward: Any, beta: float, **options: Any) -> Any:
    from pyro_tilt import plan

    found = plan(program, reward, beta)
    chosen = found.choice
    if chosen is None:
        why = f"--method auto picks nothing: {found.why_none} Name a method to run it"
        return _fail(why, _FAILED)
    typer.echo(f"method: {chosen.name}, {chosen.law} ({chosen.reason})")
    return found.sampler(**options)


@app.command("plan")
def plan_command(
    base: Annotated[
        str,
        typer.Argument(
            metavar="FILE_OR_MODULE:NAME",
            help="A program, distribution, diffusion or language model.",
        ),
    ],
    reward: Annotated[
        str, typer.Option(metavar="FILE_OR_MODULE:NAME", help="The reward of its value.")
    ],
    beta: Annotated[float, typer.Option(help="Multiplies the reward.")] = 1.0,
    closeness: Annotated[str, typer.Option(help="kl or wasserstein.")] = "kl",
    penalty: Annotated[float | None, typer.Option(help="Price of transport, 1 unless set.")] = None,
    radius: Annotated[float | None, typer.Option(help="Bound on its mean cost instead.")] = None,
    pilot: Annotated[
        int | None, typer.Option(min=0, help="Base draws for predictions; by default as needed.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the pilot.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, not a table.")] = False,
) -> None:
    """Print which ways to align apply, what each is worth, and which would be taken."""
    target, scorer = _load(base, "BASE", call=False), _load(reward, "--reward")
    from pyro_tilt import plan

    options: dict[str, Any] = {"penalty": penalty, "radius": radius, "num_pilot": pilot}
    try:
        found = plan(target, scorer, beta, closeness, seed=seed, **options)
    except (ValueError, NotImplementedError, TypeError) as error:
        _fail(str(error), _FAILED)
    typer.echo(json.dumps(found.to_dict(), indent=2, allow_nan=False) if as_json else str(found))


def _write(result: WeightedSamples, out: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from pyro_tilt import diagnostics

    summary = diagnostics.summary(result)
    typer.echo(str(summary))
    result.save(out / "samples.nc", arviz=True)
    (out / "summary.json").write_text(
        json.dumps(summary.to_dict(), indent=2, allow_nan=False) + "\n"
    )
    figure = diagnostics.plot_health(result)
    figure.savefig(out / "health.png", dpi=120)
    plt.close(figure)
    typer.echo(f"wrote {out / 'samples.nc'}, {out / 'health.png'}, {out / 'summary.json'}")


def _write_texts(result: WeightedSamples, program: Any, out: Path, show: int) -> None:
    """Prints the texts of most weight, and writes all draws with their rewards and weights."""
    site = getattr(program, "site", "tokens")
    tokens = result.samples[site]
    rewards, weights = result.stats["reward"].tolist(), result.get_normalized_weights().tolist()
    rows = list(zip(rewards, weights, program.decode(tokens)))
    with (out / "texts.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["reward", "weight", "text"])
        writer.writerows(rows)
    shared: dict[str, tuple[float, float]] = {}
    for reward, weight, text in rows:
        shared[text] = reward, weight + shared.get(text, (0.0, 0.0))[1]
    best = sorted(shared.items(), key=lambda item: (-item[1][1], -item[1][0]))[:show]
    if best:
        typer.echo(f"{'reward':>10} {'weight':>8}  text ({len(shared)} different ones)")
    for text, (reward, weight) in best:
        typer.echo(f"{reward:10.4g} {weight:8.4f}  {text}")
    finished = result.samples.get(f"{site}_finished")
    if finished is not None and not bool(finished.all()):
        cut = int((~finished).sum())
        typer.echo(f"{cut} of {len(rows)} sequences were cut at the limit, without a stop token")
    typer.echo(f"wrote {out / 'texts.csv'}")


def _load(spec: str, option: str, *, call: bool = True) -> Any:
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
    if call and not callable(target):
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
