# SPDX-License-Identifier: Apache-2.0
"""What a plan is about: a base, a reward, a notion of closeness."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pyro_tilt.distributions import Tilted
from pyro_tilt.infer.proposal import ProgramProposal
from pyro_tilt.infer.seeding import seeded
from pyro_tilt.infer.transport import ProximalOracle, ProximalProblem, find_proximal
from pyro_tilt.ops.proximal import TransportCost
from pyro_tilt.poutine import align
from pyro_tilt.rewards import Reward
from pyro_tilt.tractability.base import Base
from pyro_tilt.tractability.pilot import Pilot

__all__ = ["DEFAULT_PILOT", "Problem"]

DEFAULT_PILOT = 512


@dataclass(eq=False)
class Problem:
    """
    A question to the rules of :func:`register_primitive`.

    :ivar base: what is aligned, and what is known of it.
    :ivar reward: the reward, without beta.
    :ivar beta: multiplies the reward.
    :ivar closeness: ``"kl"`` or ``"wasserstein"``.
    :ivar cost: the transport cost.
    :ivar penalty: its price, None for a ball.
    :ivar radius: the radius of a ball, None for a price.
    :ivar curvature: a bound on the Hessian of the reward, where one was given.
    :ivar support: the only values that transport may move to, where they were given.
    :ivar of: what the reward reads; see :func:`~pyro_tilt.align`.
    :ivar num_pilot: base draws of the pilot; None for 512 where they are needed, zero for none.
    :ivar seed: of the pilot.
    :ivar needs_pilot: whether nothing was picked yet, so that predictions from draws are wanted.
    """

    base: Base
    reward: Reward
    beta: float
    closeness: str
    cost: TransportCost
    penalty: float | None
    radius: float | None
    curvature: float | None = None
    support: Tensor | None = None
    of: str | None = None
    num_pilot: int | None = None
    seed: int = 0
    needs_pilot: bool = True
    _pilot: Pilot | None = field(default=None, repr=False)

    @property
    def kind(self) -> str:
        """``"distribution"``, ``"diffusion"``, ``"autoregressive"`` or ``"program"``."""
        return self.base.kind

    @cached_property
    def folded(self) -> Reward:
        """The reward with beta folded in."""
        return self.reward if self.beta == 1.0 else self.reward * self.beta

    @property
    def target(self) -> str:
        """The law that a sampler of the program is after."""
        return "joint tilt"

    def aligned(self, program: Callable[..., Any] | None = None) -> Callable[..., Any]:
        """
        The joint tilt as a program.

        :param program: in place of the one that draws from the base.
        """
        return align(program or self.base.program, self.reward, self.beta, of=self.of)

    @cached_property
    def proposal(self) -> ProgramProposal:
        """The aligned program, ready to draw."""
        with seeded(self.seed):
            return ProgramProposal(self.aligned(), self.base.args, self.base.kwargs)

    @cached_property
    def tilted(self) -> Tilted:
        """The tilt of a base that is a distribution."""
        return Tilted(self.base.given, self.reward, self.beta)

    @property
    def pilot(self) -> Pilot | None:
        """Log weights of base draws under a fixed seed; None where they are not wanted."""
        if self._pilot is None:
            size = self.num_pilot
            if size is None:
                size = DEFAULT_PILOT if self.needs_pilot else 0
            if size:
                with seeded(self.seed):
                    draws = self.proposal.draw(size)
                self._pilot = Pilot(draws.log_weights, self.proposal.log_bound)
        return self._pilot

    @cached_property
    def oracle(self) -> ProximalOracle:
        """The proximal map that transport would use."""
        curvature = None if self.curvature is None else self.beta * self.curvature
        question = ProximalProblem(
            self.folded, self.cost, self.base.event_shape(self.of), curvature=curvature
        )
        return find_proximal(question)

    @property
    def cost_unit(self) -> str:
        """What costs are counted in: predictions of a diffusion, otherwise runs of the base."""
        return "denoiser rows" if self.kind == "diffusion" else "base draws"

    def cost_of(self, base_draws: float) -> float:
        """
        The cost of a number of base draws.

        :param base_draws: how many.
        """
        return base_draws * self.base.rows_per_draw if math.isfinite(base_draws) else math.inf

    def __str__(self) -> str:
        near = f"closeness {self.closeness}"
        if self.closeness == "wasserstein":
            price = (
                f"penalty {self.penalty:g}" if self.radius is None else f"radius {self.radius:g}"
            )
            near += f" ({self.cost!r}, {price})"
        return f"{self.base.name} ({self.kind}), {_short(self.reward)}, beta {self.beta:g}, {near}"


def _short(reward: Reward) -> str:
    """The reward in a few words: its class, its size, and what is known of it."""
    words = [type(reward).__name__]
    known = [name for name in ("convex", "concave") if getattr(reward, name)]
    if len(known) == 1:
        words.append(known[0])
    if not math.isinf(reward.upper_bound):
        words.append(f"at most {reward.upper_bound:.4g}")
    shape = getattr(reward, "event_shape", torch.Size())
    if shape:
        words.append(f"on {'x'.join(str(n) for n in shape)} values")
    return ", ".join(words)
