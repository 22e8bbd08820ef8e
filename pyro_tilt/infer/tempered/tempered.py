# SPDX-License-Identifier: Apache-2.0
"""Sequential Monte Carlo along temperatures, for programs without steps."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch

from pyro_tilt.infer.sampler import Run, Sampler, check_count
from pyro_tilt.infer.seeding import derive_seed
from pyro_tilt.infer.tempered.anneal import Annealing
from pyro_tilt.infer.tempered.density import ProgramDensity
from pyro_tilt.infer.tempered.gaussian_kernels import CrankNicolsonKernel, LangevinKernel
from pyro_tilt.infer.tempered.hamiltonian_kernel import HamiltonianKernel
from pyro_tilt.infer.tempered.kernels import IndependentKernel, Kernel, RandomWalkKernel
from pyro_tilt.infer.tempered.moves import Mover
from pyro_tilt.infer.tempered.schedule import Schedule, check_schedule
from pyro_tilt.infer.weighted_samples import WeightedSamples

__all__ = ["TemperedSMC"]

_PILOT_STREAM = 3


class TemperedSMC(Sampler):
    r"""Moves draws of a program to its joint tilt through a path of temperatures.

    .. math::

        \pi_\lambda(x) \propto p(x)\, w(x)^\lambda, \qquad \log w = \beta r + \log\ell, \qquad
        0 = \lambda_0 < \dots < \lambda_T = 1

    with :math:`\ell` the program's observations and other factors. At each temperature the
    particles are weighted, resampled and moved by a kernel that leaves :math:`\pi_\lambda` as it
    is, the last one included (Del Moral, Doucet and Jasra 2006, Sequential Monte Carlo samplers).
    Temperatures are chosen so that the effective sample size falls to ``ess_threshold * N``. The
    result is ``"weighted"``; after the last resampling its weights are equal.

    Kernels: ``"rwm"`` random-walk Metropolis with the population's covariance, ``"hmc"``
    Hamiltonian paths, both in the unconstrained coordinates of ``biject_to(support)``; ``"pcn"``
    preconditioned Crank-Nicolson and ``"pcnl"`` its Langevin form, for programs whose latent
    sites are Gaussian noise; ``"independent"`` draws all latent sites anew from the program, the
    one kernel that moves discrete sites.

    Certificate: *consistent* in ``num_particles``. The evidence is unbiased only with what was
    adapted frozen, see :meth:`freeze_schedule`. Its error counts the weights alone and takes the
    moves for perfect ones; several chains give an error that does not. With ``waste_free`` there
    is none from a single chain.

    :param program: see :class:`~pyro_tilt.infer.Sampler`, as are all options not named here.
    :param str kernel: ``"rwm"``, ``"hmc"``, ``"pcn"``, ``"pcnl"`` or ``"independent"``.
    :param float ess_threshold: in (0, 1]; where to set the next temperature, and below which a
        given schedule resamples.
    :param int moves: moves at each temperature; by default as many as it takes for the correlation
        of every coordinate with its value at the start (for ``"independent"`` the share of
        particles that never moved) to fall below .1.
    :param int max_moves: most moves at one temperature.
    :param waste_free: a number M of ancestors: the states of M chains of N / M states each make the
        next population (Dau and Chopin 2022, arXiv 2011.02328).
    :param schedule: ``"adaptive"``, a list of temperatures that ends in 1, or a
        :class:`~pyro_tilt.infer.tempered.Schedule`.
    :param int num_leapfrog: steps of a Hamiltonian path.
    :raises ValueError: for options out of range; when run, for a site that the kernel cannot move,
        by name, and for subsampled plates, whose target changes from pass to pass.
    :raises ZeroWeights: if every weight is zero; the draws are attached to the error.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> from pyro_tilt.infer import TemperedSMC
        >>> def program():
        ...     return pyro.sample("x", dist.Normal(0., 1.))
        >>> result = TemperedSMC(program, reward=lambda x: 4 * x, num_particles=4000, seed=0).run()
        >>> round(result.expectation("x").item()), round(result.log_normalizer.item())
        (4, 8)
        >>> result.steps["beta"][-1].item()
        1.0
    """

    kernels: ClassVar[dict[str, type[Kernel]]] = {
        kernel.name: kernel
        for kernel in (
            RandomWalkKernel,
            CrankNicolsonKernel,
            LangevinKernel,
            IndependentKernel,
            HamiltonianKernel,
        )
    }

    def __init__(
        self,
        program: Callable[..., Any],
        *,
        kernel: str = "rwm",
        ess_threshold: float = 0.5,
        moves: int | None = None,
        max_moves: int = 50,
        waste_free: int | bool = False,
        schedule: str | Sequence[float] | Schedule | None = None,
        num_leapfrog: int = 8,
        **options: Any,
    ) -> None:
        super().__init__(program, **options)
        if kernel not in self.kernels:
            raise ValueError(f"kernel must be one of {', '.join(self.kernels)}; got {kernel!r}")
        if not 0.0 < ess_threshold <= 1.0:
            raise ValueError(f"ess_threshold must lie in (0, 1], got {ess_threshold!r}")
        self.kernel = kernel
        self.ess_threshold = float(ess_threshold)
        self.moves = None if moves is None else check_count("moves", moves)
        self.max_moves = check_count("max_moves", max_moves)
        self.num_leapfrog = check_count("num_leapfrog", num_leapfrog)
        self.waste_free = self._check_waste_free(waste_free)
        self.schedule = self._check_schedule(schedule)
        self._found: list[Schedule] | None = None

    def freeze_schedule(self, *args: Any, **kwargs: Any) -> TemperedSMC:
        """
        A sampler that keeps to what a pilot run adapted, so that its evidence is unbiased.

        Temperatures, numbers of moves, proposal shapes and step sizes are frozen, and every
        temperature resamples. The pilot has a seed of its own, derived from the sampler's.

        :param args: arguments of the program, as for :meth:`run`.
        :param kwargs: its keyword arguments.
        """
        pilot, frozen = copy.copy(self), copy.copy(self)
        pilot.num_chains, pilot._found = 1, []
        if self.seed is not None:
            pilot.seed = derive_seed(self.seed, _PILOT_STREAM)
        for _ in pilot._chains(args, kwargs):
            pass
        frozen.schedule = pilot._found[-1]
        return frozen

    def _sample(self, run: Run) -> WeightedSamples:
        density = run.proposal
        assert isinstance(density, ProgramDensity)
        density.block = self.block
        kernel = self._kernel()
        kernel.prepare(density)
        particles = density.start(self.num_samples, positions=kernel.positions)
        generator = torch.Generator(particles.log_weights.device).manual_seed(run.accept_seed)
        mover = Mover(kernel, density, generator, self.moves, self.max_moves, kernel.first_step)
        annealing = Annealing(
            run=run,
            mover=mover,
            particles=particles,
            schedule=self.schedule,
            threshold=self.ess_threshold,
            ancestors=self.waste_free,
        )
        with run.bar(self.num_samples) as bar:
            annealing.run_through(bar)
        if self._found is not None:
            self._found.append(annealing.found(self.kernel))
        return annealing.result(
            unbiased=self._unbiased(),
            sampler=type(self).__name__,
            program=self.program,
            args=run.args,
            kwargs=run.kwargs,
        )

    def _proposal(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ProgramDensity:
        density = ProgramDensity(
            self.program,
            args,
            kwargs,
            max_plate_nesting=self.max_plate_nesting,
            vectorized=self.vectorized,
        )
        density.check_fixed()
        return density

    def _kernel(self) -> Kernel:
        if self.kernel == "hmc":
            return HamiltonianKernel(self.num_leapfrog)
        return self.kernels[self.kernel]()

    def _unbiased(self) -> bool:
        if isinstance(self.schedule, Schedule):
            return True
        adapts = self.kernels[self.kernel].target_acceptance is not None
        counted = self.moves is not None or bool(self.waste_free)
        return self.schedule is not None and not adapts and counted

    def _check_waste_free(self, ancestors: int | bool) -> int | None:
        if ancestors is False:
            return None
        if ancestors is True:
            raise ValueError("waste_free takes a number of ancestors M, a divisor of num_particles")
        count = check_count("waste_free", ancestors)
        if self.num_samples % count or count == self.num_samples:
            raise ValueError(
                f"waste_free={count} must divide num_particles={self.num_samples} and be smaller: "
                "each ancestor starts a chain of num_particles / waste_free states"
            )
        if self.moves is not None:
            raise ValueError(
                "waste_free sets the moves, num_particles / waste_free - 1; drop moves"
            )
        return count

    def _check_schedule(
        self, schedule: str | Sequence[float] | Schedule | None
    ) -> list[float] | Schedule | None:
        if schedule is None or isinstance(schedule, str):
            if schedule not in (None, "adaptive"):
                raise ValueError(
                    f"schedule must be 'adaptive' or a list of temperatures, got {schedule!r}"
                )
            return None
        if isinstance(schedule, Schedule):
            if schedule.kernel != self.kernel:
                raise ValueError(
                    f"the schedule was tuned for kernel={schedule.kernel!r}, not {self.kernel!r}"
                )
            if not math.isclose(schedule.betas[-1], 1.0, rel_tol=0.0, abs_tol=0.0):
                raise ValueError("the schedule does not end in a temperature of 1")
            return schedule
        return check_schedule(schedule)
