# SPDX-License-Identifier: Apache-2.0
"""Gathers the values and log weights of one pass over many particles, and no trace."""

from collections.abc import Mapping
from typing import Any

import torch
from pyro.distributions import Delta, MaskedDistribution
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_tilt.poutine import fast_normal
from pyro_tilt.poutine.tilt_factor import Beta
from pyro_tilt.poutine.tilted_site import (
    base_of,
    find_tilted,
    log_correction,
    log_normalizer,
    samples_exactly,
)


class WeightMessenger(Messenger):
    """
    Records values of latent sites and the log weight of each particle.

    To be entered outside a :class:`~pyro_tilt.poutine.ParticlePlate`.

    :param size: number of particles.
    :param dim: batch dimension of the particles; None for a plain run of one particle.
    :param replay: values for latent sites, whose log density then enters the weight.
    :param score_latents: whether the log density of sampled sites enters too (for guides).
    :param record: whether to keep the message of every site, as a trace does, in ``nodes``.
    :param room: memory for the values of sites that are drawn in place, by name.
    """

    def __init__(
        self,
        size: int,
        dim: int | None,
        *,
        replay: Mapping[str, Tensor] | None = None,
        score_latents: bool = False,
        record: bool = False,
        room: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.size = size
        self.rank = 0 if dim is None else -dim
        self.replay = {} if replay is None else replay
        self.score_latents = score_latents
        self.nodes: dict[str, Any] | None = {} if record else None
        self.room = {} if room is None else room
        self.values: dict[str, Tensor] = {}
        self.subsamples: dict[str, Tensor] = {}
        self.factors: dict[str, None] = {}
        self.weighted: dict[str, None] = {}
        self.tilts: list[tuple[str, Tensor, Beta]] = []
        self._total: Tensor | None = None
        self._tilted: dict[str, Any] = {}

    @property
    def log_factors(self) -> Tensor | None:
        """Sum of the log factors, (size,) in float64; None where there are none."""
        total = self._total
        return None if total is None else total.expand(self.size).contiguous()

    def _process_message(self, msg: Any) -> None:
        # The look-up by name that this replaces costs as much as a site of few particles.
        if msg["type"] == "sample":
            self._pyro_sample(msg)
        else:
            super()._process_message(msg)

    def _postprocess_message(self, msg: Any) -> None:
        if msg["type"] == "sample":
            self._pyro_post_sample(msg)
        else:
            super()._postprocess_message(msg)

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or msg["done"]:
            return
        name = msg["name"]
        if name in self.replay:
            msg["value"], msg["done"] = self.replay[name], True
            return
        fn = msg["fn"]
        # What is handed to the law is a sample shape, which the short way knows nothing of.
        if fast_normal.draws_plainly(fn) and not (msg["args"] or msg["kwargs"]):
            msg["value"], msg["done"] = fast_normal.draw(fn, self.room.get(name)), True
            return
        tilted = find_tilted(fn)
        if tilted is not None and not samples_exactly(tilted):
            # A guide is scored by the law it is drawn from, which is then its base.
            if not self.score_latents:
                self._tilted[name] = fn, log_normalizer(tilted, name=name)
                self.weighted[name] = None
            msg["fn"] = base_of(fn)

    def _pyro_post_sample(self, msg: Any) -> None:
        name, fn, value = msg["name"], msg["fn"], msg["value"]
        infer = msg["infer"]
        if self.nodes is not None and not infer.get("_do_not_trace"):
            self.nodes[name] = msg.copy()
        if type(fn).__name__ == "_Subsample":
            self.subsamples[name] = value
            return
        if infer.get("_do_not_trace"):
            return
        if name in self.values or name in self.factors:
            raise RuntimeError(f"multiple sample sites named '{name}'")
        if not msg["is_observed"]:
            self.values[name] = value
            if name in self._tilted:
                fn, log_z = self._tilted.pop(name)
                self._add(name, log_correction(fn, value, log_z, name=name), msg)
            elif self.score_latents or name in self.replay:
                self._add(name, fast_normal.density(fn, value), msg)
        elif is_deterministic(msg):
            self.values[name] = value
        else:
            self.factors[name] = None
            if msg["mask"] is False:
                return
            term = infer.get("tilt")
            if term is None:
                self._add(name, fast_normal.density(fn, value), msg)
            else:
                reward = scale_and_mask(term.reward, msg["scale"], msg["mask"])
                reward = self._per_particle(name, reward).expand(self.size)
                self.tilts.append((name, reward, term.beta))

    def _add(self, name: str, log_prob: Tensor, msg: Any) -> None:
        if msg["mask"] is not None or not (type(msg["scale"]) is float and msg["scale"] == 1.0):
            log_prob = scale_and_mask(log_prob, msg["scale"], msg["mask"])
        log_prob = self._per_particle(name, log_prob)
        total = self._total
        if total is None or total.dim() < log_prob.dim():
            self._total = log_prob.to(weight_dtype(log_prob), copy=True)
            if total is not None:
                self._total += total
        else:
            total += log_prob.to(total.dtype)

    def _per_particle(self, name: str, values: Tensor) -> Tensor:
        """Sums over all but the particle axis; 0-dim where there is no such axis."""
        if self.rank == 0 and values.numel() == 1:
            return values.reshape(())
        rank = values.dim()
        if rank == self.rank and values.shape[:1] == (self.size,):
            if values.numel() == self.size:
                return values.reshape(self.size)
            return values.sum(tuple(range(1, rank)), dtype=weight_dtype(values))
        if self.rank == 0 or rank < self.rank or (rank == self.rank and values.shape[0] == 1):
            return values.sum(dtype=weight_dtype(values))
        raise ValueError(
            f"site '{name}': its log weight has shape {tuple(values.shape)}, whose axis "
            f"{-self.rank} should hold the {self.size} particles and be the leftmost"
        )


def is_deterministic(site: Any) -> bool:
    """Whether a site only records a value: ``pyro.deterministic``, or what a reparam leaves."""
    if site["infer"].get("_deterministic"):
        return True
    fn = site["fn"]
    if not (site["is_observed"] and isinstance(fn, MaskedDistribution) and fn._mask is False):
        return False
    return isinstance(fn.base_dist, Delta)


def weight_dtype(values: Tensor) -> torch.dtype:
    """The dtype of log weights: float64, or float32 on a device without it."""
    return torch.float32 if values.device.type == "mps" else torch.float64
