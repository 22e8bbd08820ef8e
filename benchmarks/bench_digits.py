# SPDX-License-Identifier: Apache-2.0
"""Stepwise LCB beside exact rejection at every step, on the diffusion of digits."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import Row
from pyro_tilt import align
from pyro_tilt.examples.digits import digits_program, load_classifier, load_denoiser, reads_as
from pyro_tilt.examples.digits.steering_values import (
    digits_with_estimates,
    fit_bounded_value,
    posterior_mean_value,
)
from pyro_tilt.infer import LCB, SamplerWarning, WeightedSamples
from pyro_tilt.infer.stepwise import learn_baselines

TITLE = "Reads as a 3 in 40 steps: LCB per step against exact rejection per step"
DIGIT, BETA, EPSILON = 3, 2.0, 0.05
# A chain that has gone wrong accepts under the bound zero with probability exp(-10) and less. Under
# a cheap value it may try for long; where every proposal costs a row of the network it may not.
CHEAP_CAP, DEAR_CAP = 20_000, 200


def never_above(carry: Any, x: Any) -> Tensor:
    """The bound that exact rejection needs: values and reward are log probabilities."""
    image = carry[0] if isinstance(carry, tuple) else carry
    return torch.zeros(len(image), dtype=torch.float64)


def chains(program: Any, value: Any, count: int, cap: int, **options: Any) -> WeightedSamples:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SamplerWarning)
        return LCB(
            program,
            value=value,
            num_samples=count,
            epsilon=EPSILON,
            tilt_start=False,
            check_lineage=False,
            seed=1,
            max_batch=4096,
            max_proposals=cap,
            progress=False,
            **options,
        ).run()


def compare(
    name: str,
    program: Any,
    value: Any,
    count: int,
    inner: int,
    training: dict[str, Any],
    *,
    cap: int,
    held: str,
) -> list[Row]:
    """Three rules for one value; ``held`` starts the name of the rule that has to save."""
    learned = learn_baselines(
        program,
        value=value,
        epsilon=EPSILON,
        tilt_start=False,
        max_proposals=DEAR_CAP,
        seed=0,
        progress=False,
        **training,
    )
    runs = {
        "exact": chains(program, value, count, cap, baseline=never_above),
        "learned baselines": chains(program, value, count, cap, baseline=learned),
        f"baselines from {inner} draws a state": chains(
            program, value, count, cap, num_inner=inner
        ),
    }
    exact = runs["exact"]
    rows = []
    for rule, result in runs.items():
        clipping, error = result.info["clipping"], _error(result)
        capped = float(result.stats["capped"].double().mean())
        proposals = result.info["proposals_per_step"]
        saved = f"; saved {1 - proposals / exact.info['proposals_per_step']:.0%}"
        each = (result.cost.network_rows or 0) / count
        rows_saved = f"; saved {1 - each * count / (exact.cost.network_rows or 1):+.0%}"
        known = rule == "exact"
        free = not (held and rule.startswith(held))
        rows += [
            Row(
                f"{name}, {rule}: proposals per step, mean",
                f"{proposals:.2f}{'' if known else saved}; median chain {_median(result):.2f}",
                "-" if free else "fewer than exact",
                free or proposals < exact.info["proposals_per_step"],
            ),
            Row(
                f"{name}, {rule}: network rows per digit, those for its baselines included",
                f"{each:.0f}{'' if known else rows_saved}",
                "-" if free else "fewer than exact",
                free or each * count < (exact.cost.network_rows or 0),
            ),
            Row(
                f"{name}, {rule}: certificate of a path, mean clipping and share given up",
                f"{clipping:.3f} ± {error:.3f}, {capped:.3f} at {cap} proposals",
                "-" if free else f"at most {EPSILON} together",
                free or clipping + capped <= EPSILON,
            ),
        ]
    report = learned.report
    assert report is not None
    rows.append(
        Row(f"{name}, training chains of the learned baselines", f"{report.chains}", "-", True)
    )
    return rows


def _median(result: WeightedSamples) -> float:
    """Proposals per step of the median chain, on which those that have gone wrong do not weigh."""
    steps = len(result.steps["proposals"])
    return float(result.stats["proposals"].double().median()) / steps


def _error(result: WeightedSamples) -> float:
    terms = result.stats["clipping"]
    return float(terms.std() / len(terms) ** 0.5)


def run() -> list[Row]:
    model, reader = load_denoiser(), load_classifier("a")
    reward = reads_as(reader, DIGIT)
    plain = align(partial(digits_program, model, record="all"), reward, BETA)
    network = fit_bounded_value(model, reward, BETA, seed=0, progress=False)
    estimated = align(partial(digits_with_estimates, model), reward, BETA)
    mean = posterior_mean_value(reward, BETA)

    def reading(carry: Any) -> Tensor:
        return reader(carry[1]).clamp(min=-12.0)

    return [
        *compare(
            "value by a network on the noisy digit",
            plain,
            network,
            64,
            128,
            {"num_chains": 600, "steps": 60, "value_bound": network.bound},
            cap=CHEAP_CAP,
            held="baselines from",
        ),
        *compare(
            "value by the posterior mean, whose bound is nearly tight",
            estimated,
            mean,
            24,
            32,
            {"num_chains": 200, "steps": 60, "features": reading},
            cap=DEAR_CAP,
            held="",
        ),
    ]
