# SPDX-License-Identifier: Apache-2.0
"""Joins runs of one target into one result."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyro_tilt.infer.certificate import weakest
from pyro_tilt.infer.cost import Cost
from pyro_tilt.infer.evidence import chain_error, equal_log_weights
from pyro_tilt.infer.weighted_samples import BaseDraws, WeightedSamples
from pyro_tilt.ops.importance import as_double, log_mean_exp
from pyro_tilt.ops.psis import pareto_smooth

if TYPE_CHECKING:
    from pyro_tilt.infer.smc.paths import Paths


def merge(*results: WeightedSamples) -> WeightedSamples:
    r"""
    Pools independent runs of one target; each stays visible as a chain.

    Weighted runs keep their raw weights, so that a run counts by its evidence and the pooled
    mean weight is the pooled evidence :math:`\sum_c n_c Z_c / \sum_c n_c`. Runs of draws without
    weights count by their number. Where both kinds meet, a draw without weights enters with the
    weight :math:`Z_c` of its run. Where a run has no evidence (nan), neither has the pooled one.
    The certificate is the weakest one (:func:`~pyro_tilt.infer.weakest`), costs add, ``stats`` keep
    the entries that all runs have, ``steps`` are stacked along the chains (runs with fewer steps
    are filled with nan, -1 or False). Of ``info``, ``total_...``, ``num_...`` and ``..._rows``
    entries, ``wasted`` and ``capped`` add, ``..._upper`` bounds take the largest,
    ``acceptance_rate`` is that of the pooled proposals, and other entries average over the draws.

    :param results: at least one result.
    :returns: the pooled result; the very same one where there is only one.
    :raises ValueError: for no result, or for runs whose targets, betas or sites differ.

    >>> import torch
    >>> from pyro_tilt.infer.certificate import Certificate
    >>> def run(log_weight, num):
    ...     return WeightedSamples(
    ...         kind="weighted",
    ...         samples={"x": torch.zeros(num)},
    ...         log_weights=torch.full((num,), log_weight),
    ...         certificate=Certificate(target="joint tilt", law="consistent"),
    ...     )
    >>> pooled = merge(run(0.0, 30), run(1.0, 10))
    >>> pooled.chain_sizes, round(pooled.log_normalizer.exp().item(), 4)
    ((30, 10), 1.4296)
    """
    if not results:
        raise ValueError("merge needs at least one result")
    if len(results) == 1:
        return results[0]
    _check_same(results)
    kind = _kind(results)
    sizes = tuple(n for result in results for n in result.chain_sizes)
    chains = torch.cat([result.chain_log_normalizers for result in results])
    if kind == "weighted":
        log_weights = torch.cat([_entering_weights(result) for result in results])
        value = log_mean_exp(log_weights)
        if any(bool(result.log_normalizer.isnan()) for result in results):
            value = torch.full_like(value, math.nan)
    else:
        share = chains.new_tensor([len(result) for result in results])
        evidence = torch.stack([result.log_normalizer for result in results])
        value = torch.logsumexp(evidence + share.log(), 0) - math.log(sum(sizes))
        log_weights = equal_log_weights(value, sum(sizes))
    smoothed, pareto_k = _smoothed(results, log_weights)
    return WeightedSamples(
        kind=kind,
        samples={name: _cat(results, "samples", name) for name in results[0].samples},
        log_weights=log_weights,
        log_normalizer=value,
        log_normalizer_error=_error(results, chains, sizes),
        certificate=weakest(result.certificate for result in results),
        cost=sum((result.cost for result in results), Cost()),
        stats={name: _cat(results, "stats", name) for name in _common(results, "stats")},
        steps={name: _stack_steps(results, name) for name in _common(results, "steps")},
        beta=results[0].beta,
        psis_log_weights=smoothed,
        pareto_k=pareto_k,
        residual_log_weights=_residuals(results),
        info={name: _pooled_info(results, name) for name in _common(results, "info")},
        base=_bases(results),
        chain_sizes=sizes,
        chain_log_normalizers=chains,
        sampler=" + ".join(dict.fromkeys(result.sampler for result in results if result.sampler)),
        program=results[0].program,
        args=results[0].args,
        kwargs=results[0].kwargs,
        paths=_paths(results),
    )


def normalized_residuals(result: WeightedSamples) -> Tensor:
    """
    The residual log weights, with mean weight one within each chain.

    The exact correction of a run has mean one under the run's own law, but it is only known up
    to a factor, which differs between runs whose baselines differ.

    :param result: a result; without residual weights they are all one.
    :returns: log weights ``(N,)``.
    """
    if result.residual_log_weights is None:
        return torch.zeros_like(result.log_weights)
    parts = torch.split(as_double(result.residual_log_weights), list(result.chain_sizes))
    return torch.cat([part - log_mean_exp(part) if len(part) else part for part in parts])


def _check_same(results: Sequence[WeightedSamples]) -> None:
    readers: dict[str, Callable[[WeightedSamples], object]] = {
        "targets": lambda result: result.certificate.target,
        "betas": lambda result: result.beta,
        "sites": lambda result: {
            name: tuple(value.shape[1:]) for name, value in sorted(result.samples.items())
        },
    }
    for name, reader in readers.items():
        first = reader(results[0])
        for number, result in enumerate(results[1:], start=1):
            if reader(result) != first:
                raise ValueError(
                    f"only runs of one target merge, but the {name} of result 0 and result "
                    f"{number} differ: {first!r} and {reader(result)!r}"
                )


def _kind(results: Sequence[WeightedSamples]) -> str:
    kinds = {result.kind for result in results}
    if len(kinds) == 1:
        return kinds.pop()
    return next(kind for kind in ("weighted", "chain", "transport") if kind in kinds)


def _entering_weights(result: WeightedSamples) -> Tensor:
    if result.kind == "weighted":
        return result.log_weights
    if not bool(result.log_normalizer.isfinite()):
        raise ValueError(
            f"{result.kind} draws merge with weighted ones by their evidence, but the "
            f"log_normalizer of the {result.sampler or result.kind} run is "
            f"{float(result.log_normalizer)}"
        )
    return result.log_normalizer.expand(len(result))


def _error(results: Sequence[WeightedSamples], chains: Tensor, sizes: Sequence[int]) -> Tensor:
    errors = torch.stack([result.log_normalizer_error for result in results])
    # A normaliser that is known has no error to estimate from a spread.
    if bool((errors == 0).all()):
        return errors[0]
    # Runs that know no error of theirs and agree to the last digit state a convention.
    stated = bool(errors.isnan().all()) and bool((chains == chains[0]).all())
    return errors[0] if stated else chain_error(chains, sizes)


def _smoothed(
    results: Sequence[WeightedSamples], log_weights: Tensor
) -> tuple[Tensor | None, float | None]:
    if all(result.psis_log_weights is None for result in results):
        known = [result.pareto_k for result in results if result.pareto_k is not None]
        return None, max(known, default=None)
    smoothed, shape = pareto_smooth(log_weights)
    return smoothed, float(shape)


def _residuals(results: Sequence[WeightedSamples]) -> Tensor | None:
    if all(result.residual_log_weights is None for result in results):
        return None
    return torch.cat([normalized_residuals(result) for result in results])


def _bases(results: Sequence[WeightedSamples]) -> BaseDraws | None:
    bases = [result.base for result in results if result.base is not None]
    if not bases:
        return None
    return BaseDraws(
        reward=torch.cat([base.reward for base in bases]),
        log_factors=torch.cat([base.log_factors for base in bases]),
    )


def _paths(results: Sequence[WeightedSamples]) -> Paths | None:
    kept = [result.paths for result in results if result.paths is not None]
    return type(kept[0]).joined(kept) if len(kept) == len(results) else None


def _common(results: Sequence[WeightedSamples], group: str) -> list[str]:
    first, *others = (getattr(result, group) for result in results)
    return [name for name in first if all(name in other for other in others)]


def _cat(results: Sequence[WeightedSamples], group: str, name: str) -> Tensor:
    return torch.cat([getattr(result, group)[name] for result in results])


def _stack_steps(results: Sequence[WeightedSamples], name: str) -> Tensor:
    rows = [
        row
        for result in results
        for row in (result.steps[name] if result.num_chains > 1 else result.steps[name][None])
    ]
    length = max(row.shape[0] for row in rows)
    first = rows[0]
    fill = math.nan if first.is_floating_point() else 0 if first.dtype == torch.bool else -1
    stacked = first.new_full((len(rows), length, *first.shape[1:]), fill)
    for chain, row in enumerate(rows):
        stacked[chain, : row.shape[0]] = row
    return stacked


def _pooled_info(results: Sequence[WeightedSamples], name: str) -> float:
    values = [result.info[name] for result in results]
    counts = [len(result) for result in results]
    counts_up = name.startswith(("total_", "num_")) or name.endswith("_rows")
    if counts_up or name in ("wasted", "capped"):
        return float(sum(values))
    if name.endswith("_upper"):
        return max(values)
    if name == "acceptance_rate" and all(value > 0 for value in values):
        return sum(counts) / sum(n / value for n, value in zip(counts, values))
    return sum(n * value for n, value in zip(counts, values)) / max(sum(counts), 1)
