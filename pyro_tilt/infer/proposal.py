# SPDX-License-Identifier: Apache-2.0
"""Runs a program over many particles at once."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_tilt.infer.draws import Draws
from pyro_tilt.infer.particle_rules import note_rules
from pyro_tilt.infer.program_sites import ProgramSites, Site, read_sites
from pyro_tilt.infer.seeding import preserved_rng
from pyro_tilt.poutine.particle_plate import ParticlePlate
from pyro_tilt.poutine.tilt_factor import Beta
from pyro_tilt.poutine.weight_messenger import WeightMessenger, weight_dtype
from pyro_tilt.rewards import log_tilt

__all__ = ["Draws", "ProgramProposal"]


class ProgramProposal:
    r"""
    Draws from a program's latent sites, or from a guide, with importance weights.

    .. math:: \log w = \log\text{factors} + \beta r

    Without a guide the latent sites are drawn from the program itself, and the factors are
    its observations and factor statements. With one, they gain
    :math:`\log p - \log q` of the sites that the guide proposes.

    The constructor makes one plain run, which leaves the random states as it found them, to
    learn the sites and to check the reward. :meth:`draw` then runs the program once for all
    particles. A pass over one particle draws what a plain run draws, bit for bit. Latent
    ``Tilted`` sites are drawn from their law where that is possible, otherwise from their
    base with weight :math:`\beta r - \log Z`. The indices of a subsampled plate are shared
    by the particles of a pass, and log factors inside it are the scaled minibatch sums.

    :param program: a Pyro program.
    :param args: its arguments.
    :param kwargs: its keyword arguments.
    :param guide: proposes the latent sites of the same names; takes the same arguments.
    :param max_plate_nesting: number of batch dims that the program uses, where one run does
        not show it.
    :param vectorized: whether to run all particles at once; if False the program is run once
        for each, for control flow that depends on sampled values.
    :param preserve_numpy: whether the plain run restores the random states of numpy and random
        too, as it does that of torch; a run that advances them anyway has no need of it.
    :raises ValueError: if the reward is NaN or has a wrong shape, if sites vary between runs.
    :raises NotImplementedError: for a latent ``Tilted`` that can neither be drawn from nor
        weighted.

    :ivar latents: names of the latent sites, in order.
    :ivar beta: the common beta of the tilts, 1.0 where they differ, None without any.
    :ivar log_bound: a bound on the log weights, ``inf`` where none is known.
    :ivar unbounded: names of the sites for which none is known.
    :ivar minibatches: names of the plates that draw a part of their indices.
    :ivar subsampled: those of which a pass draws one minibatch for all particles.
    :ivar quadrature: stated error, in a plain run, of each latent ``Tilted`` site that is drawn by
        quadrature.
    :ivar num_rewards: number of rewards that a run evaluates.
    :ivar max_plate_nesting: number of batch dims of the program.

    >>> import pyro.distributions as dist
    >>> from pyro_tilt.poutine import align
    >>> def program():
    ...     return pyro.sample("x", dist.Normal(0.0, 1.0))
    >>> proposal = ProgramProposal(align(program, lambda x: -x.abs(), beta=2.0))
    >>> draws = proposal.draw(5)
    >>> draws.samples["x"].shape, proposal.latents, proposal.beta
    (torch.Size([5]), ['x'], 2.0)
    """

    def __init__(
        self,
        program: Callable,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        guide: Callable | None = None,
        max_plate_nesting: int | None = None,
        vectorized: bool = True,
        preserve_numpy: bool = True,
    ) -> None:
        self.program = program
        self.args = tuple(args)
        self.kwargs = dict(kwargs or {})
        self.guide = guide
        self.vectorized = vectorized
        with preserved_rng(numpy=preserve_numpy), torch.no_grad():
            sites, guide_rank = self._plain_run()
        self._sites = sites
        self.latents = sites.latents
        self.num_rewards = len(sites.tilts)
        betas = {float(term.beta) for term in sites.tilts}
        self.beta = None if not betas else betas.pop() if len(betas) == 1 else 1.0
        self._common_beta = len({float(term.beta) for term in sites.tilts}) == 1
        self.log_bound = sites.log_bound
        self.unbounded = sites.unbounded
        self.quadrature = sites.quadrature
        self.minibatches = sites.subsampled
        self.subsampled = sites.subsampled if vectorized else []
        rank = max(sites.rank, guide_rank)
        if max_plate_nesting is not None and max_plate_nesting < rank:
            raise ValueError(
                f"max_plate_nesting={max_plate_nesting}, but the program uses {rank} batch dims"
            )
        self.max_plate_nesting = rank if max_plate_nesting is None else max_plate_nesting

    def draw(self, n: int) -> Draws:
        """
        Draws ``n`` particles from the global random state.

        :param n: number of particles, zero allowed.
        :raises ValueError: if a reward is NaN, a weight is NaN or ``+inf``, or a site does not
            keep the particle axis.
        """
        if n < 0:
            raise ValueError(f"draw: n must not be negative, got {n}")
        if n == 0:
            return self._empty()
        with torch.no_grad(), pyro.validation_enabled(False):
            if not self.vectorized:
                return Draws.cat([self._pass(1, None) for _ in range(n)])
            dim = -1 - self.max_plate_nesting
            try:
                return self._pass(n, dim)
            except (RuntimeError, ValueError, IndexError) as error:
                note_rules(error)
                raise

    def place(
        self, values: Mapping[str, Tensor], n: int, *, vectorized: bool = True
    ) -> dict[str, Tensor]:
        """
        Values of one pass in the shapes of :class:`Draws`.

        :param values: values of the recorded sites, as the program saw them.
        :param n: number of particles.
        :param vectorized: whether the pass was over ``n`` particles rather than a plain run.
        :raises ValueError: for a site that does not keep the particle axis.
        """
        dim = -1 - self.max_plate_nesting if vectorized else None
        recorded = self._sites.recorded.items()
        return {name: _place(name, values[name], site, n, dim) for name, site in recorded}

    def _plain_run(self) -> tuple[ProgramSites, int]:
        replay: dict[str, Tensor] = {}
        guided, guide_rank = [], 0
        if self.guide is not None:
            nodes, proposed = self._recorded(self.guide, score_latents=True)
            replay = {**proposed.values, **proposed.subsamples}
            guide_sites = read_sites(nodes)
            guide_rank = guide_sites.rank
            guided = [
                name
                for name in guide_sites.latents
                if not (nodes[name]["infer"] or {}).get("is_auxiliary")
            ]
        nodes, plain = self._recorded(self.program, replay=replay)
        sites = read_sites(nodes, plain.weighted)
        unknown = [name for name in guided if name not in sites.latents]
        if unknown:
            raise ValueError(
                f"guide: sites {unknown} are not latent in the program, whose latent sites are "
                f"{sites.latents}; mark helper sites with infer={{'is_auxiliary': True}}"
            )
        for name in guided:
            sites.note_bound(name, math.inf)
        return sites, guide_rank

    def _recorded(self, fn: Callable, **options: Any) -> tuple[dict[str, Any], WeightMessenger]:
        messenger = WeightMessenger(1, None, record=True, **options)
        with messenger:
            fn(*self.args, **self.kwargs)
        assert messenger.nodes is not None
        return messenger.nodes, messenger

    def _pass(self, n: int, dim: int | None) -> Draws:
        replay: dict[str, Tensor] = {}
        log_guide = None
        if self.guide is not None:
            proposed = WeightMessenger(n, dim, score_latents=True)
            self._run(self.guide, proposed, n, dim)
            replay = {**proposed.values, **proposed.subsamples}
            log_guide = proposed.log_factors
        messenger = WeightMessenger(n, dim, replay=replay, room=self._room(n, dim, replay))
        self._run(self.program, messenger, n, dim)
        self._check_names(messenger)
        samples = self.place(messenger.values, n, vectorized=dim is not None)
        return self._weigh(samples, messenger, log_guide, n)

    def _room(self, n: int, dim: int | None, replay: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """
        Memory for the sites that are drawn in place, taken before the program runs.

        Taken one by one it would lie between the tensors of a moment that programs compute for
        the next site, and the holes that these leave are too small to be filled.
        """
        if dim is None:
            return {}
        return {
            name: torch.empty(
                (n, *(1,) * (-1 - dim - site.batch_rank), *site.shape),
                dtype=site.dtype,
                device=site.device,
            )
            for name, site in self._sites.recorded.items()
            if site.in_place and site.batch_rank is not None and name not in replay
        }

    def _run(self, fn: Callable, messenger: WeightMessenger, n: int, dim: int | None) -> None:
        if dim is None:
            with messenger:
                fn(*self.args, **self.kwargs)
        else:
            with messenger, ParticlePlate(n, dim):
                fn(*self.args, **self.kwargs)

    def _weigh(
        self,
        samples: dict[str, Tensor],
        messenger: WeightMessenger,
        log_guide: Tensor | None,
        n: int,
    ) -> Draws:
        log_factors = self._log_factors(samples, messenger, log_guide, n)
        # Without factors the zeros are one number that n draws share.
        plain = messenger.log_factors is None and log_guide is None
        if not messenger.tilts:
            zeros = log_factors.new_zeros(n)
            return Draws(samples, zeros, log_factors, zeros if plain else log_factors)
        reward = self._combine([(value, beta) for _, value, beta in messenger.tilts])
        assert self.beta is not None
        log_weights = reward.to(log_factors.dtype, copy=True)
        if self.beta > 0.0:
            log_weights *= self.beta
        else:
            log_weights = log_tilt(log_weights, self.beta)
        if not plain:
            log_weights += log_factors
        return Draws(samples, reward, log_factors, log_weights)

    def _log_factors(
        self,
        samples: dict[str, Tensor],
        messenger: WeightMessenger,
        log_guide: Tensor | None,
        n: int,
    ) -> Tensor:
        log_factors = messenger.log_factors
        if log_factors is None:
            like = next(iter(samples.values()), torch.empty(0))
            log_factors = torch.zeros((), dtype=weight_dtype(like), device=like.device).expand(n)
            if log_guide is None:
                return log_factors
        if log_guide is not None:
            log_factors = log_factors - log_guide
        if not float(log_factors.detach().amax()) < math.inf:
            bad = int((~(log_factors < math.inf)).sum())
            raise ValueError(
                f"the log factors of {bad} of {n} particles are NaN or +inf; the sites that enter "
                f"them are {[*messenger.factors, *self.unbounded]}"
            )
        return log_factors

    def _combine(self, terms: list[tuple[Tensor, Beta]]) -> Tensor:
        if len(terms) == 1:
            return terms[0][0]
        if self._common_beta:
            return torch.stack([value for value, _ in terms]).sum(0)
        return torch.stack([log_tilt(value, beta) for value, beta in terms]).sum(0)

    def _check_names(self, messenger: WeightMessenger) -> None:
        known = self._sites
        if (
            messenger.values.keys() == known.recorded.keys()
            and list(messenger.factors) == known.factors
        ):
            return
        here, first = [*messenger.values, *messenger.factors], [*known.recorded, *known.factors]
        raise ValueError(
            "the sites of the program vary between runs: "
            f"{sorted(set(here) ^ set(first))} occur in one run and not in another, so that draws "
            "cannot be stacked and no bound holds; give every run the same sites"
        )

    def _empty(self) -> Draws:
        recorded = self._sites.recorded.items()
        samples = {
            name: torch.empty((0, *site.shape), dtype=site.dtype, device=site.device)
            for name, site in recorded
        }
        device = next(iter(samples.values()), torch.empty(0)).device
        weights = torch.empty(0, dtype=torch.float64, device=device)
        tilts = self._sites.tilts
        reward = tilts[0].reward.new_empty(0) if tilts else weights
        return Draws(samples, reward, weights, weights.clone())


def _place(name: str, value: Tensor, site: Site, n: int, dim: int | None) -> Tensor:
    """The value with the particle axis first and the singletons of other plates dropped."""
    shape = (n, *site.shape)
    if dim is None:
        if value.shape == site.shape:
            return value.unsqueeze(0)
    elif site.batch_rank is not None:
        singletons = (1,) * (-1 - dim - site.batch_rank)
        if value.shape == (n, *singletons, *site.shape):
            return value if not singletons else value.reshape(shape)
    elif value.dim() and value.shape[0] == n and value.numel() == n * site.shape.numel():
        if [s for s in value.shape[1:] if s != 1] == [s for s in site.shape if s != 1]:
            return value.reshape(shape)
    elif value.shape == site.shape:
        return value.expand(shape)
    raise ValueError(
        f"site '{name}': its value has shape {tuple(value.shape)} for {n} particles, where a plain "
        f"run has {tuple(site.shape)}"
    )
