# SPDX-License-Identifier: Apache-2.0
"""The log density and log weight of a program at given values, particles at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_tilt.infer.draws import Draws
from pyro_tilt.infer.particle_rules import note_rules
from pyro_tilt.infer.proposal import ProgramProposal
from pyro_tilt.infer.tempered.unconstrained import PositionMessenger
from pyro_tilt.poutine.weight_messenger import WeightMessenger

__all__ = ["Particles", "ProgramDensity"]


@dataclass
class Particles:
    r"""
    Particles with what a move needs to know of them.

    :ivar draws: values, rewards and log weights.
    :ivar position: unconstrained coordinates ``(N, D)``; None where only the program draws.
    :ivar log_prior: log density of the program's latents at the position, Jacobian included,
        ``(N,)``.
    :ivar gradient: gradient of the log density asked for, ``(N, D)``.
    """

    draws: Draws
    position: Tensor | None = None
    log_prior: Tensor | None = None
    gradient: Tensor | None = None

    def __len__(self) -> int:
        return len(self.draws)

    @property
    def log_weights(self) -> Tensor:
        """Log weight of every particle towards the target, ``(N,)``."""
        return self.draws.log_weights

    def index(self, indices: Tensor) -> Particles:
        """The particles at ``indices``."""
        return self._map(lambda value: value[indices], self.draws.index(indices))

    def select(self, accept: Tensor, other: Particles) -> Particles:
        """``other`` where accepted, these elsewhere."""

        # Rows by number: a mask broadcast over a row of two takes three times as long.
        rows = accept.nonzero().squeeze(-1)

        def pick(new: Tensor, old: Tensor) -> Tensor:
            if old.dim() == 1:
                return torch.where(accept, new, old)
            return old.index_copy(0, rows, new.index_select(0, rows))

        mine, theirs = self.draws, other.draws
        draws = Draws(
            {name: pick(theirs.samples[name], old) for name, old in mine.samples.items()},
            pick(theirs.reward, mine.reward),
            pick(theirs.log_factors, mine.log_factors),
            pick(theirs.log_weights, mine.log_weights),
        )
        pairs = ((getattr(other, name), getattr(self, name)) for name in _OPTIONAL)
        return Particles(
            draws, *(None if old is None or new is None else pick(new, old) for new, old in pairs)
        )

    @staticmethod
    def cat(parts: Sequence[Particles]) -> Particles:
        """The particles of all parts, in order."""
        if len(parts) == 1:
            return parts[0]

        def join(name: str) -> Tensor | None:
            values = [getattr(part, name) for part in parts]
            return None if any(value is None for value in values) else torch.cat(values)

        return Particles(Draws.cat([p.draws for p in parts]), *(join(n) for n in _OPTIONAL))

    def _map(self, fn: Callable[[Tensor], Tensor], draws: Draws) -> Particles:
        values = (getattr(self, name) for name in _OPTIONAL)
        return Particles(draws, *(None if value is None else fn(value) for value in values))


_OPTIONAL = ("position", "log_prior", "gradient")


class ProgramDensity(ProgramProposal):
    """
    A program as a density over unconstrained coordinates, beside its draws.

    Latent sites are moved by ``biject_to(support)``, whose parameters may depend on the sites
    before; the Jacobian enters ``log_prior``. The law of a latent site is the one that the program
    draws it from: scales and masks around it do not count, as they do not for its draws.

    :ivar rows: rows of the program evaluated so far.
    :ivar block: most rows to run at once.
    :ivar layout: slice of the coordinates, shape and dtype of every site, once it was drawn.

    >>> import pyro.distributions as dist
    >>> density = ProgramDensity(lambda: pyro.sample("x", dist.Normal(0.0, 1.0)))
    >>> particles = density.start(3, positions=True)
    >>> again = density.evaluate(particles.position)
    >>> torch.equal(particles.log_prior, again.log_prior)
    True
    """

    rows: int = 0
    block: int = 2**17
    layout: dict[str, tuple[slice, torch.Size, torch.dtype]] | None = None

    def check_fixed(self) -> None:
        """
        Checks that the density does not change from pass to pass.

        :raises ValueError: naming a plate that draws a part of its indices anew.
        """
        plates = self._sites.subsampled
        if plates:
            raise ValueError(
                f"plate '{plates[0]}' is subsampled, so that its log weights change from pass to "
                "pass and moves have no fixed target; run it over all of its indices"
            )

    def start(self, n: int, *, positions: bool) -> Particles:
        """
        Draws from the program.

        :param n: number of particles.
        :param positions: whether to find their coordinates and densities.
        :raises ValueError: for a latent site that has no unconstrained coordinates, by name.
        """
        with torch.no_grad():
            return Particles.cat(
                [self._drawn(size, positions) for size in self._sizes(n)],
            )

    def reference(self, n: int) -> tuple[Particles, dict[str, Any]]:
        """Draws as :meth:`start` does, with the law of each latent site beside them."""
        with torch.no_grad(), pyro.validation_enabled(False):
            n = n if self.vectorized else 1
            messenger = PositionMessenger(n, self._dim(), None)
            self._enter(messenger, n)
            return self._particles(messenger, n), messenger.laws

    def evaluate(
        self, position: Tensor, *, gradient: tuple[float, float] | None = None
    ) -> Particles:
        r"""
        The program at given coordinates.

        :param position: coordinates, ``(N, D)``.
        :param gradient: :math:`(a, \lambda)` for the gradient of
            :math:`a \log p + \lambda \log w`; zero where it is not finite.
        :raises ValueError: if the log weight has no gradient where one is asked for.
        """
        parts, start = [], 0
        for size in self._sizes(len(position)):
            parts.append(self._evaluated(position[start : start + size], gradient))
            start += size
        return Particles.cat(parts)

    def _sizes(self, n: int) -> list[int]:
        block = self.block if self.vectorized else 1
        return [min(block, n - start) for start in range(0, n, block)]

    def _dim(self) -> int | None:
        return -1 - self.max_plate_nesting if self.vectorized else None

    def _drawn(self, n: int, positions: bool) -> Particles:
        if not positions:
            self.rows += n
            return Particles(self.draw(n))
        with pyro.validation_enabled(False):
            messenger = PositionMessenger(n, self._dim(), None)
            self._enter(messenger, n)
            return self._particles(messenger, n)

    def _evaluated(self, position: Tensor, gradient: tuple[float, float] | None) -> Particles:
        if gradient is None:
            with torch.no_grad():
                return self._at(position)
        with torch.enable_grad():
            leaf = position.detach().requires_grad_()
            found = self._at(leaf)
            return _detached(found, self._gradient(found, leaf, *gradient), position)

    def _at(self, position: Tensor) -> Particles:
        n = len(position)
        with pyro.validation_enabled(False):
            messenger = PositionMessenger(n, self._dim(), self._split(position))
            self._enter(messenger, n)
            return replace(self._particles(messenger, n), position=position)

    def _gradient(self, found: Particles, leaf: Tensor, prior: float, weight: float) -> Tensor:
        log_prior, log_weights = found.log_prior, found.log_weights
        assert log_prior is not None
        if weight and not log_weights.requires_grad and bool((log_weights != 0).any()):
            raise ValueError(
                "the reward and the factors have no gradient with respect to the latent sites "
                f"{self.latents}; use kernel='rwm' or 'pcn', or write the reward in "
                "differentiable torch operations"
            )
        terms = [
            factor * term
            for factor, term in ((prior, log_prior), (weight, log_weights))
            if factor and term.requires_grad
        ]
        if not terms:
            return torch.zeros_like(leaf)
        total = torch.stack([term.sum() for term in terms]).sum()
        (gradient,) = torch.autograd.grad(total, leaf, allow_unused=True)
        if gradient is None:
            return torch.zeros_like(leaf)
        return gradient.nan_to_num(0.0, 0.0, 0.0)

    def _enter(self, messenger: WeightMessenger, n: int) -> None:
        self.rows += n
        try:
            self._run(self.program, messenger, n, self._dim())
        except (RuntimeError, ValueError, IndexError) as error:
            if self.vectorized:
                note_rules(error)
            raise
        self._check_names(messenger)

    def _particles(self, messenger: PositionMessenger, n: int) -> Particles:
        samples = self.place(messenger.values, n, vectorized=self.vectorized)
        draws = self._weigh(samples, messenger, None, n)
        position = None
        if messenger.positions is None:
            position = self._join(messenger.unconstrained, n)
        return Particles(draws, position, messenger.log_prior)

    def _join(self, unconstrained: Mapping[str, Tensor], n: int) -> Tensor:
        layout, start, flat = {}, 0, []
        for name, value in unconstrained.items():
            value = value.detach()
            tail = value.shape[1:] if self.vectorized else value.shape
            flat.append(value.reshape(n, tail.numel()))
            layout[name] = (slice(start, start + tail.numel()), tail, value.dtype)
            start += tail.numel()
        self.layout = layout
        if not flat:
            raise ValueError("the program has no latent sites, so that there is nothing to move")
        dtype = flat[0].dtype
        for value in flat[1:]:
            dtype = torch.promote_types(dtype, value.dtype)
        return torch.cat([value.to(dtype) for value in flat], -1)

    def _split(self, position: Tensor) -> dict[str, Tensor]:
        assert self.layout is not None
        lead = (len(position),) if self.vectorized else ()
        return {
            name: position[:, where].reshape((*lead, *tail)).to(dtype)
            for name, (where, tail, dtype) in self.layout.items()
        }


def _detached(found: Particles, gradient: Tensor, position: Tensor) -> Particles:
    draws = found.draws
    assert found.log_prior is not None
    return Particles(
        Draws(
            {name: value.detach() for name, value in draws.samples.items()},
            draws.reward.detach(),
            draws.log_factors.detach(),
            draws.log_weights.detach(),
        ),
        position,
        found.log_prior.detach(),
        gradient,
    )
