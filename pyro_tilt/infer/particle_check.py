# SPDX-License-Identifier: Apache-2.0
"""Compares a vectorised pass with plain runs of the same values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyro
import torch
from torch import Tensor

from pyro_tilt.infer.seeding import preserved_rng
from pyro_tilt.poutine.particle_plate import ParticlePlate
from pyro_tilt.poutine.weight_messenger import WeightMessenger

if TYPE_CHECKING:
    from pyro_tilt.infer.proposal import ProgramProposal


class _SiteWeights(WeightMessenger):
    """Keeps the log weight of every site apart, that of latent sites included."""

    def __init__(self, size: int, dim: int | None, **options: Any) -> None:
        super().__init__(size, dim, score_latents=True, **options)
        self.by_site: dict[str, Tensor] = {}

    def _add(self, name: str, log_prob: Tensor, msg: Any) -> None:
        self._total = None
        super()._add(name, log_prob, msg)
        assert self._total is not None
        self.by_site[name] = self._total.expand(self.size)

    def finish(self) -> dict[str, Tensor]:
        rewards = {name: reward.double() for name, reward, _ in self.tilts}
        return self.by_site | rewards


def check_particles(
    proposal: ProgramProposal, num_particles: int = 3, *, tolerance: float = 1e-3
) -> None:
    """
    Checks that a program treats its particles apart from one another.

    A program that pools particles, say by ``x.mean()`` over all of them, keeps every shape
    and is silently wrong. Here the values of each particle of a vectorised pass are put into
    a plain run, which must give every site the log density and every reward that it had in
    the pass. Random states are left as they were. A program whose plain runs disagree among
    themselves draws outside Pyro, and nothing is concluded about it.

    :param proposal: the proposal of the program; its guide is not looked at.
    :param num_particles: number of particles, at least 2.
    :param tolerance: allowed difference, relative and absolute.
    :raises ValueError: naming the first site that differs.
    :raises NotImplementedError: if a latent site has no density.

    >>> import pyro.distributions as dist
    >>> from pyro_tilt.infer import ProgramProposal
    >>> def pooled():
    ...     x = pyro.sample("x", dist.Normal(0.0, 1.0))
    ...     return pyro.sample("y", dist.Normal(x.mean(), 0.1))
    >>> check_particles(ProgramProposal(pooled))
    Traceback (most recent call last):
    ...
    ValueError: site 'y': ...
    """
    if num_particles < 2:
        raise ValueError(f"check_particles: num_particles must be at least 2, got {num_particles}")
    with preserved_rng(), torch.no_grad(), pyro.validation_enabled(False):
        dim = -1 - proposal.max_plate_nesting
        together = _SiteWeights(num_particles, dim)
        with together, ParticlePlate(num_particles, dim):
            proposal.program(*proposal.args, **proposal.kwargs)
        samples = proposal.place(together.values, num_particles)
        weights = together.finish()
        for i in range(num_particles):
            values = {name: value[i] for name, value in samples.items()} | together.subsamples
            alone = _alone(proposal, values)
            name = _first_difference(weights, alone, i, tolerance)
            if name is None or _first_difference(alone, _alone(proposal, values), 0, tolerance):
                continue
            raise ValueError(
                f"site '{name}': particle {i} of {num_particles} has log weight or reward "
                f"{float(weights[name][i]):.6g} in a vectorised pass and "
                f"{float(alone[name][0]):.6g} in a plain run with the same values; the program "
                "mixes its particles: reduce over named dims from the right, never over all"
            )


def _alone(proposal: ProgramProposal, values: dict[str, Tensor]) -> dict[str, Tensor]:
    messenger = _SiteWeights(1, None, replay=values)
    with messenger:
        proposal.program(*proposal.args, **proposal.kwargs)
    return messenger.finish()


def _first_difference(
    first: dict[str, Tensor], second: dict[str, Tensor], i: int, tolerance: float
) -> str | None:
    for name, values in first.items():
        pair = values[i].double(), second[name][0].double()
        if not torch.allclose(*pair, rtol=tolerance, atol=tolerance, equal_nan=True):
            return name
    return None
