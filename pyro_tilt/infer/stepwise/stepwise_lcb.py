# SPDX-License-Identifier: Apache-2.0
"""Rejection with Chernoff baselines at every step of a program with steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, get_args

import torch
from pyro.infer.util import is_validation_enabled
from torch import Tensor

from pyro_tilt.infer.errors import SamplingError
from pyro_tilt.infer.pooled import refuse_shared_minibatches
from pyro_tilt.infer.program_sites import ProgramSites
from pyro_tilt.infer.sampler import Run, Sampler, check_count
from pyro_tilt.infer.smc.errors import StepError
from pyro_tilt.infer.smc.lineage import check_lineage as preflight
from pyro_tilt.infer.smc.plan import StepPlan
from pyro_tilt.infer.stepwise.baselines import StateRule
from pyro_tilt.infer.stepwise.chains import Chains
from pyro_tilt.infer.stepwise.learned import LearnedBaselines
from pyro_tilt.infer.stepwise.results import finished, interim
from pyro_tilt.infer.stepwise.sources import BaselineSource, Drawn, Given, KnownMgf
from pyro_tilt.infer.weighted_samples import WeightedSamples
from pyro_tilt.poutine.align import AlignedProgram

__all__ = ["StepwiseLCB"]

Value = Callable[[Any, Any], Tensor]
Rule = Literal["chernoff", "budget", "exchange", "learned"]


class StepwiseLCB(Sampler):
    r"""Chains whose every step is drawn by rejection under a baseline of its state.

    With :math:`V_t` the log soft values that are given and :math:`g_t` the factors of step t, a
    step from y aims at

    .. math:: K_t(x \mid y) \propto p(x \mid y)\, e^{A_t(x)}, \qquad A_t = \log g_t + V_t,

    where at the last step the true log weight of the rest of the program, reward included, stands
    for :math:`V_0`. A proposal is accepted with probability :math:`\min(1, e^{A_t(x) - b_t(y)})`;
    rejected chains alone propose again, and a step that is one site whose value is its carry
    evaluates that site's law once. The baselines are sharpened Chernoff bounds

    .. math:: b_t(y) = \min_\lambda \frac1\lambda \Bigl[ \psi_{1 + \lambda}(y) - \psi_1(y)
        + \log\frac{c_\lambda}{\epsilon_t} \Bigr], \qquad
        \psi_s(y) = \log E[e^{s A_t} \mid y], \quad
        c_\lambda = \frac{\lambda^\lambda}{(1 + \lambda)^{1 + \lambda}},

    from fresh proposals of each state or from known log-MGFs, never below the log normaliser of
    the step; the steps, and the start, share epsilon evenly.

    Certificate, for the *value-tilted chain* (start :math:`\propto p\,e^{V_T}`, kernels
    :math:`K_t`): the mean over trajectories of :math:`\sum_t (e^{(A_t - b_t)_+} - 1)` bounds the
    total variation of the law of paths. *Bounded* by its upper confidence bound (empirical
    Bernstein, Maurer and Pontil 2009, arXiv 0907.3740) where ``value_bound`` and a bounded reward
    are given; otherwise *consistent* with the estimate. It never covers the error of the values:
    ``path_weights`` correct for that, in ``residual_log_weights``, with unbiased evidence.

    After Madhow, Y. Liang, Shroff, Yingbin Liang and Wang 2026, arXiv 2602.07738; the target-side
    and sharpened bounds, the certificate and the path weight are this project's.

    Fresh proposals at every state are the dear way to a baseline: ``num_inner`` evaluations of
    the value beside each accepted one, and careful baselines for want of more. Where many chains
    are wanted, ``baseline="learned"``, or :func:`~pyro_tilt.infer.stepwise.learn_baselines` with
    its options, pays once.

    :param program: see :class:`~pyro_tilt.infer.Sampler`, as are all options not named here. Its
        reward may read the return value and, by ``of=``, sites of any step; not the whole trace.
    :param value: log soft value, a function of the carry after a step and that step's element of
        ``xs`` to shape ``(N,)``; asked once with None for the initial carry (see ``tilt_start``)
        and never at the last step.
    :param baseline: ``"chernoff"``; ``"budget"``, :math:`b = \psi_1(y) + \log` of ``budget``;
        ``"exchange"``, which minimises proposals plus ``exchange_rate`` times clipped mass;
        ``"learned"``, trained in the first run and kept in ``learned``; or a function of the
        carry before a step and its element of ``xs`` to shape ``(N,)``, as
        :class:`~pyro_tilt.infer.stepwise.LearnedBaselines` are.
    :param epsilon: clipped mass of a whole path that ``"chernoff"`` aims at, or a sequence of the
        shares of the start and of each step.
    :param log_mgf: :math:`\psi_s(y)` where known: a function of the carry before a step, its
        element of ``xs`` and orders, shape ``(K,)``, to shape ``(N, K)``.
    :param float budget: proposals per step that ``"budget"`` aims at.
    :param float exchange_rate: proposals that a unit of clipped mass is worth.
    :param int num_inner: fresh proposals per state to learn its baseline from.
    :param int num_start: draws of the start to learn its one baseline from.
    :param int num_training: chains that ``"learned"`` trains on.
    :param bool tilt_start: tilt the initial carry by its value; otherwise it follows the program.
    :param value_bound: a sure bound on the values at all steps, and with it the least baseline
        that is used, ``(low, high)``.
    :param float confidence: of the certificate.
    :param int max_proposals: most proposals for one step of a chain, which then goes on with its
        last rejected one, flagged in ``stats["capped"]`` and paid for in the certificate.
    :param float min_acceptance: a chain that was rejected as often as its inverse ends the run.
    :param path_weights: go on to a second acceptance at every step (a number: to that one), for
        weights that correct the chains to the joint tilt; or ``"fresh"``, which estimates the
        normaliser of each step from ``num_inner`` proposals of their own, with less noise at the
        same price. The weights multiply over steps the error of these estimates, so that long
        chains want more. ``info["target_total_variation"]`` then estimates, from above, how far
        the unweighted chains are from the joint tilt.
    :param bool keep_paths: keep the values of all steps in ``result.paths``.
    :param bool check_lineage: look for variables that do not move with their particle, as in
        :class:`~pyro_tilt.infer.SMC`.
    :raises ValueError: for a program without a scan, a deterministic kernel, a value that is NaN
        or of a wrong shape or above its bound.
    :raises ZeroWeights: where the value is ``-inf`` at every proposal of a step.
    :raises AcceptanceTooLow: see ``min_acceptance``.
    :raises StepError: if anything else fails at a step; ``partial`` of this, and of the errors
        above, holds the chains after the last whole step.

    Example::

        >>> import pyro, torch, pyro.distributions as dist
        >>> from pyro_tilt import scan
        >>> from pyro_tilt.infer import LCB
        >>> def step(x, t):
        ...     return pyro.sample(f"x_{t}", dist.Normal(x, 1.0))
        >>> def program():
        ...     x = pyro.sample("x_2", dist.Normal(0.0, 1.0))
        ...     return scan("walk", step, x, [1, 0])
        >>> def value(x, t):  # log E[exp(x_0) | x_t] for reward x_0
        ...     return x + 0.5 * (2 if t is None else t)
        >>> result = LCB(program, reward=lambda x: x, value=value, num_samples=4000, seed=0).run()
        >>> round(result.samples["x_0"].mean().item()), result.certificate.target
        (3, 'value-tilted chain')
    """

    def __init__(
        self,
        program: Callable[..., Any],
        *,
        value: Value,
        baseline: Rule | Value = "chernoff",
        epsilon: float | Sequence[float] = 0.05,
        log_mgf: Callable[[Any, Any, Tensor], Tensor] | None = None,
        budget: float = 10.0,
        exchange_rate: float = 100.0,
        num_inner: int = 128,
        num_start: int = 4096,
        num_training: int = 4000,
        tilt_start: bool = True,
        value_bound: tuple[float, float] | None = None,
        confidence: float = 0.95,
        max_proposals: int | None = None,
        min_acceptance: float = 1e-6,
        path_weights: bool | int | Literal["fresh"] = False,
        keep_paths: bool = False,
        check_lineage: bool | None = None,
        **options: Any,
    ) -> None:
        if not options.pop("vectorized", True):
            raise ValueError(
                "value= and vectorized=False do not go together: rejected chains re-enter their "
                "step together"
            )
        super().__init__(program, **options)
        for name, function in (("value", value), ("log_mgf", log_mgf)):
            if function is not None and not callable(function):
                raise TypeError(f"{name} must be a function, got {type(function).__name__}")
        if not callable(baseline) and baseline not in get_args(Rule):
            raise ValueError(
                "baseline must be 'chernoff', 'budget', 'exchange', 'learned' or a function of "
                f"state and step, got {baseline!r}"
            )
        if log_mgf is not None and baseline in ("exchange", "learned"):
            raise ValueError(f"baseline={baseline!r} needs draws, and log_mgf gives none; drop one")
        _between("confidence", confidence, 0.0, 1.0)
        _between("min_acceptance", min_acceptance, 0.0, 1.0)
        if not 1.0 <= budget < math.inf:
            raise ValueError(f"budget must be at least 1, got {budget!r}")
        _between("exchange_rate", exchange_rate, 0.0, math.inf)
        self.value, self.log_mgf = value, log_mgf
        self.baseline = baseline
        self.rule = "given" if callable(baseline) else baseline
        self.epsilon = _checked_epsilon(epsilon)
        self.budget, self.exchange_rate = budget, exchange_rate
        self.learned: LearnedBaselines | None = None
        self.num_inner = check_count("num_inner", num_inner, at_least=2)
        self.num_start = check_count("num_start", num_start, at_least=2)
        self.num_training = check_count("num_training", num_training, at_least=100)
        self.tilt_start, self.keep_paths = tilt_start, keep_paths
        self.value_bound = _checked_bound(value_bound)
        self.confidence = confidence
        self.max_proposals = (
            None if max_proposals is None else check_count("max_proposals", max_proposals)
        )
        self.min_acceptance = min_acceptance
        self.path_weights = path_weights
        self.acceptances = _acceptances(path_weights)
        if path_weights == "fresh" and max_proposals is not None:
            raise ValueError(
                "path_weights='fresh' and max_proposals do not go together; count acceptances "
                "instead, as in path_weights=10"
            )
        self.check_lineage = check_lineage

    def _proposal(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> StepPlan:
        plan = _Plan(self.program, args, kwargs, max_plate_nesting=self.max_plate_nesting)
        if not plan.has_steps:
            raise ValueError(
                "value= needs a program with steps, and this one has none; declare them by "
                "pyro_tilt.scan, or leave value out for LCB over the whole program"
            )
        if is_validation_enabled() if self.check_lineage is None else self.check_lineage:
            checked = _without_sites(self.program)
            preflight(checked, args, kwargs, max_plate_nesting=plan.max_plate_nesting)
        return plan

    def source(self) -> BaselineSource:
        """Where the baselines of a run come from."""
        if callable(self.baseline):
            return Given(self.baseline)
        if self.rule == "learned":
            assert self.learned is not None
            return Given(self.learned)
        if self.log_mgf is not None:
            return KnownMgf(self.state_rule, self.log_mgf)
        return Drawn(self.state_rule, self.num_inner)

    def state_rule(self, epsilon: float) -> StateRule:
        """How the baseline of a state is chosen at a step with this share of epsilon."""
        name = "chernoff" if self.rule in ("given", "learned") else self.rule
        return StateRule(name, epsilon, self.budget, self.exchange_rate)

    def share(self, place: int, num_steps: int) -> float:
        """The share of epsilon of a step, -1 for the start."""
        if isinstance(self.epsilon, float):
            return self.epsilon / (num_steps + 1)
        if len(self.epsilon) != num_steps + 1:
            raise ValueError(
                f"epsilon has {len(self.epsilon)} entries; give one for the start and one for "
                f"each of the {num_steps} steps, or a number"
            )
        return self.epsilon[place + 1]

    @property
    def aim(self) -> float | None:
        """The clipped mass that the baselines were made for, where they were made for one."""
        source = self.learned if self.rule == "learned" else self.baseline
        if isinstance(source, LearnedBaselines):
            return source.epsilon if source.rule in ("chernoff", "marginal") else None
        if self.rule != "chernoff":
            return None
        return self.epsilon if isinstance(self.epsilon, float) else sum(self.epsilon)

    @property
    def remedy(self) -> str:
        """What helps where more was clipped."""
        if self.rule != "chernoff":
            return "the training chains missed values that matter. Train on more of them"
        return f"num_inner = {self.num_inner} proposals missed values that matter. Raise num_inner"

    def _sample(self, run: Run) -> WeightedSamples:
        refuse_shared_minibatches(run)
        if self.rule == "learned" and self.learned is None:
            self._learn(run)
        generator = torch.Generator().manual_seed(run.accept_seed)
        groups: list[Chains] = []
        # The bar counts steps of chains, whose number the first group shows.
        with run.bar(0) as bar:
            for group, first in enumerate(range(0, self.num_samples, self.max_batch)):
                size = min(self.max_batch, self.num_samples - first)
                chains = Chains(self, run, size, group, generator)
                chains.on_step = partial(_progress, bar, chains, self.num_samples)
                try:
                    chains.advance()
                except Exception as error:
                    late = self._broken(run, groups, chains, error)
                    if late is error:
                        raise
                    raise late from error
                groups.append(chains)
        return finished(self, run, groups)

    def _learn(self, run: Run) -> None:
        """Trains the baselines for this and every later run of the sampler."""
        from pyro_tilt.infer.stepwise.learn import learn_baselines

        self.learned = learn_baselines(
            self.program,
            *run.args,
            kwargs=run.kwargs,
            value=self.value,
            epsilon=self.epsilon,
            num_chains=self.num_training,
            tilt_start=self.tilt_start,
            value_bound=self.value_bound,
            max_proposals=self.max_proposals,
            min_acceptance=self.min_acceptance,
            max_plate_nesting=self.max_plate_nesting,
            seed=run.calibration_seed,
            progress=self.progress,
        )

    def _broken(
        self, run: Run, groups: list[Chains], chains: Chains, error: Exception
    ) -> Exception:
        """The error of a run with what it has so far: whole groups, or else a group half-way."""
        if isinstance(error, SamplingError):
            late: SamplingError = error
        elif chains.steps_done > 0 or groups:
            place, text = chains.messenger.where, str(error)
            late = StepError(
                (text if text.startswith(place) else f"{place}: {type(error).__name__}: {text}")
                + "; the chains after the last whole step are in .partial of this error"
            )
            for remark in getattr(error, "__notes__", ()):
                late.add_note(remark)
        else:
            return error
        if late.partial is None:
            late.partial = finished(self, run, groups) if groups else interim(self, run, chains)
        return late


def _progress(bar: Any, chains: Chains, num_samples: int, rows: int) -> None:
    bar.total = num_samples * chains.messenger.num_steps
    bar.update(rows)


class _Plan(StepPlan):
    """A plan that always makes its plain run, which shows the bound of the reward."""

    def _plain_run(self) -> tuple[ProgramSites, int]:
        self.known = True
        return super()._plain_run()


def _without_sites(program: Callable[..., Any]) -> Callable[..., Any]:
    """
    The program without rewards of sites.

    What they read of earlier steps moves with the chain here, but not with the particles of the
    preflight.
    """
    if not isinstance(program, AlignedProgram):
        return program
    inner = _without_sites(program.program)
    if program.of is not None:
        return inner
    return AlignedProgram(inner, program.reward, program.beta, name=program.name)


def _checked_bound(bound: tuple[float, float] | None) -> tuple[float, float] | None:
    if bound is None:
        return None
    low, high = (float(each) for each in bound)
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise ValueError(f"value_bound must be two finite numbers (low, high), got {bound!r}")
    return low, high


def _checked_epsilon(epsilon: float | Sequence[float]) -> float | list[float]:
    if not isinstance(epsilon, Sequence):
        _between("epsilon", epsilon, 0.0, 1.0)
        return float(epsilon)
    parts = [float(each) for each in epsilon]
    for each in parts:
        _between("epsilon of every step", each, 0.0, 1.0)
    _between("the sum of epsilon", sum(parts), 0.0, 1.0)
    return parts


def _acceptances(path_weights: bool | int | str) -> int:
    """How many acceptances weights take; 0 where none are counted."""
    if path_weights is True:
        return 2
    if path_weights == "fresh" or path_weights is False or path_weights == 0:
        return 0
    if isinstance(path_weights, str) or path_weights < 2:
        raise ValueError(
            "path_weights must be True, a number of at least 2 acceptances, or 'fresh', got "
            f"{path_weights!r}"
        )
    return int(path_weights)


def _between(name: str, value: float, low: float, high: float) -> None:
    if not low < value < high:
        raise ValueError(f"{name} must lie in ({low:g}, {high:g}), got {value!r}")
