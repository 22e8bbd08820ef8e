# SPDX-License-Identifier: Apache-2.0
"""Results as ArviZ containers."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyro_tilt._version import __version__
from pyro_tilt.diagnostics.arviz_compat import make_container
from pyro_tilt.infer.seeding import preserved_rng
from pyro_tilt.ops.resampling import systematic

if TYPE_CHECKING:
    import xarray as xr

    from pyro_tilt.infer.weighted_samples import WeightedSamples

_LEADING = ("chain", "draw")


def to_arviz(
    result: WeightedSamples,
    resample: bool = True,
    *,
    generator: torch.Generator | None = None,
) -> Any:
    r"""
    A result as ``arviz.InferenceData`` (ArviZ 0.x) or ``xarray.DataTree`` (ArviZ 1.x).

    Chains are independent runs. Within one run of an importance or particle sampler the draws
    are no Markov chain, so that ``arviz.ess`` and ``arviz.rhat`` say something about Monte Carlo
    error only from about four runs on. Runs of unequal size, or with no mass, are pooled into one
    chain, with the variable ``run`` in ``sample_stats``.

    Groups:

    - ``posterior``: the latent sites, equally weighted by systematic resampling within each
      chain, because the summaries and plots of ArviZ ignore weights; with ``resample=False`` the
      weighted particles as they are.
    - ``sample_stats``: ``log_weight`` of these draws, normalised so that its logsumexp over each
      chain is 0 (hence constant after resampling); ``particle``, the index of the draw in the
      result; ``particle_log_weight``, after resampling, the normalised raw log weight that the
      particle had; ``unique``, 1 at the first copy of a particle in its chain; ``reward``, and
      what else the sampler noted per draw, gathered with ``particle``.
    - ``sample_stats_prior``: ``reward`` and ``log_factors`` of base proposals, if kept.
    - ``smc_stats``: what the sampler noted per step, over chain, a singleton draw, and step.
    - ``observed_data``: observed sites, where the program can be run to read them.

    Booleans become int8, half precision becomes float32, and a ``/`` in a name becomes ``|``.

    :param result: the result of a sampler.
    :param resample: make the posterior equally weighted.
    :param generator: of the resampling; by default one with a fixed seed of its own, so that an
        export repeats and leaves the random state alone.
    :raises ValueError: without draws, or if every weight is zero.

    >>> from pyro_tilt.infer import ImportanceSampler
    >>> import pyro, pyro.distributions as dist
    >>> program = lambda: pyro.sample("x", dist.Normal(0.0, 1.0))
    >>> result = ImportanceSampler(program, reward=lambda x: x, num_samples=1000, seed=0).run()
    >>> dict(to_arviz(result).posterior["x"].sizes)
    {'chain': 1, 'draw': 1000}
    """
    raw = result.log_weights
    if not bool((raw > -math.inf).any()):
        raise ValueError(f"the result has no draw of positive weight to export ({len(raw)} draws)")
    chains, pooled = _chains(result)
    if resample:
        own = generator or torch.Generator(raw.device).manual_seed(0)
        smoothed = result.analysis_log_weights()
        rows = [c if smoothed is None else _equalise(c, smoothed, own) for c in chains]
    else:
        rows = chains
    particle = torch.stack(rows)
    total = torch.stack([raw[chain].logsumexp(0) for chain in chains])
    weight = raw[particle] - total[:, None]
    stats = _gather(result.stats, particle)
    stats |= {
        "particle": particle,
        "unique": torch.stack([_first_copies(row) for row in particle]),
        "log_weight": weight,
    }
    if resample:
        equal = torch.full_like(weight, -math.log(weight.shape[1]))
        stats |= {"log_weight": equal, "particle_log_weight": weight}
    if pooled:
        stats["run"] = _run_of(result)[particle]
    groups = {
        "posterior": _dataset(_gather(result.samples, particle)),
        "sample_stats": _dataset(stats),
        **_prior_stats(result),
        **_smc_stats(result),
        **_observed(result),
    }
    attrs = _attributes(result, resample)
    for dataset in groups.values():
        dataset.attrs.update(inference_library="pyro_tilt", inference_library_version=__version__)
    groups["posterior"].attrs.update(attrs)
    return make_container(groups, attrs)


def _chains(result: WeightedSamples) -> tuple[list[Tensor], bool]:
    """Indices of each chain, and whether independent runs had to be pooled into one."""
    index = torch.arange(len(result), device=result.log_weights.device)
    chains = list(index.split(result.chain_sizes))
    equal = len(set(result.chain_sizes)) == 1
    if equal and all(bool((result.log_weights[chain] > -math.inf).any()) for chain in chains):
        return chains, False
    return [index], True


def _gather(values: Mapping[str, Tensor], particle: Tensor) -> dict[str, Tensor]:
    return {name: value[particle.to(value.device)] for name, value in values.items()}


def _equalise(chain: Tensor, log_weights: Tensor, generator: torch.Generator) -> Tensor:
    """Sorted indices of equally weighted draws; draws of equal weight stay as they are."""
    log_weight = log_weights[chain]
    if bool((log_weight == log_weight[0]).all()):
        return chain
    return chain[systematic(log_weight, len(chain), generator=generator).sort().values]


def _first_copies(particle: Tensor) -> Tensor:
    first = torch.ones_like(particle, dtype=torch.bool)
    first[1:] = particle[1:] != particle[:-1]
    return first


def _run_of(result: WeightedSamples) -> Tensor:
    sizes = torch.tensor(result.chain_sizes, device=result.log_weights.device)
    return torch.repeat_interleave(torch.arange(len(sizes), device=sizes.device), sizes)


def _prior_stats(result: WeightedSamples) -> dict[str, xr.Dataset]:
    if result.base is None or len(result.base.reward) == 0:
        return {}
    base = {"reward": result.base.reward, "log_factors": result.base.log_factors}
    return {"sample_stats_prior": _dataset({name: v.unsqueeze(0) for name, v in base.items()})}


def _smc_stats(result: WeightedSamples) -> dict[str, xr.Dataset]:
    if not result.steps:
        return {}
    rows = {n: v if result.num_chains > 1 else v[None] for n, v in result.steps.items()}
    names = {"log_normalizer": "log_evidence"}
    variables = {names.get(name, name): value.unsqueeze(1) for name, value in rows.items()}
    return {"smc_stats": _dataset(variables, leading=(*_LEADING, "step"))}


def _observed(result: WeightedSamples) -> dict[str, xr.Dataset]:
    """Values of the observed sites, from one run of the program that disturbs no random state."""
    program = result.program
    no_factors = result.base is not None and not bool((result.base.log_factors != 0.0).any())
    if not callable(program) or no_factors:
        return {}
    from pyro import poutine

    with preserved_rng(), poutine.block(), poutine.mask(mask=False):
        trace = poutine.trace(program).get_trace(*result.args, **result.kwargs)
    data: dict[str, Any] = {n: s["value"] for n, s in trace.nodes.items() if _is_data(s)}
    return {"observed_data": _dataset(data, leading=())} if data else {}


def _is_data(site: Mapping[str, Any]) -> bool:
    """Whether a site is observed, no factor, and not a random part of a larger data set."""
    if site["type"] != "sample" or not site["is_observed"]:
        return False
    if site["infer"].get("is_auxiliary") or site["infer"].get("_deterministic"):
        return False
    frames = site["cond_indep_stack"]
    return not any(f.full_size is not None and f.size < f.full_size for f in frames)


def _dataset(variables: Mapping[str, Tensor], leading: tuple[str, ...] = _LEADING) -> xr.Dataset:
    """Variables with their leading dimensions named and the others numbered, as ArviZ does."""
    import xarray as xr

    names = _safe_names(variables, {*leading, "step"})
    arrays, coords = {}, {}
    for name, value in variables.items():
        safe, data = names[name], _plain(value)
        dims = (*leading, *(f"{safe}_dim_{i}" for i in range(data.ndim - len(leading))))
        arrays[safe] = xr.Variable(dims, data)
        coords.update({dim: np.arange(size) for dim, size in zip(dims, data.shape)})
    return xr.Dataset(arrays, coords=coords)


def _safe_names(names: Iterable[str], reserved: set[str]) -> dict[str, str]:
    """Names that netCDF and xarray take: no slash, and no dimension's name."""
    safe: dict[str, str] = {}
    for name in names:
        new = name.replace("/", "|")
        while new in reserved or new in safe.values():
            new += "_"
        safe[name] = new
    return safe


def _plain(value: Tensor) -> np.ndarray:
    value = value.detach().cpu()
    if value.dtype is torch.bool:
        value = value.to(torch.int8)
    elif value.dtype in (torch.float16, torch.bfloat16):
        value = value.to(torch.float32)
    return value.numpy()


def _attributes(result: WeightedSamples, resample: bool) -> dict[str, str | float | int]:
    """Strings and numbers alone, which netCDF can hold."""
    attrs: dict[str, str | float | int] = {
        "inference_library": "pyro_tilt",
        "inference_library_version": __version__,
        "sampler": result.sampler,
        "kind": result.kind,
        "resampled": int(resample),
        "sampling_time": float(result.cost.seconds),
        "log_evidence": float(result.log_normalizer),
        "log_evidence_error": float(result.log_normalizer_error),
        "certificate": json.dumps(result.certificate.to_dict()),
        "cost": json.dumps(result.cost.to_dict()),
    }
    if result.beta is not None:
        attrs["beta"] = float(result.beta)
    if result.pareto_k is not None:
        attrs["pareto_k"] = float(result.pareto_k)
    return attrs
