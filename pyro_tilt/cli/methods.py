# SPDX-License-Identifier: Apache-2.0
"""Samplers by name, and which options of the command each of them takes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pyro_tilt.cli.failing import USAGE, fail

__all__ = [
    "AUTO",
    "FLAGS",
    "METHODS",
    "NAMED",
    "Accept",
    "Closeness",
    "Entry",
    "Fallback",
    "Method",
    "Rule",
    "check",
]


class Method(StrEnum):
    """How to sample: auto is what ``pyro-tilt plan`` picks."""

    auto = "auto"
    importance = "importance"
    rejection = "rejection"
    lcb = "lcb"
    smc = "smc"
    best_of_n = "best-of-n"
    soft_best_of_n = "soft-best-of-n"
    exp_best_of_n = "exp-best-of-n"
    truncated_rejection = "truncated-rejection"
    speculative_rejection = "speculative-rejection"
    gsi = "gsi"
    reward_guided = "reward-guided"
    reward_shifted = "reward-shifted"
    aisp = "aisp"


class Fallback(StrEnum):
    """What GSI does below its threshold."""

    published = "published"
    debiased = "debiased"


class Accept(StrEnum):
    """How GSI accepts a draw of the draft."""

    threshold = "threshold"
    exact = "exact"


class Closeness(StrEnum):
    """What keeps the aligned law near the base."""

    kl = "kl"
    wasserstein = "wasserstein"


class Rule(StrEnum):
    """How a token of the aligned draft is accepted or replaced."""

    normalised = "normalised"
    published = "published"


@dataclass(frozen=True)
class Entry:
    """
    A sampler by name.

    :ivar sampler: its class in :mod:`pyro_tilt.infer`.
    :ivar options: further options that it takes.
    :ivar needs: those that it cannot do without.
    :ivar no_beta: why it has no beta; empty where it has one.
    :ivar no_reward: why it has no reward; empty where it has one.
    :ivar num_samples: draws by default.
    """

    sampler: str
    options: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    no_beta: str = ""
    no_reward: str = ""
    num_samples: int = 1000


AUTO = Entry("auto", ("closeness", "penalty", "radius"))
_BLOCKS = ("n", "block", "value")
_ORDER = "only the order of rewards counts"
METHODS = {
    Method.importance: Entry("ImportanceSampler"),
    Method.rejection: Entry("Rejection", ("log_bound",)),
    Method.lcb: Entry("LCB"),
    Method.smc: Entry("SMC"),
    Method.best_of_n: Entry("BestOfN", _BLOCKS, no_beta=_ORDER),
    Method.soft_best_of_n: Entry("SoftBestOfN", (*_BLOCKS, "exact_values")),
    Method.exp_best_of_n: Entry("ExpBestOfN", (*_BLOCKS, "exact_values", "log_bound")),
    Method.truncated_rejection: Entry(
        "TruncatedRejection", (*_BLOCKS, "exact_values", "log_bound")
    ),
    Method.speculative_rejection: Entry(
        "SpeculativeRejection", ("n", "score", "alpha", "checks"), no_beta=_ORDER
    ),
    Method.gsi: Entry(
        "GSI",
        (*_BLOCKS, "exact_values", "draft", "threshold", "fallback", "accept", "log_bound"),
        needs=("draft",),
    ),
    Method.reward_guided: Entry(
        "RewardGuided",
        ("block", "value", "draft", "threshold"),
        needs=("draft",),
        no_beta="the threshold decides which model draws",
    ),
    Method.reward_shifted: Entry(
        "RewardShifted",
        ("aligned", "reference", "rule"),
        needs=("aligned", "reference"),
        no_beta="the aligned draft carries it",
        no_reward="the aligned draft carries it",
    ),
    Method.aisp: Entry(
        "AISP",
        ("n", "module", "iterations", "sigma", "alpha", "tau"),
        needs=("module",),
        num_samples=1,
    ),
}
FLAGS = {
    "n": "--choose-from",
    **{
        name: f"--{name.replace('_', '-')}"
        for name in (
            "block", "value", "exact_values", "log_bound", "score", "alpha", "checks", "draft",
            "threshold", "fallback", "accept", "aligned", "reference", "rule", "module",
            "iterations", "sigma", "tau", "closeness", "penalty", "radius",
        )
    },
}  # fmt: skip
# Options that name an object in a file or module.
NAMED = ("value", "score", "draft", "aligned", "reference", "module")


def check(method: Method, reward: str | None, beta: float | None, given: dict[str, Any]) -> None:
    """
    Ends the command with a message where options do not go together.

    :param method: by name.
    :param reward: as given.
    :param beta: as given.
    :param given: further options that were given.
    """
    entry, name = METHODS.get(method, AUTO), f"--method {method.value}"
    moved = given.get("closeness") == Closeness.wasserstein
    if entry.no_reward and reward is not None:
        fail(f"{name} has no --reward, {entry.no_reward}", USAGE)
    if not entry.no_reward and reward is None:
        fail(f"{name} needs --reward FILE_OR_MODULE:NAME", USAGE)
    if entry.no_beta and beta is not None:
        fail(f"{name} has no --beta, {entry.no_beta}", USAGE)
    if not entry.no_beta and beta is None and not (moved and method is Method.auto):
        fail(f"{name} needs --beta", USAGE)
    if beta is not None and not math.isfinite(beta):
        fail(f"--beta must be finite, got {beta}", USAGE)
    for option in entry.needs:
        if option not in given:
            fail(f"{name} needs {FLAGS[option]} FILE_OR_MODULE:NAME", USAGE)
    for option in given:
        if option not in entry.options:
            known = {Method.auto: AUTO, **METHODS}
            takers = [m.value for m, each in known.items() if option in each.options]
            fail(f"{FLAGS[option]} belongs to --method {' or '.join(takers)}", USAGE)
    _check_pairs(method, given)


def _check_pairs(method: Method, given: dict[str, Any]) -> None:
    """Options that go with another one."""
    prices = [option for option in ("penalty", "radius") if option in given]
    if prices and given.get("closeness") != Closeness.wasserstein:
        fail(f"{FLAGS[prices[0]]} goes with --closeness wasserstein; under kl beta decides", USAGE)
    if len(prices) > 1:
        fail("give --penalty, the price of transport, or --radius, its bound, not both", USAGE)
    for option in ("value", "exact_values"):
        if option in given and "block" not in given:
            fail(f"{FLAGS[option]} goes with --block, the steps after which to choose by it", USAGE)
    if method in (Method.gsi, Method.reward_guided) and "block" in given and "value" not in given:
        fail(
            f"--block of --method {method.value} needs --value FILE_OR_MODULE:NAME, a function of "
            "the carry and of the element of xs that stands for the reward after a block",
            USAGE,
        )
    if method is Method.speculative_rejection and "score" not in given and given.get("alpha") != 0:
        fail(
            "--method speculative-rejection needs --score FILE_OR_MODULE:NAME, a function of the "
            "carry and of the element of xs that scores a beginning (or --alpha 0, which drops "
            "nothing)",
            USAGE,
        )
    exact = given.get("accept") == Accept.exact
    if method is Method.gsi and exact != ("log_bound" in given):
        fail(
            "--accept exact and --log-bound go together: a bound on beta * reward + log(target / "
            "draft) over all values",
            USAGE,
        )
    for option in ("threshold", "fallback", "block"):
        if exact and option in given:
            fail(f"--accept exact has no {FLAGS[option]}", USAGE)
