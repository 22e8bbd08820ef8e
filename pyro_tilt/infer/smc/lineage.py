# SPDX-License-Identifier: Apache-2.0
"""Finds variables that do not move with their particle, before the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pyro
import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_tilt.infer.seeding import preserved_rng
from pyro_tilt.infer.smc.errors import LineageError
from pyro_tilt.infer.smc.messenger import StepMessenger
from pyro_tilt.infer.smc.paths import Paths, PathStore
from pyro_tilt.infer.smc.population import Population
from pyro_tilt.poutine.particle_plate import ParticlePlate
from pyro_tilt.poutine.weight_messenger import WeightMessenger

__all__ = ["check_lineage"]

NUM_PARTICLES = 32
_SCORE = " (log_prob)"


def check_lineage(
    program: Callable[..., Any],
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    max_plate_nesting: int = 0,
    num_particles: int = NUM_PARTICLES,
) -> None:
    """
    Runs a few particles with an exchange after every step, then replays their paths without any.

    Along the path of a particle the program must give the same log densities and the same return
    value as in the run that exchanged particles. Where it does not, some variable reached a step
    by a closure, or passed a checkpoint by, and stayed with the wrong particle.

    :param program: a Pyro program with steps.
    :param args: its arguments.
    :param kwargs: its keyword arguments.
    :param max_plate_nesting: number of batch dims of the program.
    :param num_particles: how many particles to run.
    :raises LineageError: naming the first site that disagrees.

    >>> import pyro.distributions as dist
    >>> from pyro_tilt import scan
    >>> def program():
    ...     scale = pyro.sample("scale", dist.Exponential(1.0))
    ...     def step(x, t):
    ...         return pyro.sample(f"x_{t}", dist.Normal(x, scale))
    ...     return scan("chain", step, torch.tensor(0.0), range(3))
    >>> check_lineage(program)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    pyro_tilt.infer.smc.errors.LineageError: site 'x_1': ...
    """
    kwargs = dict(kwargs or {})
    dim = -1 - max_plate_nesting
    with preserved_rng(), torch.no_grad(), pyro.validation_enabled(False):
        moved = _Exchanged(num_particles, dim)
        with moved, ParticlePlate(num_particles, dim):
            exchanged = program(*args, **kwargs)
        if not moved.steps_done:
            return
        recorded = moved.recorded()
        latents = {name: recorded[name] for name in moved.latents}
        plain = _Replayed(num_particles, dim, replay={**latents, **moved.subsamples})
        with plain, ParticlePlate(num_particles, dim):
            replayed = program(*args, **kwargs)
    _compare(recorded, plain.values, num_particles)
    returned = zip(_tensors(exchanged, "the return value"), _tensors(replayed, ""), strict=False)
    for (path, here), (_, there) in returned:
        if not _agree(here, there):
            raise LineageError(
                f"{path} differs between a run that exchanges particles and a replay of their "
                f"paths without exchange. {_ADVICE}"
            )


_ADVICE = (
    "Some variable that it depends on does not move with its particle: pass everything that "
    "depends on earlier draws through the carry of the scan or through the checkpoint. (A program "
    "that draws random numbers outside pyro.sample cannot be checked: check_lineage=False.)"
)


def _compare(recorded: Mapping[str, Tensor], replayed: Mapping[str, Tensor], size: int) -> None:
    for name, there in replayed.items():
        here = recorded.get(name)
        if here is None or _agree(here, there.expand(size, *there.shape[1:])):
            continue
        site = name.removesuffix(_SCORE)
        what = "its log density" if name.endswith(_SCORE) else "its value"
        raise LineageError(
            f"site '{site}': {what} differs between a run that exchanges particles and a replay "
            f"of their paths without exchange. {_ADVICE}"
        )


def _agree(here: Tensor, there: Tensor) -> bool:
    if here.shape != there.shape:
        return False
    if not here.is_floating_point():
        return bool((here == there).all())
    single = torch.finfo(here.dtype).eps > 1e-10
    tolerance = 1e-3 if single else 1e-8
    return torch.allclose(here, there, rtol=tolerance, atol=tolerance, equal_nan=True)


def _tensors(value: Any, path: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from _tensors(each, f"{path}[{key!r}]")
    elif isinstance(value, list | tuple):
        for i, each in enumerate(value):
            yield from _tensors(each, f"{path}[{i}]")


class _Shuffled(Population):
    """Exchanges particles at random after every step, whatever they weigh."""

    def advance(self, increment: Tensor | None, twist: Tensor | None, where: str) -> Tensor:
        index = torch.randint(self.size, (self.size,))
        self._move(index)
        return index


def _score(messenger: WeightMessenger, msg: Any) -> None:
    """Keeps the log density of a site beside its value, so that it moves along."""
    infer = msg["infer"]
    if infer.get("_do_not_trace") or infer.get("_deterministic") or site_is_subsample(msg):
        return
    term = infer.get("tilt")
    score = msg["fn"].log_prob(msg["value"]) if term is None else term.reward
    score = scale_and_mask(score, msg["scale"], msg["mask"])
    score = messenger._per_particle(msg["name"], score)
    messenger.values[msg["name"] + _SCORE] = score.expand(messenger.size)


class _Exchanged(StepMessenger):
    def __init__(self, size: int, dim: int) -> None:
        super().__init__(size, dim, _Shuffled(size), paths=PathStore(size))
        self.latents: list[str] = []

    def _pyro_post_sample(self, msg: Any) -> None:
        super()._pyro_post_sample(msg)
        if not msg["is_observed"] and msg["name"] in self.values:
            self.latents.append(msg["name"])
        _score(self, msg)

    def recorded(self) -> dict[str, Tensor]:
        assert self.paths is not None
        return {**Paths([self.paths]).trace(), **self.survivors()}


class _Replayed(WeightMessenger):
    def _pyro_post_sample(self, msg: Any) -> None:
        super()._pyro_post_sample(msg)
        name = msg["name"]
        if msg["is_observed"] and name in self.values:
            value = msg["value"]
            if value.dim() == 0 or value.shape[0] != self.size:
                self.values[name] = value.expand(self.size, *value.shape)
        _score(self, msg)
