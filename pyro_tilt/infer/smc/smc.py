# SPDX-License-Identifier: Apache-2.0
"""Sequential Monte Carlo over the steps of a program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from os import PathLike
from typing import Any

import pyro
import torch
from pyro.infer.util import is_validation_enabled
from torch import Tensor
from tqdm import tqdm

from pyro_tilt.infer.errors import SamplingError, ZeroWeights
from pyro_tilt.infer.merge import merge
from pyro_tilt.infer.particle_rules import note_rules
from pyro_tilt.infer.sampler import Run, Sampler, check_count
from pyro_tilt.infer.smc import snapshot
from pyro_tilt.infer.smc.checks import advice
from pyro_tilt.infer.smc.errors import ResumeError, StepError
from pyro_tilt.infer.smc.guide import GuidePass
from pyro_tilt.infer.smc.keeper import Keeper
from pyro_tilt.infer.smc.lineage import check_lineage as preflight
from pyro_tilt.infer.smc.messenger import StepMessenger, Twist
from pyro_tilt.infer.smc.options import certificate_of, frozen_schedule, steering
from pyro_tilt.infer.smc.paths import Paths, PathStore
from pyro_tilt.infer.smc.plan import StepPlan
from pyro_tilt.infer.smc.population import SCHEMES, Population
from pyro_tilt.infer.smc.portable import digest
from pyro_tilt.infer.smc.proposals import Proposal
from pyro_tilt.infer.weighted_samples import WeightedSamples
from pyro_tilt.ops.importance import log_mean_exp
from pyro_tilt.poutine.particle_plate import ParticlePlate

__all__ = ["SMC"]

DEFAULT_NUM_PARTICLES = 1000


class SMC(Sampler):
    r"""Sequential Monte Carlo over a program with steps: weigh, resample, move on.

    .. math::

        \hat Z = \prod_t \sum_i \bar w_{t-1}^{(i)}\, g_t^{(i)}
        \frac{\psi_t(c_t^{(i)})}{\psi_{t-1}(c_{t-1}^{(i)})}

    with :math:`g_t` the observations and factors of step t, times the ratio of the program's law
    to the proposal, and :math:`\psi` the twists, which leave at the end when the true reward
    enters. The evidence and every unnormalised average are unbiased for any number of particles,
    any twist that is positive where later mass is, any resampling scheme and any trigger.

    A program declares its steps by :func:`~pyro_tilt.poutine.scan`, or marks the places of
    exchange by :func:`~pyro_tilt.poutine.checkpoint`; one without either is sampled by importance.
    The result holds the sites outside steps and those of the last step, weighted;
    ``get_samples`` draws from them. ``stats["ancestor"]`` is the initial particle that each one
    descends from, and ``steps`` holds ``ess``, ``log_normalizer`` (up to that step, twist
    included), ``resampled`` and ``unique_ancestors`` (how many were chosen at that step).

    Certificate: *consistent* in the number of particles.

    :param program: see :class:`~pyro_tilt.infer.Sampler`, as are ``reward``, ``beta``,
        ``num_chains``, ``seed`` and ``progress``.
    :param int num_particles: particles per chain; ``num_samples`` is another name.
    :param guide: a Pyro guide for the same latent sites, run in the same pass: its
        :func:`~pyro_tilt.poutine.scan` of the same name steps beside that of the program, with a
        carry of its own. A ``GuideMessenger`` of Pyro is asked for one posterior per site.
    :param proposal: a function of the site's name, its law, the carry and the element of ``xs``
        (None outside steps) to the law to draw from, or None; or ``"gradient"``, which shifts
        Gaussian kernels along the gradient of ``twist`` (see
        :func:`~pyro_tilt.infer.smc.gradient_proposal`).
    :param twist: log twist, a function of the carry after a step and the element of ``xs`` of
        that step (for a checkpoint its state and count) to one number per particle; replaces
        the program's own :func:`~pyro_tilt.poutine.twist` statements.
    :param str resampling: ``"systematic"``, ``"stratified"``, ``"multinomial"`` or ``"residual"``.
    :param float ess_threshold: resample where the effective sample size falls below this share of
        the particles; 1 resamples after every step, 0 never.
    :param freeze_schedule: the steps to resample after, as booleans or as an earlier result, in
        place of the threshold.
    :param bool check_lineage: run 32 particles first and look for variables that do not move with
        their particle; by default where Pyro validates.
    :param bool keep_paths: keep the values of all steps for the living lineages, in
        ``result.paths``.
    :param save_to: a file to save the run to as it goes, as plain tensors; :meth:`resume` goes on
        from it. For programs whose steps are those of a scan.
    :param int save_every: after how many steps to save.
    :param int max_plate_nesting: number of batch dims of the program; guessed by a plain run of
        it, which is saved where the number is given.
    :raises ZeroWeights: if every weight is zero at some step; the particles are attached.
    :raises StepError: if the program raises at some step, with the particles before it.
    :raises LineageError: if a variable does not move with its particle.

    Example::

        >>> import pyro, torch, pyro.distributions as dist
        >>> from pyro_tilt import scan
        >>> from pyro_tilt.infer import SMC
        >>> def step(x, y):
        ...     x, t = x[0], x[1] + 1
        ...     x = pyro.sample(f"x_{t}", dist.Normal(0.9 * x, 0.5))
        ...     pyro.sample(f"y_{t}", dist.Normal(x, 1.0), obs=y)
        ...     return x, t
        >>> def program(data):
        ...     x = pyro.sample("x_0", dist.Normal(0.0, 1.0))
        ...     return scan("chain", step, (x, 0), data)[0]
        >>> result = SMC(program, num_particles=2000, seed=0).run(torch.tensor([0.3, 1.0, 0.4]))
        >>> list(result.samples), round(result.log_normalizer.item())
        (['x_0', 'x_3'], -4)
    """

    def __init__(
        self,
        program: Callable[..., Any],
        *,
        num_particles: int | None = None,
        num_samples: int | None = None,
        guide: Any = None,
        proposal: Proposal | str | None = None,
        twist: Twist | None = None,
        resampling: str = "systematic",
        ess_threshold: float = 0.5,
        freeze_schedule: WeightedSamples | Sequence[bool] | Tensor | None = None,
        check_lineage: bool | None = None,
        keep_paths: bool = False,
        save_to: str | PathLike[str] | None = None,
        save_every: int = 10,
        **options: Any,
    ) -> None:
        for name in ("max_batch", "vectorized"):
            if name in options:
                raise ValueError(
                    f"SMC takes no {name}: its particles run together, so that they can be "
                    "compared and resampled; use fewer particles and more chains"
                )
        if num_particles is None and num_samples is None:
            num_particles = DEFAULT_NUM_PARTICLES
        super().__init__(program, num_particles=num_particles, num_samples=num_samples, **options)
        if resampling not in SCHEMES:
            raise ValueError(f"resampling must be one of {', '.join(SCHEMES)}; got {resampling!r}")
        if not 0.0 <= ess_threshold <= 1.0:
            raise ValueError(f"ess_threshold must lie in [0, 1], got {ess_threshold}")
        if twist is not None and not callable(twist):
            raise TypeError(f"twist must be a function, got {type(twist).__name__}")
        self.twist = twist
        self.resampling = resampling
        self.ess_threshold = float(ess_threshold)
        self.schedule = frozen_schedule(freeze_schedule)
        self.check_lineage = check_lineage
        self.keep_paths = keep_paths
        self.guide, self.proposal = steering(guide, proposal, twist)
        self.save_to = save_to
        self.save_every = check_count("save_every", save_every)
        self._plan: StepPlan | None = None
        self._keeper: Keeper | None = None

    def run(self, *args: Any, **kwargs: Any) -> WeightedSamples:
        """Runs the chains; all arguments go to the program."""
        keeper = None if self.save_to is None else Keeper(self.save_to, self.save_every)
        return self._kept(keeper, args, kwargs)

    def resume(self, path: str | PathLike[str], *args: Any, **kwargs: Any) -> WeightedSamples:
        """
        Goes on with a run that was saved, to the result that it would have had, bit for bit.

        The sampler, the program and its arguments must be those of before. The program goes
        through its start and its first step again for comparison; then the saved step follows.

        :param path: the file given as ``save_to``; the run goes on saving where the sampler has
            ``save_to`` itself. It is read as plain tensors, and nothing in it is executed.
        :param args: passed to the program, as are keyword arguments.
        :raises ResumeError: if the sampler or the program is seen to differ from the saved one.
        """
        state = snapshot.read(path)
        return self._kept(Keeper(self.save_to, self.save_every, state), args, kwargs)

    def _kept(
        self, keeper: Keeper | None, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> WeightedSamples:
        self._keeper = keeper
        try:
            return self._all_chains(args, kwargs)
        finally:
            self._keeper = None

    def _all_chains(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> WeightedSamples:
        results: list[WeightedSamples] = []
        try:
            results.extend(self._chains(args, kwargs))
        except SamplingError as error:
            if results:
                error.partial = merge(*results)
                error.add_note(f"the {len(results)} chains before it finished: .partial has them")
            raise
        return merge(*results)

    def _proposal(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> StepPlan:
        """The plan of these arguments, made once; a second chain or run needs no second one."""
        if self._plan is None or not self._plan.serves(args, kwargs):
            plan = StepPlan(self.program, args, kwargs, max_plate_nesting=self.max_plate_nesting)
            checked = is_validation_enabled() if self.check_lineage is None else self.check_lineage
            if checked and plan.has_steps:
                preflight(self.program, args, kwargs, max_plate_nesting=plan.max_plate_nesting)
            self._plan = plan
        return self._plan

    def _sample(self, run: Run) -> WeightedSamples:
        plan = run.proposal
        assert isinstance(plan, StepPlan)
        if self._keeper is not None:
            done = self._keeper.next_chain(run, self._settings(plan))
            if done is not None:
                program = {"program": self.program, "args": run.args, "kwargs": run.kwargs}
                return snapshot.to_result(done, **program)
        plate = ParticlePlate(self.num_samples, -1 - plan.max_plate_nesting)
        bar = tqdm(
            desc=run.description,
            unit=" steps",
            disable=self.progress is False,
            delay=0 if self.progress else 3,
        )
        messenger = self._messenger(run, plate, bar)
        try:
            with torch.no_grad(), pyro.validation_enabled(False), bar, messenger, plate:
                if self._keeper is not None:
                    assert messenger.population.generator is not None
                    self._keeper.begin(messenger.population.generator)
                messenger.begin()
                self.program(*run.args, **run.kwargs)
            result = self._finish(run, plan, messenger)
            if self._keeper is not None:
                self._keeper.end(result)
            return result
        except ResumeError:
            raise
        except SamplingError as error:
            error.partial = self._partial(run, plan, messenger, error)
            raise
        except (RuntimeError, ValueError, IndexError) as error:
            if messenger.steps_done:
                raise self._late(run, plan, messenger, error) from error
            what_to_do = advice(error, messenger.last_site)
            if what_to_do:
                raise ValueError(f"before the first step: {error}{what_to_do}") from error
            note_rules(error)
            raise
        except Exception as error:
            if messenger.steps_done:
                raise self._late(run, plan, messenger, error) from error
            raise

    def _messenger(self, run: Run, plate: ParticlePlate, bar: tqdm) -> StepMessenger:
        population = Population(
            self.num_samples,
            scheme=self.resampling,
            threshold=self.ess_threshold,
            generator=torch.Generator().manual_seed(run.accept_seed),
            schedule=self.schedule,
        )
        assert plate.dim is not None
        return StepMessenger(
            self.num_samples,
            plate.dim,
            population,
            twist=self.twist,
            proposal=self.proposal,
            guide=None
            if self.guide is None
            else GuidePass(self.guide, run.args, run.kwargs, plate),
            paths=PathStore(self.num_samples) if self.keep_paths else None,
            keeper=self._keeper,
            on_steps=lambda count: setattr(bar, "total", count + (bar.total or 0)),
            on_step=None if self.progress is False else bar.update,
        )

    def _settings(self, plan: StepPlan) -> dict[str, Any]:
        """What a run that goes on from a file must have in common with the saved one."""
        return {
            "kind": type(self).__name__,
            "num_particles": self.num_samples,
            "num_chains": self.num_chains,
            "seed": self.seed,
            "resampling": self.resampling,
            "ess_threshold": self.ess_threshold,
            "freeze_schedule": self.schedule,
            "keep_paths": self.keep_paths,
            "max_plate_nesting": plan.max_plate_nesting,
            "guide": self.guide is not None,
            "proposal": self.proposal is not None,
            "twist": self.twist is not None,
            "sites": plan.names,
            "data": digest([plan.args, plan.kwargs], tensors_only=True),
        }

    def _finish(self, run: Run, plan: StepPlan, messenger: StepMessenger) -> WeightedSamples:
        log_weights, values = messenger.finish()
        plan.check_names([*messenger.values, *messenger.dropped], list(messenger.factors))
        result = self._result(run, plan, messenger, log_weights, values, "joint tilt")
        if not bool((log_weights > -torch.inf).any()):
            raise ZeroWeights(
                f"all {self.num_samples} weights are zero at the end: the reward or an observation "
                "is -inf for every particle. Draw more, steer them by a twist or a guide, or "
                "soften the constraint; the particles are in .partial of this error",
                result,
            )
        return result

    def _late(
        self, run: Run, plan: StepPlan, messenger: StepMessenger, error: Exception
    ) -> StepError:
        late = StepError(
            f"after step {messenger.steps_done - 1}: {type(error).__name__}: {error}"
            f"{advice(error, messenger.last_site)}. The particles after that step "
            "are in .partial of this error"
        )
        late.partial = self._partial(run, plan, messenger, late)
        return late

    def _partial(
        self, run: Run, plan: StepPlan, messenger: StepMessenger, error: SamplingError
    ) -> WeightedSamples | None:
        if error.partial is not None or not (messenger.values or messenger.steps_done):
            return error.partial
        if not isinstance(error, ZeroWeights):
            messenger.rollback()
        target = f"law of the program up to step {messenger.steps_done - 1}"
        return self._result(
            run, plan, messenger, messenger.population.interim(), messenger.survivors(), target
        )

    def _result(
        self,
        run: Run,
        plan: StepPlan,
        messenger: StepMessenger,
        log_weights: Tensor,
        values: dict[str, Tensor],
        target: str,
    ) -> WeightedSamples:
        population, n = messenger.population, self.num_samples
        samples = plan.layout(values, messenger.ranks, n)
        device = next(iter(samples.values()), log_weights).device
        reward, beta = population.reward(log_weights)
        stats = {} if reward is None else {"reward": reward}
        steps = population.steps() if messenger.steps_done else {}
        if steps:
            roots = population.roots
            stats["ancestor"] = torch.arange(n) if roots is None else roots
        error = population.evidence_error(log_weights)
        cost = replace(
            run.cost(n),
            reward_calls=n * messenger.num_tilts,
            value_calls=messenger.value_calls,
        )
        return WeightedSamples(
            kind="weighted",
            samples=samples,
            log_weights=log_weights.to(device),
            log_normalizer=log_mean_exp(log_weights),
            log_normalizer_error=torch.tensor(torch.nan) if error is None else error,
            certificate=certificate_of(target, plan.subsampled),
            cost=cost,
            stats={name: value.to(device) for name, value in stats.items()},
            steps=steps,
            beta=beta,
            info={"base_log_normalizer": 0.0} if plan.base_is_normalized else {},
            sampler=type(self).__name__,
            program=self.program,
            args=run.args,
            kwargs=run.kwargs,
            paths=None if messenger.paths is None else Paths([messenger.paths]),
        )
