# SPDX-License-Identifier: Apache-2.0
"""
Aligns the diffusion of digits to two rewards: ``python -m pyro_tilt.examples.digits``.

With ``--steer`` it compares ways to steer it step by step.
"""

import argparse
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from pyro_tilt import align
from pyro_tilt.diagnostics import plot_health
from pyro_tilt.examples.digits.classifier import Classifier, load_classifier
from pyro_tilt.examples.digits.model import WEIGHTS, Denoiser, load_denoiser, load_facts
from pyro_tilt.examples.digits.program import MAX_ROWS, digits_program
from pyro_tilt.examples.digits.report import gallery, save_summary, second_opinion
from pyro_tilt.examples.digits.rewards import ink_reward, reads_as
from pyro_tilt.examples.digits.steering import steer
from pyro_tilt.examples.digits.steering_methods import SteeringSettings
from pyro_tilt.infer import LCB, ImportanceSampler, Rejection, WeightedSamples

PAGE = 80
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True)
class Settings:
    """What the demo runs; the defaults take two to three minutes on two cores."""

    steps: int = 40
    seed: int = 0
    ink_beta: float = 50.0
    ink_draws: int = 8_000
    ink_accepted: int = 80
    calibration: int = 3_000
    digit: int = 3
    digit_beta: float = 2.0
    digit_accepted: int = 400


def run_ink(denoiser: Denoiser, settings: Settings) -> dict[str, WeightedSamples]:
    """
    More ink: a reward linear in the pixels, whose bound no digit comes near.

    :param denoiser: the network.
    :param settings: see :class:`Settings`.
    :returns: weighted draws by ``importance`` sampling, independent draws by ``lcb``.
    """
    aligned = align(digits_program, ink_reward(), settings.ink_beta)
    common: dict[str, Any] = {"seed": settings.seed, "max_batch": MAX_ROWS, "progress": True}
    weighted = ImportanceSampler(aligned, num_samples=settings.ink_draws, **common)
    independent = LCB(
        aligned,
        num_samples=settings.ink_accepted,
        epsilon=0.05,
        num_calibration=settings.calibration,
        **common,
    )
    return {
        "importance": weighted.run(denoiser, steps=settings.steps),
        "lcb": independent.run(denoiser, steps=settings.steps),
    }


def run_digit(
    denoiser: Denoiser, classifier: Classifier, settings: Settings
) -> dict[str, WeightedSamples]:
    """
    Reads as a digit: a log probability, so that rejection with bound 0 is exact.

    :param denoiser: the network.
    :param classifier: the classifier whose opinion is the reward.
    :param settings: see :class:`Settings`.
    :returns: exact draws by ``rejection``, draws by ``lcb``, whose baseline is learned.
    """
    aligned = align(digits_program, reads_as(classifier, settings.digit), settings.digit_beta)
    count = settings.digit_accepted
    # Another seed than that of the ink run, whose base draws are what these are held against.
    common: dict[str, Any] = {"seed": settings.seed + 1, "max_batch": MAX_ROWS, "progress": True}
    exact = Rejection(aligned, num_samples=count, **common)
    learned = LCB(
        aligned,
        num_samples=count,
        epsilon=0.05,
        num_calibration=settings.calibration,
        **common,
    )
    return {
        "rejection": exact.run(denoiser, steps=settings.steps),
        "lcb": learned.run(denoiser, steps=settings.steps),
    }


def confirm(judge: Classifier, base: Tensor, aligned: Tensor, digit: int) -> dict[str, Any]:
    """
    The second classifier on draws before and after.

    :param judge: a classifier that learned from other real digits than the reward's.
    :param base: draws of the base.
    :param aligned: independent draws of the aligned law.
    :param digit: the digit asked for.
    """
    return {
        "before": second_opinion(judge, base, digit),
        "after": second_opinion(judge, aligned, digit),
    }


def confirmation_text(found: dict[str, Any], facts: dict[str, Any], digit: int) -> str:
    """
    The second opinion in words.

    :param found: from :func:`confirm`.
    :param facts: of the second classifier's training.
    :param digit: the digit asked for.
    """
    accuracy, held_out = facts["held_out"]["accuracy"], facts["counts"]["held_out"]
    lines = [
        f"second opinion: classifier B, trained on {facts['trained_on']} other real digits, "
        f"accuracy {accuracy:.1%} on {held_out} held-out ones"
    ]
    labels = {
        "probability": f"mean probability of {digit}",
        "log_probability": f"mean log probability of {digit}",
        "read_as": f"share it reads as {digit}",
    }
    for key, label in labels.items():
        before, after = found["before"][key], found["after"][key]
        lines.append(
            f"  {label:<26} {before['mean']:8.3f} ± {before['error']:.3f} before"
            f"  {after['mean']:8.3f} ± {after['error']:.3f} after"
        )
    return "\n".join(lines)


