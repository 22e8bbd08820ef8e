# SPDX-License-Identifier: Apache-2.0
"""From a base, a reward and a closeness to a plan."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from pyro_tilt.ops.proximal import TransportCost, as_cost
from pyro_tilt.poutine.tilt_factor import check_beta
from pyro_tilt.rewards import Reward, as_reward
from pyro_tilt.tractability.advice import hardness_of, other_closeness
from pyro_tilt.tractability.base import Base, as_base
from pyro_tilt.tractability.entry import Entry
from pyro_tilt.tractability.problem import Problem
from pyro_tilt.tractability.registry import CLOSENESS, primitives
from pyro_tilt.tractability.result import Plan

__all__ = ["plan"]


def plan(
    base_or_program: Any,
    reward: Reward | Callable[[Any], Tensor],
    beta: float = 1.0,
    closeness: str = "kl",
    *,
    of: str | None = None,
    cost: TransportCost | str | None = None,
    penalty: float | None = None,
    radius: float | None = None,
    curvature: float | None = None,
    support: Tensor | None = None,
    num_pilot: int | None = None,
    min_acceptance: float = 0.01,
    seed: int = 0,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
) -> Plan:
    r"""
    Which ways there are to align a base by a reward, what each is worth, and which to take.

    Closeness ``"kl"`` asks for :math:`q \propto p\, e^{\beta r}`, the maximiser of
    :math:`\mathbb E_q \beta r - \mathrm{KL}(q \| p)`; ``"wasserstein"`` for the maximiser of
    :math:`\mathbb E_q \beta r - \lambda W_c(q, p)`, or of the mean reward in a ball. Every
    primitive is listed with its reason; the first that applies and is affordable is picked. Where
    none is, nothing is picked, and :meth:`Plan.run` says so unless it is told which to take.

    Acceptance rates come from the normalisers where those are known, otherwise from a pilot of
    base draws. Results on hardness concern all bases of a kind: the plan cites those that the
    reward falls under, and marks what was derived for this project.

    :param base_or_program: a distribution, a diffusion model, a language model or a Pyro program.
    :param reward: a :class:`~pyro_tilt.rewards.Reward`, whose class says what is known of it, or a
        callable, of which nothing is.
    :param beta: multiplies the reward (the KL coefficient of RLHF papers is its inverse).
    :param closeness: ``"kl"`` or ``"wasserstein"``.
    :param of: the site that the reward reads; the return value by default.
    :param cost: transport cost, see :class:`~pyro_tilt.infer.ProximalTransport`;
        ``"squared_euclidean"`` by default, ``"hamming"`` for autoregressive bases.
    :param penalty: price :math:`\lambda` of transport, 1 unless ``radius`` is given.
    :param radius: bound on the mean cost of transport, in place of a price.
    :param curvature: for transport, a bound on the Hessian of the reward.
    :param support: for transport, the only values that may be moved to.
    :param num_pilot: base draws of the pilot; None for 512 where no structure decides, 0 for none.
    :param min_acceptance: the least predicted acceptance rate, or share of effective draws, of
        what is picked.
    :param seed: of the pilot, which leaves the random state as it was.
    :param args: arguments of the program.
    :param kwargs: its keyword arguments.
    :raises TypeError: for a base or an option of the wrong type.
    :raises ValueError: for another closeness, transport options under ``"kl"``, numbers out of
        range, and where the aligned law does not exist.

    >>> import torch
    >>> import pyro.distributions as dist
    >>> from pyro_tilt import diffusion, rewards
    >>> base = diffusion.MixtureDiffusion(
    ...     dist.MultivariateNormal(torch.zeros(2), torch.eye(2)), diffusion.VP.linear(50))
    >>> found = plan(base, rewards.Linear(torch.tensor([2.0, -1.0])))
    >>> found.choice.name, found.choice.law, found.choice.cost
    ('LinearTilt', 'consistent', 50.0)
    >>> bowl = rewards.Quadratic(torch.tensor([[-9.0, 0.0], [0.0, 0.0]]))
    >>> plan(base, bowl, closeness="wasserstein").choice.law
    'exact'
    """
    if closeness not in CLOSENESS:
        raise ValueError(f"closeness must be one of {', '.join(CLOSENESS)}; got {closeness!r}")
    if of is not None and not isinstance(of, str):
        raise TypeError(f"of must name one site, got {of!r}")
    if isinstance(num_pilot, bool) or not (num_pilot is None or isinstance(num_pilot, int)):
        raise TypeError(f"num_pilot must be None or a number of draws, got {num_pilot!r}")
    if num_pilot is not None and num_pilot < 0:
        raise ValueError(f"num_pilot must not be negative, got {num_pilot}")
    if not 0.0 <= min_acceptance <= 1.0:
        raise ValueError(f"min_acceptance must lie in [0, 1], got {min_acceptance}")
    checked = as_reward(reward)
    number = float(check_beta(beta))
    base = as_base(base_or_program, args, kwargs)
    options = {"cost": cost, "penalty": penalty, "radius": radius}
    question = Problem(
        base=base,
        reward=checked,
        beta=number,
        closeness=closeness,
        **_transport(closeness, base, options, curvature, support),
        curvature=curvature,
        support=support,
        of=of,
        num_pilot=num_pilot,
        seed=seed,
    )
    return _ask(question, min_acceptance)


def _ask(problem: Problem, min_acceptance: float) -> Plan:
    entries: list[Entry] = []
    choice: Entry | None = None
    for primitive in primitives(problem.closeness):
        problem.needs_pilot = choice is None
        entry = primitive.ask(problem)
        entries.append(entry)
        if choice is None and _affordable(entry, min_acceptance):
            choice = entry
    return Plan(
        problem=problem,
        entries=tuple(entries),
        choice=choice,
        hardness=hardness_of(problem, choice),
        advice=other_closeness(problem, choice),
        min_acceptance=min_acceptance,
    )


def _affordable(entry: Entry, min_acceptance: float) -> bool:
    if not entry.applicable or not entry.trusted:
        return False
    return entry.acceptance is None or entry.acceptance >= max(min_acceptance, 1e-300)


def _transport(
    closeness: str,
    base: Base,
    options: dict[str, Any],
    curvature: float | None,
    support: Tensor | None,
) -> dict[str, Any]:
    """The transport problem: its cost, and a price or a radius."""
    given = {**options, "curvature": curvature, "support": support}
    named = [name for name, value in given.items() if value is not None]
    if closeness == "kl":
        if named:
            raise ValueError(
                f"{', '.join(named)}: for closeness='wasserstein' only; under 'kl' beta alone says "
                "how far the aligned law may go"
            )
        return {"cost": as_cost("squared_euclidean"), "penalty": 1.0, "radius": None}
    cost, penalty, radius = options.values()
    if penalty is not None and radius is not None:
        raise ValueError(f"give penalty= or radius=, not both; got {penalty} and {radius}")
    for name, value in (("penalty", penalty), ("radius", radius)):
        if value is not None and not 0.0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {value}")
    if curvature is not None and not math.isfinite(curvature):
        raise ValueError(f"curvature must be a finite number, got {curvature}")
    if support is not None and not isinstance(support, Tensor):
        raise TypeError(f"support must be a tensor of values, got {type(support).__name__}")
    if cost is None:
        cost = "hamming" if base.kind == "autoregressive" else "squared_euclidean"
    price = None if radius is not None else float(1.0 if penalty is None else penalty)
    return {"cost": as_cost(cost), "penalty": price, "radius": radius}
