# SPDX-License-Identifier: Apache-2.0
"""Learns the log soft values of a program from runs of it."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from pyro_tilt.infer.errors import SamplerWarning
from pyro_tilt.infer.sampler import check_count
from pyro_tilt.infer.seeding import seeded
from pyro_tilt.infer.smc.plan import StepPlan
from pyro_tilt.infer.twists.features import carry_features
from pyro_tilt.infer.twists.learned import LearnedTwist
from pyro_tilt.infer.twists.trainer import Options, Trainer
from pyro_tilt.poutine import align

__all__ = ["learn_twists"]

_FAILED = (
    "learn_twists: on paths that trained nothing, the values of the last round beat the best "
    "constant at no step, though what lies ahead depends on the state (seen after step {}): this "
    "twist does no better than none. Learn from more particles (num_particles=), give features= "
    "that tell such states apart, take more steps=, or learn at a weaker tilt first"
)


def learn_twists(
    program: Callable[..., Any],
    *args: Any,
    reward: Any = None,
    beta: Any = None,
    kwargs: Mapping[str, Any] | None = None,
    network: str | nn.Module = "heads",
    features: Callable[[Any], Tensor] | None = None,
    standardize: bool = True,
    num_particles: int = 2000,
    rounds: int = 2,
    steps: int = 400,
    batch_size: int = 256,
    lr: float = 1e-2,
    weight_decay: float = 0.0,
    where: Callable[[Any], Tensor] | None = None,
    held_out: float = 0.5,
    ess_threshold: float = 0.5,
    max_plate_nesting: int | None = None,
    seed: int | None = None,
    progress: bool | None = None,
) -> LearnedTwist:
    r"""
    Fits :math:`f_t(c_t) \approx \log E[e^{A_t} \mid c_t]`, A the log weights still to come.

    .. math:: \min_f\; E\bigl[e^{A_t - f_t(c_t)} + f_t(c_t)\bigr]

    The states are those of the sampler: the first round runs the program's own kernels without a
    twist, later ones SMC with the twist learned so far. Steps are fitted from the last to the
    first. :math:`A_t` is the log weight along the particle's own path up to the next resampling,
    plus the fitted value there; where nothing is resampled, as under a lone terminal reward in
    the first round, it is the whole return, which no earlier error enters. Earlier rounds stay
    in the training data with their returns renewed.

    Two further runs per round train nothing: one chooses among the parameters on the way, the
    other calibrates one shift per step, so that its mean of :math:`e^{A - f}` is one, and gives
    the losses of ``twist.report``.

    A :class:`~pyro_tilt.infer.SamplerWarning` says when nothing was learned. It takes two things.
    At no step of the last round does the held-out loss lie below that of the best constant by more
    than chance explains at level .01 over all steps, although constants leave some step an
    effective share below .99. And :math:`E[e^{A_t} \mid c_t]` is seen to vary at the last, first or
    middle step, by a test on two futures of each of ``num_particles`` / 2 states, run only then.
    Where constants are all there is to learn, as with a constant reward or steps that do not look
    at the carry, false alarms come at less than the level of that test, .001 over the steps that it
    looks at. Where the state moves the spread of the returns alone and not their mean, by two nats,
    up to 3 in 100 were seen. Below an effective sample size of 50 it is silent, as a failure is
    that it cannot see; ``twist.report`` tells all losses.

    A learned twist is finite everywhere, so a sampler that uses it keeps its exactness however
    poor the fit. At strong tilts the evidence, unbiased though it is, has a skewed law, under exact
    values too: the mean of a few hundred runs then mostly lies below it, because the rare runs
    that make up for it are missing. More particles per run shorten the tail; more runs hardly do.

    :param program: a Pyro program with steps, usually from :func:`~pyro_tilt.poutine.align`.
    :param args: its arguments.
    :param reward: sugar for ``align(program, reward, beta)``.
    :param beta: multiplies the reward.
    :param kwargs: keyword arguments of the program.
    :param network: ``"heads"``, a network per step, so that fitting a step leaves the others as
        they are; ``"shared"``, one network with an embedding of the step; or a module of features
        (N, d) and the position of the step to values (N,). A module that has an attribute
        ``mixes_steps = True`` takes a tensor of N positions as well, and learns from batches that
        mix all steps, as the shared one does: where the steps have much in common that is better
        by far than a batch per step.
    :param features: a function of the carry to shape (N, d); by default its tensors side by side,
        and of a language program counts and last tokens
        (:func:`~pyro_tilt.infer.twists.carry_features`). Where d differs between steps, zeros are
        put at the end.
    :param standardize: scale the features by their mean and spread at each step. What is of one
        scale by itself and means the same at every step, as the hidden state of a network, is
        better left as it is for a network that all steps share.
    :param num_particles: paths per round to train on.
    :param rounds: rounds of running and fitting.
    :param steps: gradient steps per round and step of the program.
    :param batch_size: pairs per gradient step.
    :param lr: the first learning rate of Adam.
    :param weight_decay: apart from the gradient, as in AdamW: every gradient step takes this share
        times the learning rate from the weights.
    :param where: a function of the carry to a mask (N,) of the states whose values matter, all by
        default; nothing is learned elsewhere, as after the end of a sequence where a value is known
        anyway. A step with fewer than 50 such pairs is not calibrated, and NaN in the report.
    :param held_out: size of each of the two further runs, relative to ``num_particles``.
    :param ess_threshold: of the runs. With ``"shared"`` or a module of one's own the first round
        resamples nothing, as its values cannot be fitted one step after the other.
    :param max_plate_nesting: number of batch dims of the program; guessed by default.
    :param seed: makes the training reproduce and leaves the caller's random states untouched.
    :param progress: show a progress bar; None shows one where the work takes seconds.
    :raises ValueError: if the program has no steps, or their elements of ``xs`` do not differ.
    :raises ZeroWeights: if no path has a weight.

    >>> import pyro, torch, pyro.distributions as dist
    >>> from pyro_tilt import scan
    >>> def program():
    ...     def step(x, t):
    ...         return pyro.sample(f"x_{t}", dist.Normal(x, 0.5))
    ...     return scan("walk", step, torch.zeros(()), range(1, -1, -1))
    >>> twist = learn_twists(program, reward=lambda x: x, steps=50, rounds=1, seed=0)
    >>> gap = twist(torch.tensor([1.0]), 1) - twist(torch.tensor([0.0]), 1)
    >>> abs(gap.item() - 1.0) < 0.3
    True
    """
    if beta is not None and reward is None:
        raise ValueError("beta was given without a reward; give reward= as well")
    if reward is not None:
        program = align(program, reward, 1.0 if beta is None else beta)
    count = check_count("num_particles", num_particles, at_least=2)
    options = Options(
        features=carry_features if features is None else features,
        standardize=standardize,
        network=network,
        num_particles=count,
        num_held_out=max(2, round(held_out * count)),
        steps=check_count("steps", steps),
        batch_size=check_count("batch_size", batch_size),
        lr=lr,
        weight_decay=weight_decay,
        where=where,
        ess_threshold=ess_threshold,
    )
    rounds = check_count("rounds", rounds)
    started = time.perf_counter()
    with seeded(seed):
        plan = StepPlan(program, args, kwargs or {}, max_plate_nesting=max_plate_nesting)
        trainer = Trainer(plan, options, features, progress)
        for number in range(rounds):
            trainer.round(number, rounds)
        failed_at = trainer.failed_at()
    if failed_at is not None:
        warnings.warn(_FAILED.format(failed_at), SamplerWarning, stacklevel=2)
    return trainer.finish(time.perf_counter() - started)