def write_pages(
    out: Path,
    name: str,
    base: Tensor,
    runs: dict[str, WeightedSamples],
    *,
    shown: str,
    title: str,
    what: str,
) -> None:
    """
    The page of digits before and after, and a health page of each run.

    :param out: an existing folder.
    :param name: ending of the file names.
    :param base: draws of the base.
    :param runs: runs of one target; the first one's health page has no further ending.
    :param shown: name of the run whose independent draws are shown.
    :param title: over the page.
    :param what: the reward in words.
    """
    result = runs[shown]
    reward = result.summary().numbers["reward"]
    page = gallery(
        base[:PAGE],
        result.samples["x_0"][:PAGE],
        title=f"{title}: draws by {result.sampler}, whose law is {result.certificate.law}",
        base_title=f"base: {what} {reward['before']:.3f}",
        aligned_title=f"aligned, beta = {result.beta:g}: {what} {reward['after']:.3f}",
    )
    page.savefig(out / f"digits_{name}.png")
    for place, (run_name, run) in enumerate(runs.items()):
        ending = name if place == 0 else f"{name}_{run_name}"
        plot_health(run).savefig(out / f"health_{ending}.png", dpi=120)


def demo(out: Path, settings: Settings) -> dict[str, Any]:
    """
    Runs both alignments and writes pictures and ``summary.json``.

    :param out: folder, made where missing.
    :param settings: see :class:`Settings`.
    :returns: what ``summary.json`` holds.
    """
    started = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    denoiser, reader, judge = load_denoiser(), load_classifier("a"), load_classifier("b")
    facts = {name: load_facts(WEIGHTS / f"classifier_{name}.safetensors") for name in "ab"}
    digit, word = settings.digit, WORDS[settings.digit]

    ink = run_ink(denoiser, settings)
    base = ink["importance"].samples["x_0"]
    write_pages(out, "ink", base, ink, shown="lcb", title="More ink", what="mean ink")
    read = run_digit(denoiser, reader, settings)
    what = f"mean log P({digit})"
    title = f"Reads as a {digit}"
    write_pages(out, word, base, read, shown="rejection", title=title, what=what)
    opinion = confirm(judge, base, read["rejection"].samples["x_0"], digit)

    summary = {
        "settings": asdict(settings),
        "ink": {name: run.summary().to_dict() for name, run in ink.items()},
        word: {name: run.summary().to_dict() for name, run in read.items()},
        "second_opinion": opinion,
        "classifiers": facts,
        "seconds": time.perf_counter() - started,
    }
    save_summary(out / "summary.json", summary)
    for heading, runs in ((f"more ink, beta {settings.ink_beta:g}", ink), (title.lower(), read)):
        print(f"\n\n{heading.upper()}\n")
        print(*(run.summary() for run in runs.values()), sep="\n\n")
    print("\n" + confirmation_text(opinion, facts["b"], digit))
    print(f"\npictures and summary.json are in {out}/, made in {summary['seconds']:.0f} s")
    return summary


def main(arguments: list[str] | None = None) -> None:
    """
    The command line of the demo.

    :param arguments: by default those of the process.
    """
    given = sys.argv[1:] if arguments is None else arguments
    steering = "--steer" in given
    defaults: Settings | SteeringSettings = SteeringSettings() if steering else Settings()
    parser = argparse.ArgumentParser(
        prog="python -m pyro_tilt.examples.digits",
        description="Align a diffusion of real handwritten digits to two rewards.",
    )
    parser.add_argument("--out", type=Path, default=Path("demo-out"), help="folder of the results")
    parser.add_argument(
        "--steer",
        action="store_true",
        help="compare ways to steer the diffusion step by step at equal network rows instead "
        "(with --help for the options of that)",
    )
    for name, value in asdict(defaults).items():
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, type=type(value), default=value, help=f"default {value}")
    options = vars(parser.parse_args(given))
    out = options.pop("out")
    del options["steer"]
    try:
        if steering:
            steer(out, SteeringSettings(**options))
        else:
            demo(out, Settings(**options))
    except (ImportError, FileNotFoundError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
