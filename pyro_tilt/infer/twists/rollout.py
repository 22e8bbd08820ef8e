# SPDX-License-Identifier: Apache-2.0
"""Looks ahead by running the rest of the program."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from pyro.poutine.block_messenger import BlockMessenger
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_tilt.infer.smc.plan import StepPlan
from pyro_tilt.infer.twists.features import count_particles
from pyro_tilt.infer.twists.step_keys import StepKeys
from pyro_tilt.infer.twists.twist import Twist
from pyro_tilt.ops import log_mean_exp
from pyro_tilt.ops.importance import as_double
from pyro_tilt.ops.reindex import reindex
from pyro_tilt.poutine import align
from pyro_tilt.poutine.particle_plate import ParticlePlate
from pyro_tilt.poutine.scan import plain_scan
from pyro_tilt.poutine.weight_messenger import WeightMessenger
from pyro_tilt.rewards import log_tilt

__all__ = ["RolloutTwist"]


class RolloutTwist(Twist):
    r"""
    The mean weight of k independent ends of the program, run from each particle.

    .. math:: \psi(c_t) = \frac1k \sum_{j=1}^{k}
        e^{\text{factors and rewards of run } j \text{ after } t}

    The value is random, and unbiased for the exact one. A sampler evaluates it once and carries
    it with the particle, as a part of its state, until the next one replaces it; so the
    evidence and the target stay exact at every k. What is drawn ahead is used for nothing else.

    Where none of the k ends has a weight, the exact value may still be positive, and a zero would
    remove a particle that has a future: the smallest positive value among the particles
    stands in for it. Where nothing is left to draw, zeros are exact and stay.

    The program has one scan. What runs after it reads the last carry; sites before it are drawn
    anew in a rollout and their factors do not count. The reward must be a function of what the
    program returns, as sites of the past do not occur in a rollout.

    :param program: the program, usually from :func:`~pyro_tilt.poutine.align`.
    :param args: its arguments.
    :param kwargs: its keyword arguments.
    :param num_draws: k, the ends per particle.
    :param reward: sugar for ``align(program, reward, beta)``.
    :param beta: multiplies the reward.
    :param max_plate_nesting: number of batch dims of the program, as given to the sampler;
        guessed by a plain run by default.
    :raises ValueError: if the program has no scan, or two.

    >>> import pyro.distributions as dist
    >>> from pyro_tilt import scan
    >>> def program():
    ...     def step(x, t):
    ...         return pyro.sample(f"x_{t}", dist.Normal(x, 1.0))
    ...     return scan("walk", step, torch.zeros(()), range(2, -1, -1))
    >>> twist = RolloutTwist(program, reward=lambda x: -x.abs(), num_draws=4)
    >>> twist(torch.tensor([1.0, -2.0]), 0), twist.value_calls
    (tensor([-1., -2.], dtype=torch.float64), 8)
    """

    def __init__(
        self,
        program: Callable[..., Any],
        *args: Any,
        num_draws: int = 1,
        reward: Any = None,
        beta: Any = None,
        kwargs: Mapping[str, Any] | None = None,
        max_plate_nesting: int | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(num_draws, int) or num_draws < 1:
            raise ValueError(f"num_draws must be an integer of at least 1, got {num_draws!r}")
        if beta is not None and reward is None:
            raise ValueError("beta was given without a reward; give reward= as well")
        if reward is not None:
            program = align(program, reward, 1.0 if beta is None else beta)
        self.program, self.args, self.kwargs = program, args, dict(kwargs or {})
        self.num_draws = num_draws
        with _NoteScan() as note:
            plan = StepPlan(program, args, self.kwargs, max_plate_nesting=None)
        if len(note.scans) != 1:
            raise ValueError(
                f"RolloutTwist: the program has {len(note.scans)} scans, and rollouts need one"
            )
        ((self.scan, xs),) = note.scans.items()
        self.keys = StepKeys(xs)
        self.max_plate_nesting = (
            plan.max_plate_nesting if max_plate_nesting is None else max_plate_nesting
        )

    def log_psi(self, carry: Any, x: Any) -> Tensor:
        """See :meth:`Twist.log_psi`."""
        size, k = count_particles(carry), self.num_draws
        place = self.keys(x)
        with torch.no_grad(), pyro.validation_enabled(False):
            ahead = self._run(carry, place, size)
        log_weights = ahead.weights()
        values = log_mean_exp(log_weights.reshape(size, k))
        if place + 1 == len(self.keys) and not ahead.values:
            return values
        dead = values == -math.inf
        if bool(dead.any()):
            alive = values[~dead]
            values = values.masked_fill(dead, float(alive.amin()) if len(alive) else 0.0)
        return values

    def _run(self, carry: Any, place: int, size: int) -> _Ahead:
        k = self.num_draws
        index = torch.arange(size).repeat_interleave(k)
        start = reindex(carry, index, size=size, path="carry")
        plate = ParticlePlate(size * k, -1 - self.max_plate_nesting)
        ahead = _Ahead(size * k, -1 - self.max_plate_nesting, self.scan, start, place)
        # The block hides the rollouts from the sampler that asks for them.
        with BlockMessenger(), ahead, _Expand(plate):
            self.program(*self.args, **self.kwargs)
        return ahead

    def _rows(self, values: Tensor) -> int:
        return len(values) * self.num_draws


class _Ahead(WeightMessenger):
    """Enters the scan after step ``place`` and gathers the log weights from there on."""

    def __init__(self, size: int, dim: int, scan: str, carry: Any, place: int) -> None:
        super().__init__(size, dim)
        self.scan, self.carry, self.place = scan, carry, place

    def weights(self) -> Tensor:
        """The log weight of each rollout, ``(size,)``."""
        total = self.log_factors
        for _, reward, beta in self.tilts:
            tilt = as_double(log_tilt(reward, beta))
            total = tilt if total is None else total + tilt
        return torch.zeros(self.size, dtype=torch.float64) if total is None else total

    def _pyro_tilt_scan(self, msg: Any) -> None:
        if msg["name"] != self.scan:
            return
        step, _, xs = msg["args"]
        msg["done"] = msg["stop"] = True
        # What lies before the scan belongs to another past.
        self._total = None
        self.tilts.clear()
        self.values.clear()
        msg["value"] = plain_scan(step, self.carry, list(xs)[self.place + 1 :])


class _NoteScan(Messenger):
    """Notes the scans of a program, those inside steps excepted."""

    def __init__(self) -> None:
        super().__init__()
        self.scans: dict[str, list[Any]] = {}
        self._inside = False

    def _pyro_tilt_scan(self, msg: Any) -> None:
        step, carry, xs = msg["args"]
        xs = list(xs)
        msg["done"] = True
        if self._inside:
            msg["value"] = plain_scan(step, carry, xs)
            return
        self.scans[msg["name"]] = xs
        self._inside = True
        try:
            msg["value"] = plain_scan(step, carry, xs)
        finally:
            self._inside = False


class _Expand(Messenger):
    """Expands sites as a plate does, without taking its dimension from an outer one."""

    def __init__(self, plate: ParticlePlate) -> None:
        super().__init__()
        self.plate = plate

    def _process_message(self, msg: Any) -> None:
        self.plate._process_message(msg)
