# SPDX-License-Identifier: Apache-2.0
"""The commands and their options."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from pyro_tilt.cli.failing import FAILED, fail, running
from pyro_tilt.cli.loading import as_runnable, check_callable, load
from pyro_tilt.cli.methods import (
    FLAGS,
    METHODS,
    NAMED,
    Accept,
    Closeness,
    Fallback,
    Method,
    Rule,
    check,
)
from pyro_tilt.cli.writing import make_folder, write_result, write_texts

__all__ = ["app"]

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)

_SPEC = "FILE_OR_MODULE:NAME"


@app.callback()
def main() -> None:
    """Inference-time alignment of Pyro programs."""


@app.command()
def align(
    program: Annotated[
        str,
        typer.Argument(
            metavar=_SPEC,
            help="The Pyro program, without arguments; --method auto also takes a distribution, "
            "a diffusion or a language model.",
        ),
    ],
    reward: Annotated[
        str | None,
        typer.Option(
            metavar=_SPEC,
            help="The reward of the program's return value; all but reward-shifted need it.",
        ),
    ] = None,
    beta: Annotated[
        float | None,
        typer.Option(
            help="Multiplies the reward (RLHF's KL coefficient, inverted); all need it but "
            "best-of-n, speculative-rejection, reward-guided and reward-shifted. 1 under "
            "--closeness wasserstein."
        ),
    ] = None,
    method: Annotated[Method, typer.Option(help="The sampler.")] = Method.auto,
    closeness: Annotated[
        Closeness | None,
        typer.Option(help="Of auto: reweight draws (kl, unless set) or move them (wasserstein)."),
    ] = None,
    penalty: Annotated[
        float | None, typer.Option(help="With wasserstein: price of transport, 1 unless set.")
    ] = None,
    radius: Annotated[
        float | None, typer.Option(help="With wasserstein: bound on its mean cost instead.")
    ] = None,
    num_samples: Annotated[
        int | None,
        typer.Option("--num-samples", "-n", min=1, help="Draws: 1000, or 1 search of aisp."),
    ] = None,
    choose_from: Annotated[
        int | None, typer.Option(min=1, help="Draws to choose from, or proposals before giving up.")
    ] = None,
    block: Annotated[
        int | None, typer.Option(min=1, help="Choose after every so many steps, not whole draws.")
    ] = None,
    value: Annotated[
        str | None,
        typer.Option(metavar=_SPEC, help="With --block: log value of the carry and xs element."),
    ] = None,
    exact_values: Annotated[
        bool, typer.Option("--exact-values", help="With --block: the values are exact.")
    ] = False,
    log_bound: Annotated[
        float | None, typer.Option(help="Bound on log weights, where the reward states none.")
    ] = None,
    score: Annotated[
        str | None,
        typer.Option(metavar=_SPEC, help="Of speculative-rejection: scores a beginning."),
    ] = None,
    checks: Annotated[
        int | None, typer.Option(min=1, help="Of speculative-rejection: steps between cuts.")
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(
            help="Share dropped by speculative-rejection; in aisp the penalty counts 1 - alpha."
        ),
    ] = None,
    draft: Annotated[
        str | None,
        typer.Option(metavar=_SPEC, help="The program that proposes to gsi or reward-guided."),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(help="Of gsi and reward-guided: below it the target draws, not the draft."),
    ] = None,
    fallback: Annotated[
        Fallback | None, typer.Option(help="Of gsi: how the target draws below the threshold.")
    ] = None,
    accept: Annotated[
        Accept | None, typer.Option(help="Of gsi: by threshold, or exactly under --log-bound.")
    ] = None,
    aligned: Annotated[
        str | None, typer.Option(metavar=_SPEC, help="Of reward-shifted: the aligned draft.")
    ] = None,
    reference: Annotated[
        str | None, typer.Option(metavar=_SPEC, help="Of reward-shifted: it before alignment.")
    ] = None,
    rule: Annotated[
        Rule | None, typer.Option(help="Of reward-shifted: how a token is replaced.")
    ] = None,
    module: Annotated[
        str | None, typer.Option(metavar=_SPEC, help="Of aisp: maps hidden states to logits.")
    ] = None,
    iterations: Annotated[
        int | None, typer.Option(min=0, help="Of aisp: updates of the perturbation's mean.")
    ] = None,
    sigma: Annotated[
        float | None, typer.Option(help="Of aisp: standard deviation of a perturbation.")
    ] = None,
    tau: Annotated[
        int | None, typer.Option(min=0, help="Of aisp: tokens that are perturbed; all by default.")
    ] = None,
    show: Annotated[int, typer.Option(min=0, help="Texts of a language program to print.")] = 10,
    seed: Annotated[int, typer.Option(help="Makes the run reproduce.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for what is written.")] = Path("pyro-tilt-out"),
) -> None:
    """Sample a program reweighted by exp(beta * reward), or move its draws uphill.

    Writes samples.nc, health.png and summary.json to the --out folder and prints the summary. A
    program that can decode its tokens is shown as text, with reward and weight, in texts.csv too.
    """
    options: dict[str, Any] = {
        "closeness": closeness,
        "penalty": penalty,
        "radius": radius,
        "n": choose_from,
        "block": block,
        "value": value,
        "exact_values": exact_values or None,
        "log_bound": log_bound,
        "score": score,
        "checks": checks,
        "alpha": alpha,
        "draft": draft,
        "threshold": threshold,
        "fallback": fallback,
        "accept": accept,
        "aligned": aligned,
        "reference": reference,
        "rule": rule,
        "module": module,
        "iterations": iterations,
        "sigma": sigma,
        "tau": tau,
    }
    given = {name: option for name, option in options.items() if option is not None}
    check(method, reward, beta, given)
    base = load(program, "PROGRAM", call=False)
    runnable = as_runnable(base, "PROGRAM")
    target = base if method is Method.auto else runnable
    scorer = None if reward is None else load(reward, "--reward")
    for name in given.keys() & set(NAMED):
        given[name] = load(str(given[name]), FLAGS[name])
    make_folder(out)
    with running():
        count = num_samples or (METHODS[method].num_samples if method in METHODS else 1000)
        sampler = _sampler(target, scorer, beta, method, num_samples=count, seed=seed, **given)
        result = sampler.run()
    try:
        write_result(result, out)
        if callable(getattr(base, "decode", None)):
            write_texts(result, base, out, show)
    except OSError as error:
        fail(f"--out {out}: {error}", FAILED)


def _sampler(program: Any, reward: Any, beta: float | None, method: Method, **options: Any) -> Any:
    from pyro_tilt import infer

    if method is Method.auto:
        return _planned(program, reward, 1.0 if beta is None else beta, **options)
    given = {"reward": reward, "beta": beta}
    options.update({name: each for name, each in given.items() if each is not None})
    options = {k: each.value if isinstance(each, StrEnum) else each for k, each in options.items()}
    return getattr(infer, METHODS[method].sampler)(program, **options)


def _planned(
    base: Any,
    reward: Any,
    beta: float,
    *,
    closeness: str = "kl",
    penalty: float | None = None,
    radius: float | None = None,
    **options: Any,
) -> Any:
    from pyro_tilt import plan

    seed = options["seed"]
    found = plan(base, reward, beta, str(closeness), penalty=penalty, radius=radius, seed=seed)
    chosen = found.choice
    if chosen is None:
        why = f"--method auto picks nothing: {found.why_none} Name a method to run it"
        return fail(why, FAILED)
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
    target, scorer = load(base, "BASE", call=False), load(reward, "--reward")
    from pyro_tilt import plan

    options: dict[str, Any] = {"penalty": penalty, "radius": radius, "num_pilot": pilot}
    check_callable(target, "BASE")
    with running():
        found = plan(target, scorer, beta, closeness, seed=seed, **options)
    typer.echo(json.dumps(found.to_dict(), indent=2, allow_nan=False) if as_json else str(found))
