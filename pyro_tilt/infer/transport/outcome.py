# SPDX-License-Identifier: Apache-2.0
"""From proximal steps to a result: which map moves which draw, the objective, the certificate."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyro_tilt.infer.certificate import Certificate
from pyro_tilt.infer.pooled import BASE_DRAWS_KEPT
from pyro_tilt.infer.sampler import Run
from pyro_tilt.infer.weighted_samples import BaseDraws, WeightedSamples
from pyro_tilt.ops.proximal import BallPlan, ProximalStep

if TYPE_CHECKING:
    from pyro_tilt.infer.transport.oracle import ProximalOracle
    from pyro_tilt.infer.transport.proximal_transport import ProximalTransport

__all__ = ["Outcome", "transport_result"]

TARGET = "transport optimum"
# One-sided normal quantile of the bounds for the base law.
_CONFIDENCE, _QUANTILE = 0.95, 1.6448536


@dataclass(frozen=True, eq=False)
class Outcome:
    """
    Moved draws and what they attain.

    :ivar step: where each draw went.
    :ivar penalty: the penalty, or the multiplier of a ball.
    :ivar value: the objective, a mean over draws.
    :ivar dual: an upper bound on it.
    :ivar upper: its terms, (n,).
    :ivar shortfall: the terms of the duality gap, (n,).
    :ivar cost: mean cost of the plan.
    :ivar mixing: odds of the farther of two maps, None under a penalty.
    :ivar far: which draws it moved.
    """

    step: ProximalStep
    penalty: float
    value: float
    dual: float
    upper: Tensor
    shortfall: Tensor
    cost: float
    mixing: float | None = None
    far: Tensor | None = None

    @property
    def gap(self) -> float:
        """What the best law exceeds this one by on the sampled base, at most."""
        return max(self.dual - self.value, 0.0)

    @classmethod
    def penalised(cls, step: ProximalStep, penalty: float) -> Outcome:
        value, slack = step.value(penalty).double(), step.slack.double()
        mean = float(value.mean())
        return cls(
            step,
            penalty,
            value=mean,
            dual=mean + float(slack.mean()),
            upper=value + slack,
            shortfall=slack,
            cost=float(step.cost.double().mean()),
        )

    @classmethod
    def of_plan(cls, plan: BallPlan, generator: torch.Generator) -> Outcome:
        far = _assign(plan, generator)
        column = far.unsqueeze(-1)
        step = ProximalStep(
            torch.where(column, plan.far.points, plan.near.points),
            torch.where(far, plan.far.reward, plan.near.reward),
            torch.where(far, plan.far.cost, plan.near.cost),
            torch.where(far, plan.far.slack, plan.near.slack),
        )
        cost, slack = _mix(plan, "cost"), _mix(plan, "slack")
        upper = _mix(plan, "reward") - plan.penalty * cost + slack
        # Each draw is charged for its own cost above the radius.
        shortfall = slack - plan.penalty * (cost - plan.cost)
        return cls(
            step,
            plan.penalty,
            value=plan.reward,
            dual=plan.dual,
            upper=upper,
            shortfall=shortfall,
            cost=plan.cost,
            mixing=plan.mixing,
            far=far,
        )


def _mix(plan: BallPlan, name: str) -> Tensor:
    far, near = getattr(plan.far, name).double(), getattr(plan.near, name).double()
    return near if plan.mixing == 0.0 else plan.mixing * far + (1.0 - plan.mixing) * near


def _assign(plan: BallPlan, generator: torch.Generator) -> Tensor:
    """
    Which draws take the farther map: each with the odds of the plan.

    Systematic sampling along the order of the extra cost keeps the mean cost of the draws within
    one draw's extra cost over n of the plan's.
    """
    extra = (plan.far.cost - plan.near.cost).cpu()
    count = len(extra)
    if plan.mixing in (0.0, 1.0):
        return torch.full_like(plan.far.cost, plan.mixing, dtype=torch.bool)
    start = float(torch.rand((), generator=generator, dtype=torch.float64))
    ticks = (torch.arange(count + 1, dtype=torch.float64) * plan.mixing + start).floor()
    chosen = torch.empty(count, dtype=torch.bool)
    chosen[extra.argsort()] = ticks[1:] > ticks[:-1]
    return chosen.to(plan.far.cost.device)


def transport_result(
    sampler: ProximalTransport, run: Run, work: Any, base: Any, outcome: Outcome
) -> WeightedSamples:
    """
    The result of one chain.

    :param sampler: the sampler.
    :param run: the chain.
    :param work: the draws and the oracle of the chain.
    :param base: the base draws.
    :param outcome: the moved draws.
    """
    step, count = outcome.step, len(base.reward)
    reward = _raw_reward(sampler, base, step)
    stats = {
        "reward": reward,
        "transport_cost": step.cost,
        "gap": step.slack,
        "base_reward": base.reward,
        "base_value": base.value,
    }
    if outcome.far is not None:
        stats["far"] = outcome.far
    zeros = torch.zeros(count, dtype=torch.float64, device=reward.device)
    cost = run.cost(count)
    return WeightedSamples(
        kind="transport",
        samples={run_site(sampler): step.points.reshape(base.value.shape)},
        log_weights=zeros,
        log_normalizer=zeros.new_tensor(math.nan),
        log_normalizer_error=zeros.new_tensor(math.nan),
        certificate=_certificate(sampler, work.oracle, outcome),
        cost=replace(cost, reward_calls=work.calls),
        stats=stats,
        info=_info(outcome),
        base=BaseDraws(
            reward=base.reward[:BASE_DRAWS_KEPT].clone(),
            log_factors=zeros[: min(count, BASE_DRAWS_KEPT)].clone(),
        ),
        sampler=type(sampler).__name__,
        program=sampler.program,
        args=run.args,
        kwargs=run.kwargs,
    )


def run_site(sampler: ProximalTransport) -> str:
    """The name under which the moved value is returned."""
    return sampler._site


def _raw_reward(sampler: ProximalTransport, base: Any, step: ProximalStep) -> Tensor:
    if sampler.beta == 1.0:
        return step.reward
    return sampler.reward(step.points.reshape(base.value.shape)).detach()


def _info(outcome: Outcome) -> dict[str, float]:
    count = len(outcome.upper)
    error = math.nan
    spread = math.nan
    if count > 1:
        error = float(outcome.upper.std()) / math.sqrt(count)
        spread = float(outcome.shortfall.std()) / math.sqrt(count)
    upper = outcome.gap + (_QUANTILE * spread if math.isfinite(spread) else math.inf)
    info = {
        "penalty": outcome.penalty,
        "value": outcome.value,
        "dual_value": outcome.dual,
        "value_error": error,
        "gap_upper": upper,
        "transport_cost": outcome.cost,
    }
    if outcome.mixing is not None:
        info["mixing"] = outcome.mixing
    return info


def _certificate(
    sampler: ProximalTransport, oracle: ProximalOracle, outcome: Outcome
) -> Certificate:
    law, method = oracle.law, oracle.method
    sampled = (
        "the sampled base in place of its law: info['gap_upper'] is a "
        f"{_CONFIDENCE:.0%} bound for the law, by the central limit theorem"
    )
    ball = sampler.radius is not None
    if law == "exact" and not ball:
        return Certificate(
            target=TARGET,
            law="exact",
            gap=0.0,
            covers=f"independent draws, each moved to its optimum ({method}), up to rounding",
        )
    if not math.isfinite(outcome.gap):
        return Certificate(
            target=TARGET,
            law="search",
            gap=outcome.gap,
            covers=f"local maxima ({method}), of which nothing bounds the gap",
            excludes="the sampled base in place of its law",
        )
    return Certificate(
        target=TARGET,
        law="bounded",
        gap=outcome.gap,
        confidence=1.0,
        covers=f"the duality gap on the sampled base ({method}), up to rounding"
        + ("; the mean cost of the randomised plan is within radius" if ball else ""),
        excludes="; ".join(
            [
                sampled,
                *(["how the mean cost under that law differs from radius"] if ball else []),
                *([oracle.assumes] if oracle.assumes else []),
            ]
        ),
    )
