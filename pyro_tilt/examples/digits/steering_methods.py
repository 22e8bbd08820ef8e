# SPDX-License-Identifier: Apache-2.0
"""Ways of steering the diffusion of digits, with what their values cost to train."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from pyro_tilt.examples.digits.model import Denoiser
from pyro_tilt.examples.digits.program import MAX_ROWS, digits_program
from pyro_tilt.examples.digits.steering_outcome import Target
from pyro_tilt.examples.digits.steering_values import (
    digits_with_estimates,
    fit_bounded_value,
    posterior_mean_value,
)
from pyro_tilt.infer import (
    LCB,
    SMC,
    BestOfN,
    BlockBestOfN,
    ImportanceSampler,
    Rejection,
    Sampler,
    SoftBestOfM,
)
from pyro_tilt.infer.twists import learn_twists
from pyro_tilt.poutine import align

CHAINS = 4


@dataclass(frozen=True)
class SteeringSettings:
    """What is compared; the defaults take three to four minutes on two cores."""

    rows: int = 24_000
    reference: int = 4_000
    steps: int = 40
    seed: int = 0
    digit: int = 3
    digit_beta: float = 2.0
    ink_beta: float = 50.0
    training_paths: int = 1_250
    training_updates: int = 400
    proposals: int = 8
    num_inner: int = 32
    acceptances: int = 16


@dataclass(frozen=True)
class Method:
    """
    One way of steering.

    :ivar name: in the table.
    :ivar make: a sampler for a number of draws and a seed.
    :ivar rows_each: network rows of one draw where they are known beforehand.
    :ivar setup_rows: network rows that its value was trained on.
    :ivar setup_seconds: and how long that took.
    """

    name: str
    make: Callable[[int, int], Sampler]
    rows_each: float | None = None
    setup_rows: int = 0
    setup_seconds: float = 0.0


def methods(
    model: Denoiser, target: Target, settings: SteeringSettings, *, progress: bool | None = None
) -> list[Method]:
    """
    The ways of steering, their values trained where they learn.

    :param model: the denoiser.
    :param target: what is asked for.
    :param settings: see :class:`SteeringSettings`.
    :param progress: show progress bars of the training; None shows those of over three seconds.
    """
    s, reward, beta = settings, target.reward, target.beta
    base = partial(digits_program, model, steps=s.steps, record="all")
    foreseeing = partial(digits_with_estimates, model, steps=s.steps)
    plain, estimated = align(base, reward, beta), align(foreseeing, reward, beta)
    mean = posterior_mean_value(reward, beta, steps=s.steps)
    raw = posterior_mean_value(reward, beta, steps=s.steps, tempered=False)
    few: dict[str, Any] = {"max_batch": MAX_ROWS, "progress": False}

    def smc(program: Any, twist: Any) -> Callable[[int, int], Sampler]:
        return lambda n, seed: SMC(
            program,
            num_particles=max(1, n // CHAINS),
            num_chains=CHAINS,
            twist=twist,
            seed=seed,
            check_lineage=False,
            progress=False,
        )

    def lcb(program: Any, value: Any, weights: int) -> Callable[[int, int], Sampler]:
        return lambda n, seed: LCB(
            program,
            value=value,
            num_samples=n,
            seed=seed,
            num_inner=s.num_inner,
            path_weights=weights,
            tilt_start=False,
            check_lineage=False,
            **few,
        )

    def svdd(program: Any, value: Any) -> Callable[[int, int], Sampler]:
        return lambda n, seed: SoftBestOfM(
            program, value=value, m=s.proposals, num_samples=n, seed=seed, **few
        )

    found = [
        Method(
            "importance sampling",
            lambda n, seed: ImportanceSampler(plain, num_samples=n, seed=seed, **few),
        ),
        Method("SMC, posterior mean", smc(estimated, raw)),
        Method("SMC, tempered posterior mean", smc(estimated, mean)),
    ]
    if math.isfinite(float(reward.upper_bound)):
        # Whole runs are rejected, so that the budget and not the count ends the run.
        exact = Method(
            "rejection of whole runs",
            lambda n, seed: Rejection(plain, num_samples=n, max_draws=n, seed=seed, **few),
            rows_each=s.steps,
        )
        found.insert(1, exact)
    learned = _learned(model, base, target, s, progress)
    for name, value, rows, seconds in learned:
        found.append(Method(f"SMC, {name}", smc(plain, value), None, rows, seconds))
    name, value, rows, seconds = learned[-1]
    best = partial(BestOfN, base, reward=reward, n=2 * s.proposals, **few)
    blocks = partial(
        BlockBestOfN, foreseeing, reward=reward, value=raw, n=s.proposals, block=10, **few
    )
    return [
        *found,
        Method(f"LCB, {name}", lcb(plain, value, s.acceptances), None, rows, seconds),
        Method("LCB, tempered posterior mean", lcb(estimated, mean, 0)),
        Method(f"SVDD, {name}", svdd(plain, value), None, rows, seconds),
        Method("SVDD, tempered posterior mean", svdd(estimated, mean)),
        Method(f"best of {2 * s.proposals} runs", lambda n, seed: best(num_samples=n, seed=seed)),
        Method(
            f"best of {s.proposals} by blocks", lambda n, seed: blocks(num_samples=n, seed=seed)
        ),
    ]


def _learned(
    model: Denoiser,
    base: Callable[[], Tensor],
    target: Target,
    settings: SteeringSettings,
    progress: bool | None,
) -> list[tuple[str, Any, int, float]]:
    """Learned values with their names, network rows and seconds, the one to rely on last."""
    s = settings
    twist = learn_twists(
        base,
        reward=target.reward,
        beta=target.beta,
        num_particles=s.training_paths,
        rounds=1,
        steps=max(1, s.training_updates // 4),
        seed=s.seed,
        progress=progress,
    )
    report = twist.report
    assert report is not None
    found: list[tuple[str, Any, int, float]] = [
        ("learned twist", twist, report.paths * s.steps, report.seconds)
    ]
    if math.isfinite(float(target.reward.upper_bound)):
        value = fit_bounded_value(
            model,
            target.reward,
            target.beta,
            steps=s.steps,
            num_paths=2 * s.training_paths,
            updates=s.training_updates,
            seed=s.seed,
            progress=progress,
        )
        fit = value.report
        found.append(("learned probability", value, fit.rows, fit.seconds))
    return found
