# SPDX-License-Identifier: Apache-2.0
"""Steers the diffusion of digits step by step, by several methods at equal network rows."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyro
import torch

from pyro_tilt.examples.digits.classifier import Classifier, load_classifier
from pyro_tilt.examples.digits.model import load_denoiser
from pyro_tilt.examples.digits.program import MAX_ROWS, DiffusionSampler
from pyro_tilt.examples.digits.report import save_summary
from pyro_tilt.examples.digits.rewards import ink_reward, reads_as
from pyro_tilt.examples.digits.steering_methods import CHAINS, Method, SteeringSettings, methods
from pyro_tilt.examples.digits.steering_outcome import Outcome, Target, describe
from pyro_tilt.examples.digits.steering_report import markdown, steering_page
from pyro_tilt.infer import (
    AcceptanceTooLow,
    ImportanceSampler,
    Sampler,
    SamplerWarning,
    WeightedSamples,
)
from pyro_tilt.infer.seeding import derive_seed


def targets(settings: SteeringSettings, reader: Classifier, judge: Classifier) -> list[Target]:
    """
    Reads as a digit, and more ink.

    :param settings: see :class:`SteeringSettings`.
    :param reader: the classifier whose log probability is the reward.
    :param judge: the second classifier, which takes no part.
    """
    digit = settings.digit
    return [
        Target(
            f"reads as a {digit}",
            reads_as(reader, digit),
            settings.digit_beta,
            lambda images: (judge(images).argmax(-1) == digit).double(),
            f"B reads a {digit}",
        ),
        Target(
            "more ink",
            ink_reward(),
            settings.ink_beta,
            lambda images: (judge(images).exp().amax(-1) > 0.9).double(),
            "B is 90% sure of some digit",
        ),
    ]


def spend(method: Method, rows: int, seed: int) -> WeightedSamples:
    """
    Runs a method for about so many network rows.

    A run of a few draws first finds out what one draw takes.

    :param method: the method.
    :param rows: the budget.
    :param seed: of the run.
    """
    each = method.rows_each
    if each is None:
        pilot = _run(method.make(4 * CHAINS, derive_seed(seed, 1)))
        each = (pilot.cost.network_rows or 1) / (4 * CHAINS)
    return _run(method.make(max(2 * CHAINS, round(rows / each)), seed))


@torch.no_grad()
def _weighed(base: WeightedSamples, target: Target) -> WeightedSamples:
    """Base digits with the weights of a target, so that one set of them serves every target."""
    reward = target.reward(base.samples["x_0"]).double()
    return WeightedSamples(
        kind="weighted",
        samples=base.samples,
        log_weights=target.beta * reward,
        certificate=replace(base.certificate, target="joint tilt"),
        cost=base.cost,
        stats={"reward": reward},
        beta=target.beta,
        sampler=base.sampler,
    )


def _run(sampler: Sampler) -> WeightedSamples:
    with warnings.catch_warnings():
        # What they warn of stands in the table.
        warnings.simplefilter("ignore", SamplerWarning)
        try:
            return sampler.run()
        except AcceptanceTooLow as error:
            if error.partial is None:
                raise
            return error.partial


def compare(
    settings: SteeringSettings, say: Callable[[str], object] = print
) -> dict[Target, list[Outcome]]:
    """
    Runs every method for every target.

    :param settings: see :class:`SteeringSettings`.
    :param say: is told one line per method.
    :returns: the outcomes by target, the reference first.
    """
    model, reader, judge = load_denoiser(), load_classifier("a"), load_classifier("b")
    found: dict[Target, list[Outcome]] = {}
    wanted = targets(settings, reader, judge)
    base = ImportanceSampler(
        lambda: pyro.sample("x_0", DiffusionSampler(model, settings.steps)),
        num_samples=settings.reference,
        seed=derive_seed(settings.seed, 99),
        max_batch=MAX_ROWS,
    ).run()
    for number, target in enumerate(wanted):
        say(f"{target.name}, beta {target.beta:g}")
        outcomes = [describe("reference: importance sampling", _weighed(base, target), target)]
        say(f"  {outcomes[0].line()}")
        for place, method in enumerate(methods(model, target, settings)):
            result = spend(method, settings.rows, derive_seed(settings.seed, number, place))
            outcomes.append(
                describe(
                    method.name,
                    result,
                    target,
                    setup_rows=method.setup_rows,
                    setup_seconds=method.setup_seconds,
                )
            )
            say(f"  {outcomes[-1].line()}")
        found[target] = outcomes
    return found


def steer(out: Path, settings: SteeringSettings) -> dict[str, Any]:
    """
    Compares the methods and writes ``steering.png``, ``steering.md`` and ``steering.json``.

    :param out: folder, made where missing.
    :param settings: see :class:`SteeringSettings`.
    :returns: what ``steering.json`` holds.
    """
    started = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    found = compare(settings)
    facts = {
        "settings": asdict(settings),
        "targets": {t.name: [each.facts() for each in rows] for t, rows in found.items()},
        "seconds": time.perf_counter() - started,
    }
    save_summary(out / "steering.json", facts)
    (out / "steering.md").write_text(markdown(found, settings.rows))
    steering_page(found).savefig(out / "steering.png")
    print(f"\n{markdown(found, settings.rows)}")
    print(f"steering.png, .md and .json are in {out}/, made in {facts['seconds']:.0f} s")
    return facts
