# SPDX-License-Identifier: Apache-2.0
"""What groups of chains hand back, at the end or where a run broke off."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyro_tilt.infer.certificate import Certificate
from pyro_tilt.infer.errors import SamplerWarning
from pyro_tilt.infer.sampler import Run
from pyro_tilt.infer.smc.paths import Paths
from pyro_tilt.infer.smc.plan import StepPlan
from pyro_tilt.infer.stepwise.certificate import stepwise_certificate
from pyro_tilt.infer.stepwise.chains import PROBS, Chains, StepSummary
from pyro_tilt.infer.weighted_samples import WeightedSamples
from pyro_tilt.ops.importance import effective_sample_size, log_evidence

if TYPE_CHECKING:
    from pyro_tilt.infer.stepwise.stepwise_lcb import StepwiseLCB

__all__ = ["finished", "interim"]


def finished(sampler: StepwiseLCB, run: Run, groups: Sequence[Chains]) -> WeightedSamples:
    """The draws of chains that went through all steps."""
    terms = torch.cat([g.clipping for g in groups])
    capped = torch.cat([g.capped for g in groups])
    certificate = stepwise_certificate(
        terms,
        capped,
        width=_widest([g.width() for g in groups]),
        confidence=sampler.confidence,
        may_cap=sampler.max_proposals is not None,
    )
    result = _samples(sampler, run, groups, certificate)
    log_path = torch.cat([g.log_path for g in groups])
    if sampler.path_weights and bool((log_path > -math.inf).any()):
        log_z, error = log_evidence(log_path)
        result.log_weights = torch.full_like(terms, float(log_z))
        result.log_normalizer, result.log_normalizer_error = log_z, error
        result.residual_log_weights = log_path - log_z
        weights = result.residual_log_weights.exp()
        result.info["target_total_variation"] = min(1.0, 0.5 * float((weights - 1.0).abs().mean()))
        result.info["path_effective_sample_size"] = float(effective_sample_size(log_path))
    _warn(sampler, len(terms), int(capped.sum()), terms)
    return result


def interim(sampler: StepwiseLCB, run: Run, chains: Chains) -> WeightedSamples | None:
    """The draws of chains that broke off, after their last whole step; None before the start."""
    if chains.steps_done < 0:
        return None
    done = chains.steps_done - 1
    place = f"up to step {done}" if done >= 0 else "before the first step"
    certificate = Certificate(
        target=f"value-tilted chain {place}",
        law="consistent",
        budget="num_inner, with epsilon to 0,",
        covers=f"the {chains.steps_done} steps that all chains had taken when the run broke off",
        excludes="all later steps, and the error of the values",
        estimated_total_variation=min(1.0, float(chains.clipping.mean())),
    )
    return _samples(sampler, run, [chains], certificate)


def _samples(
    sampler: StepwiseLCB, run: Run, groups: Sequence[Chains], certificate: Certificate
) -> WeightedSamples:
    plan = run.proposal
    assert isinstance(plan, StepPlan)
    terms = torch.cat([g.clipping for g in groups])
    proposals = torch.cat([g.proposals for g in groups])
    placed = [plan.layout(g.values, {}, g.size) for g in groups]
    samples = {name: torch.cat([each[name] for each in placed]) for name in placed[0]}
    capped = torch.cat([g.capped for g in groups])
    stats = {"proposals": proposals, "capped": capped, "clipping": terms}
    if groups[0].rewards:
        stats["reward"] = torch.cat([plan._combine(g.rewards) for g in groups])
    steps = _steps(groups)
    return WeightedSamples(
        kind="iid",
        samples=samples,
        log_weights=torch.zeros_like(terms),
        log_normalizer=terms.new_tensor(math.nan),
        log_normalizer_error=terms.new_tensor(math.nan),
        certificate=certificate,
        cost=_cost(run, groups),
        stats=stats,
        steps=steps,
        beta=plan.beta if "reward" in stats else None,
        info=_info(groups, steps, proposals, terms),
        sampler="LCB",
        program=sampler.program,
        args=run.args,
        kwargs=run.kwargs,
        paths=Paths([g.paths for g in groups if g.paths]) if sampler.keep_paths else None,
    )


def _info(
    groups: Sequence[Chains], steps: dict[str, Tensor], proposals: Tensor, terms: Tensor
) -> dict[str, float]:
    shares = [g.size / len(terms) for g in groups]
    per_step = steps["proposals"].mean() if steps else math.nan
    return {
        "proposals_per_step": float(per_step),
        "start_proposals": sum(s * g.start_proposals for s, g in zip(shares, groups)),
        "total_proposals": float(proposals.sum()),
        "step_rows": float(sum(g.messenger.rows for g in groups)),
        "clipping": float(terms.mean()),
    }


def _cost(run: Run, groups: Sequence[Chains]) -> Any:
    steps = groups[0].messenger.num_steps
    rows = sum(g.messenger.rows for g in groups)
    tail = sum(g.messenger.tail_rows for g in groups)
    return replace(
        run.cost(-(-rows // max(1, steps))),
        reward_calls=tail * run.proposal.num_rewards,
        value_calls=sum(g.value_calls for g in groups),
    )


def _steps(groups: Sequence[Chains]) -> dict[str, Tensor]:
    """Per step, over all chains; quantiles are averaged over groups."""
    if not groups[0].summaries:
        return {}
    total = sum(g.size for g in groups)

    def mean(read: Callable[[Any], float]) -> Tensor:
        rows = [[g.size / total * read(step) for step in g.summaries] for g in groups]
        return torch.tensor(rows, dtype=torch.float64).sum(0)

    proposals = mean(lambda step: step.proposals)
    found = {
        "proposals": proposals,
        "acceptance_rate": 1.0 / proposals,
        "clipping": mean(lambda step: step.clipped),
    }
    for k, prob in enumerate(PROBS):
        found[f"baseline_{round(100 * prob):02d}"] = mean(partial(_quantile, k))
    return found


def _quantile(k: int, step: StepSummary) -> float:
    return step.baseline[k]


def _widest(widths: Sequence[float | None]) -> float | None:
    known = [width for width in widths if width is not None]
    return max(known) if len(known) == len(widths) else None


def _warn(sampler: StepwiseLCB, count: int, capped: int, terms: Tensor) -> None:
    if capped:
        warnings.warn(
            f"{capped} of {count} trajectories hit max_proposals = "
            f"{sampler.max_proposals} at some step and hold a rejected value there; they are "
            'flagged in stats["capped"] and counted in the certificate',
            SamplerWarning,
            stacklevel=6,
        )
    aim = sampler.aim
    if aim is None or count < 100:
        return
    clipping, error = float(terms.mean()), float(terms.std()) / math.sqrt(count)
    if clipping > aim + 4.0 * error:
        warnings.warn(
            f"the clipped mass is estimated at {clipping:.3g} over all steps, above "
            f"epsilon = {aim:g}: {sampler.remedy}, or use path_weights",
            SamplerWarning,
            stacklevel=6,
        )
