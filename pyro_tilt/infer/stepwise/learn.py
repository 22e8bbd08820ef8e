# SPDX-License-Identifier: Apache-2.0
"""Learns baselines from chains of the sampler itself."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from pyro_tilt.infer.sampler import DEFAULT_MAX_BATCH, Run, check_count
from pyro_tilt.infer.seeding import seeded
from pyro_tilt.infer.stepwise.learned import RULES, LearnedBaselines
from pyro_tilt.infer.stepwise.sources import BaselineSource
from pyro_tilt.infer.stepwise.stepwise_lcb import StepwiseLCB
from pyro_tilt.infer.stepwise.training import Settings, Trainer
from pyro_tilt.infer.twists.features import carry_features
from pyro_tilt.infer.weighted_samples import WeightedSamples
from pyro_tilt.ops.pool import acceptance_generator

__all__ = ["learn_baselines"]


def learn_baselines(
    program: Callable[..., Any],
    *args: Any,
    value: Callable[[Any, Any], Tensor],
    reward: Any = None,
    beta: Any = None,
    kwargs: Mapping[str, Any] | None = None,
    rule: str = "chernoff",
    epsilon: float | Sequence[float] = 0.05,
    split: str = "even",
    budget: float = 10.0,
    exchange_rate: float = 100.0,
    orders: Sequence[float] | None = None,
    features: Callable[[Any], Tensor] | None = None,
    num_chains: int = 4000,
    draws_per_state: int = 4,
    held_out: float = 0.5,
    steps: int = 300,
    batch_size: int = 512,
    lr: float = 1e-2,
    width: int = 32,
    depth: int = 2,
    value_bound: tuple[float, float] | None = None,
    tilt_start: bool = True,
    max_proposals: int | None = None,
    min_acceptance: float = 1e-6,
    max_plate_nesting: int | None = None,
    seed: int | None = None,
    progress: bool | None = None,
) -> LearnedBaselines:
    r"""
    Learns the baselines of :class:`~pyro_tilt.infer.LCB` over steps from chains of its own.

    Chains run through the steps in order. At each one, fresh proposals x are drawn from the
    kernel at the chains' states y, and networks of that step alone are fitted to
    :math:`\psi_s(y) = \log E[e^{sA} \mid y]` for a few orders s by the LINEX loss

    .. math:: \ell(f) = e^{sA - f} + f,

    whose excess is exponential where f lies too low; then the chains take the step under the
    baselines just learned, and the next step sees the states that the sampler will see. Heads
    whose terms have an effective sample size below 50 on pairs that did not train them are left
    out. The rules:

    - ``"chernoff"``: over the heads, the least sharpened bound
      :math:`\frac1\lambda[\psi_{1+\lambda} - \psi_1 + \log(c_\lambda / \epsilon_t)]`;
    - ``"marginal"``: :math:`\psi_s / s` for the largest trusted :math:`s \le 3`, the best shape
      where only the mean clipped mass over states counts;
    - ``"budget"``: :math:`\psi_1 + \log` of ``budget``;
    - ``"exchange"``: the minimiser of proposals plus ``exchange_rate`` :math:`\mu` times clipped
      mass, by the loss :math:`e^{b - \psi_1} + \mu (e^{A - \psi_1} - e^{b - \psi_1})_+` (in
      :math:`e^b` the form of Rockafellar and Uryasev 2000), for large :math:`\mu` the quantile of A
      at :math:`1 - 1/\mu`.

    The first two are shifted by one number per step, so that the clipped mass of pairs that
    served nothing before is :math:`\epsilon_t`. No baseline lies below :math:`\psi_1`, the log
    normaliser of its step. A path's certificate does not rest on any of this: it is measured on
    the chains that are drawn later.

    After Madhow, Y. Liang, Shroff, Yingbin Liang and Wang 2026, arXiv 2602.07738, who train
    baselines in sequence; the heads, the target-side bounds and the calibration are this
    project's.

    :param program: a Pyro program with steps, usually from :func:`~pyro_tilt.poutine.align`.
    :param args: its arguments.
    :param value: log soft value, as in :class:`~pyro_tilt.infer.StepwiseLCB`.
    :param reward: sugar for ``align(program, reward, beta)``.
    :param beta: multiplies the reward.
    :param kwargs: keyword arguments of the program.
    :param rule: see above.
    :param epsilon: clipped mass of a whole path, of which the start has an even share.
    :param split: ``"even"`` shares over the steps, or ``"cost"``: more where it saves most
        proposals, all steps trading them for clipped mass at one rate.
    :param budget: proposals per step of rule ``"budget"``.
    :param exchange_rate: proposals that a unit of clipped mass is worth.
    :param orders: s of the heads, with 1 first; 1, 2 and 3 by default, and 5 where
        ``value_bound`` is given: far orders cannot be learned where A is unbounded.
    :param features: a function of the carry before a step to shape (N, d); by default its tensors
        side by side, and of a language program counts and last tokens, as in
        :func:`~pyro_tilt.infer.twists.learn_twists`. Steps may differ in d. It is not asked about
        a carry that holds no tensor, as before the first token: all particles are in one state.
    :param num_chains: how many chains to learn from.
    :param draws_per_state: proposals per state; one is enough for the loss to be unbiased.
    :param held_out: share of the chains that trains nothing, half of them to judge the heads and
        half to calibrate.
    :param steps: gradient steps per head and step of the program.
    :param batch_size: pairs per gradient step.
    :param lr: the first learning rate of Adam.
    :param width: of the hidden layers.
    :param depth: number of hidden layers.
    :param value_bound: as in :class:`~pyro_tilt.infer.StepwiseLCB`, as are the next four.
    :param seed: makes the training reproduce and leaves the caller's random states untouched.
    :param progress: show a progress bar; None shows one where the work takes seconds.
    :raises ValueError: for a program without a scan, equal elements of ``xs``, a bad value.
    :raises ZeroWeights: where no proposal of a step has a weight.

    >>> import pyro, torch, pyro.distributions as dist
    >>> from pyro_tilt import scan
    >>> from pyro_tilt.infer import LCB
    >>> def program():
    ...     def step(x, t):
    ...         return pyro.sample(f"x_{t}", dist.Normal(0.5 * x, 1.0))
    ...     return scan("walk", step, torch.zeros(()), [1, 0])
    >>> options = {"reward": lambda x: x.clamp(max=2.0), "value": lambda x, t: 0.5 * x}
    >>> learned = learn_baselines(program, **options, steps=50, num_chains=2000, seed=0)
    >>> result = LCB(program, **options, baseline=learned, seed=0).run()
    >>> result.info["proposals_per_step"] < 6.0
    True
    """
    if rule not in RULES:
        raise ValueError(f"rule must be one of {', '.join(RULES)}, got {rule!r}")
    if split not in ("even", "cost"):
        raise ValueError(f"split must be 'even' or 'cost', got {split!r}")
    if split == "cost" and rule not in ("chernoff", "marginal"):
        raise ValueError(f"split='cost' shares out epsilon, which rule={rule!r} does not use")
    if not 0.0 < held_out < 1.0:
        raise ValueError(f"held_out must lie in (0, 1), got {held_out!r}")
    count = check_count("num_chains", num_chains, at_least=100)
    started = time.perf_counter()
    with seeded(seed):
        stream = acceptance_generator().initial_seed()
        sampler = _TrainingRun(
            program,
            reward=reward,
            beta=beta,
            value=value,
            epsilon=epsilon,
            num_samples=count,
            max_batch=max(count, DEFAULT_MAX_BATCH),
            value_bound=value_bound,
            tilt_start=tilt_start,
            max_proposals=max_proposals,
            min_acceptance=min_acceptance,
            max_plate_nesting=max_plate_nesting,
            check_lineage=False,
            progress=progress,
        )
        total = sampler.epsilon if isinstance(sampler.epsilon, float) else sum(sampler.epsilon)
        sampler.trainer = Trainer(
            Settings(
                rule=rule,
                epsilon=total,
                by_cost=split == "cost",
                budget=budget,
                exchange_rate=exchange_rate,
                orders=_checked_orders(orders, value_bound is not None),
                features=carry_features if features is None else features,
                own_features=features is not None,
                draws_per_state=check_count("draws_per_state", draws_per_state),
                held_out=held_out,
                steps=check_count("steps", steps),
                batch_size=check_count("batch_size", batch_size),
                lr=lr,
                width=check_count("width", width),
                depth=check_count("depth", depth, at_least=0),
                seed=stream,
            )
        )
        sampler.run(*args, **(kwargs or {}))
    found = sampler.trainer.finish(time.perf_counter() - started)
    assert found.report is not None
    found.report.chains = count
    return found


class _TrainingRun(StepwiseLCB):
    """Chains that learn their baselines on the way."""

    trainer: Trainer

    def source(self) -> BaselineSource:
        return self.trainer

    @property
    def aim(self) -> float | None:
        return None

    def _sample(self, run: Run) -> WeightedSamples:
        run.description = "learn_baselines"
        return super()._sample(run)


def _checked_orders(orders: Sequence[float] | None, bounded: bool) -> tuple[float, ...]:
    if orders is None:
        return (1.0, 2.0, 3.0, 5.0) if bounded else (1.0, 2.0, 3.0)
    found = tuple(float(each) for each in orders)
    if len(found) < 2 or found[0] != 1.0 or not all(1.0 < s < math.inf for s in found[1:]):
        raise ValueError(
            f"orders must be 1 and at least one larger number, such as (1, 2, 3); got {orders!r}"
        )
    return found
