# SPDX-License-Identifier: Apache-2.0
"""What one plain run of a program says about its sites."""

import math
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro.distributions import MaskedDistribution
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_tilt.poutine import fast_normal
from pyro_tilt.poutine.tilt_factor import TiltTerm, conform
from pyro_tilt.poutine.tilted_site import find_tilted
from pyro_tilt.poutine.weight_messenger import is_deterministic


@dataclass(frozen=True)
class Site:
    """
    A recorded site.

    :ivar shape: shape of its value in a plain run.
    :ivar batch_rank: number of batch dims in it; None for a deterministic site.
    :ivar in_place: whether it is drawn into memory at hand.
    """

    shape: torch.Size
    batch_rank: int | None
    dtype: torch.dtype
    device: torch.device
    in_place: bool = False


@dataclass
class ProgramSites:
    """
    The sites of a program.

    :ivar recorded: latent and deterministic sites by name, in order.
    :ivar latents: names of the latent ones.
    :ivar factors: names of observations, factors and tilts.
    :ivar tilts: the tilt terms.
    :ivar rank: the largest batch rank of any site.
    :ivar log_bound: upper bound on the log weight.
    :ivar unbounded: names of the sites for which none is known.
    :ivar quadrature: stated error of each latent ``Tilted`` site that is drawn by quadrature.
    :ivar subsampled: names of the plates that draw a part of their indices.
    """

    recorded: dict[str, Site] = field(default_factory=dict)
    latents: list[str] = field(default_factory=list)
    factors: list[str] = field(default_factory=list)
    tilts: list[TiltTerm] = field(default_factory=list)
    rank: int = 0
    log_bound: float = 0.0
    unbounded: list[str] = field(default_factory=list)
    quadrature: dict[str, float] = field(default_factory=dict)
    subsampled: list[str] = field(default_factory=list)

    def note_bound(self, name: str, bound: float) -> None:
        """Adds the bound of one site."""
        self.log_bound += bound
        if bound == math.inf:
            self.unbounded.append(name)


class SiteRecorder(Messenger):
    """Keeps the message of every sample site of a plain run, at half the price of a trace."""

    def __init__(self) -> None:
        super().__init__()
        self.nodes: dict[str, Any] = {}

    def _pyro_post_sample(self, msg: Any) -> None:
        if not msg["infer"].get("_do_not_trace"):
            self.nodes[msg["name"]] = msg.copy()


def read_sites(nodes: Mapping[str, Any], weighted: Container[str] = ()) -> ProgramSites:
    """
    Reads the sites of a plain run.

    :param nodes: the messages of its sample sites by name, as in a trace.
    :param weighted: names of latent sites that are drawn from another law and weighted.
    :raises ValueError: if a reward does not have the shape of its plates.
    :raises TypeError: if a latent site is not a tensor.
    """
    sites = ProgramSites()
    for name, site in nodes.items():
        if site_is_subsample(site):
            if (site["fn"].subsample_size or site["fn"].size) < site["fn"].size:
                sites.subsampled.append(name)
            continue
        frames = site["cond_indep_stack"]
        sites.rank = max([sites.rank, *(-f.dim for f in frames if f.dim is not None)])
        deterministic = is_deterministic(site)
        if not deterministic:
            sites.rank = max(sites.rank, len(getattr(site["fn"], "batch_shape", ())))
        if deterministic or not site["is_observed"]:
            sites.recorded[name] = _record(name, site, deterministic)
        if deterministic:
            continue
        if site["is_observed"]:
            sites.factors.append(name)
            term = site["infer"].get("tilt")
            if term is not None:
                conform(term.reward, frames, name=name)
                sites.tilts.append(term)
            sites.note_bound(name, _observed_bound(site, term))
        else:
            sites.latents.append(name)
            if name in weighted:
                sites.note_bound(name, math.inf)
            tilted = find_tilted(site["fn"])
            if tilted is not None and tilted.tractability.sampling == "quadrature":
                sites.quadrature[name] = tilted.tractability.error or 0.0
    return sites


def _record(name: str, site: dict[str, Any], deterministic: bool) -> Site:
    value = site["value"]
    if not isinstance(value, Tensor):
        raise TypeError(f"site '{name}': expected a tensor, got {type(value).__name__}")
    rank = None if deterministic else len(getattr(site["fn"], "batch_shape", ()))
    in_place = fast_normal.draws_plainly(site["fn"])
    return Site(value.shape, rank, value.dtype, value.device, in_place)


def _observed_bound(site: dict[str, Any], term: TiltTerm | None) -> float:
    fn, mask, scale = site["fn"], site["mask"], site["scale"]
    if mask is False or (isinstance(fn, MaskedDistribution) and fn._mask is False):
        return 0.0
    if term is None:
        return 0.0 if _is_discrete(fn) else math.inf
    bound, count = term.log_bound, term.reward.numel()
    if isinstance(mask, Tensor):
        bound = max(bound, 0.0)
    if bound == 0.0 or count == 0:
        return 0.0
    # A scale that is a tensor may depend on what was sampled, so its value bounds nothing.
    if isinstance(scale, Tensor):
        return math.inf if bound > 0.0 else 0.0
    return bound * count * scale


def _is_discrete(fn: Any) -> bool:
    try:
        return bool(fn.support.is_discrete)
    except (AttributeError, NotImplementedError):
        return False
