# SPDX-License-Identifier: Apache-2.0
"""Wasserstein alignment by a proximal map of base draws."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_tilt.infer.errors import SamplerWarning
from pyro_tilt.infer.pooled import refuse_shared_minibatches
from pyro_tilt.infer.proposal import ProgramProposal
from pyro_tilt.infer.sampler import Run, Sampler, check_count
from pyro_tilt.infer.transport.base_program import as_program, value_site
from pyro_tilt.infer.transport.closed_rules import on_support
from pyro_tilt.infer.transport.oracle import ProximalOracle, ProximalProblem, find_proximal
from pyro_tilt.infer.transport.outcome import Outcome, transport_result
from pyro_tilt.infer.weighted_samples import WeightedSamples
from pyro_tilt.ops.proximal import BallPlan, ProximalStep, TransportCost, as_cost, ball_plan
from pyro_tilt.rewards import as_reward, evaluate

__all__ = ["ProximalTransport"]

# The duality gap at which the search for the penalty of a ball stops, relative to the rewards.
_BALL_TOLERANCE = 1e-10
# The share of the rewards beyond which a gap is warned of.
_LOOSE = 0.2


class ProximalTransport(Sampler):
    r"""
    Moves draws of a base law :math:`p` uphill, each as far as the reward pays for it.

    With :math:`W_c(q, p)` the least mean cost of a coupling, the law of the draws solves

    .. math::

        \max_q\; \mathbb E_q\, \beta r - \lambda W_c(q, p)
        \qquad\text{or}\qquad
        \max_q\; \mathbb E_q\, \beta r \;\text{ subject to }\; W_c(q, p) \le \rho .

    The first is solved by moving every base draw to
    :math:`T(x) = \arg\max_y \beta r(y) - \lambda c(x, y)`, the second by the same map at the
    :math:`\lambda` that minimises :math:`\lambda\rho + \mathbb E_p \max_y (\beta r - \lambda c)`;
    where the cost of that map jumps across :math:`\rho`, two maps are mixed at random odds that
    are the same for every point (Blanchet and Murthy 2019, arXiv 1604.01446; Gao and Kleywegt,
    arXiv 1604.02199; that proximal maps are the primitive of Wasserstein alignment: Moitra,
    Risteski and Rohatgi 2026, arXiv 2605.11361).

    How T is found follows from the reward's class, by :func:`register_proximal`: ``Linear``,
    ``Quadratic``, ``MaxAffine``, ``TokenScores`` and ``MaxOf`` in closed form; concave rewards,
    and those of a known ``curvature`` below the penalty, by accelerated gradients; ``LowDim`` with
    a Lipschitz constant by branch and bound; any reward on a finite ``support`` by trying it
    all. What is left is a local search, of which the run warns.

    Certificate: *exact* for closed forms under a penalty, with ``gap`` zero; *bounded* where the
    points are only near their maximum or a ball is asked for, with ``gap`` the duality gap on the
    sampled base, which is sure up to rounding; *search*, with an infinite gap, for a local search
    where the reward has no known upper bound. What the finite sample leaves open is excluded by
    name; ``info["gap_upper"]`` is a one-sided 95 % confidence bound for the base law itself, by the
    central limit theorem.

    ``samples`` holds the moved value alone. ``stats`` has ``reward`` (without beta),
    ``transport_cost``, ``base_value``, ``base_reward`` and ``gap`` of each draw; ``info`` has
    ``penalty``, the objective ``value`` with its ``dual_value`` and ``value_error``, the mean
    ``transport_cost``, and ``mixing``, the odds of the farther map. In a ball mixed at a kink these
    are of the randomised plan; the draws are assigned to its maps by systematic sampling.

    :param base: a Pyro program without observations, or a distribution (site ``"x"``).
    :param reward: a :class:`~pyro_tilt.rewards.Reward` or a callable.
    :param beta: multiplies the reward.
    :param cost: ``"squared_euclidean"`` (half the squared norm), ``"euclidean"``, ``"hamming"``, or
        a cost of :mod:`pyro_tilt.ops`: ``Mahalanobis(M)``, ``NormPower(p)``.
    :param penalty: :math:`\lambda > 0`; either this or ``radius``.
    :param radius: :math:`\rho > 0`, the bound on the mean cost; a ball of radius e in the distance
        W2 has ``radius`` e^2 / 2.
    :param of: the name of the site to move; the return value by default.
    :param support: the only values that points may move to, of shape (m,) + event shape.
    :param curvature: a bound on the Hessian of the reward, :math:`\nabla^2 r \preceq \ell I` (or
        :math:`\ell M`), which a penalty above :math:`\beta\ell` turns into a certificate.
    :param tolerance: the certified gap of one point at which an iterative search stops.
    :param max_steps: most gradients of one point.
    :param options: see :class:`~pyro_tilt.infer.Sampler`.
    :raises ValueError: for neither or both of penalty and radius, a penalty below the growth of
        the reward, a NaN reward, a reward that is not as declared, observations in the program.
    :raises NotImplementedError: where no proximal map is known.

    Example::

        >>> import pyro.distributions as dist
        >>> from pyro_tilt import rewards
        >>> reward = rewards.Quadratic(torch.tensor([[-50.0, 0.0], [0.0, 0.0]]))
        >>> base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        >>> result = ProximalTransport(base, reward, penalty=1.0, num_samples=1000, seed=0).run()
        >>> result.certificate.law, result.certificate.gap
        ('exact', 0.0)
        >>> ratio = result.samples["x"] / result.stats["base_value"]
        >>> (1 / ratio[:2]).round()
        tensor([[101.,   1.],
                [101.,   1.]])
    """

    def __init__(
        self,
        base: Any,
        reward: Any,
        beta: float = 1.0,
        *,
        cost: TransportCost | str = "squared_euclidean",
        penalty: float | None = None,
        radius: float | None = None,
        of: str | None = None,
        support: Tensor | None = None,
        curvature: float | None = None,
        tolerance: float = 1e-8,
        max_steps: int = 2000,
        **options: Any,
    ) -> None:
        super().__init__(as_program(base), **options)
        self.reward = as_reward(reward)
        self.beta = _number("beta", beta, at_least=None)
        self.cost = as_cost(cost)
        if (penalty is None) == (radius is None):
            raise ValueError(
                "give either penalty= (the price of the transport cost) or radius= (a bound on its "
                f"mean), got penalty={penalty} and radius={radius}"
            )
        self.penalty = None if penalty is None else _number("penalty", penalty)
        self.radius = None if radius is None else _number("radius", radius)
        if of is not None and not isinstance(of, str):
            raise TypeError(f"of must name one site, got {of!r}")
        self.of, self.support = of, support
        if curvature is not None and not math.isfinite(curvature):
            raise ValueError(f"curvature must be a finite number, got {curvature}")
        self.curvature = curvature
        self.tolerance = _number("tolerance", tolerance)
        self.max_steps = check_count("max_steps", max_steps)
        self._site = ""

    def _proposal(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ProgramProposal:
        program, self._site = value_site(self.program, self.of, args, kwargs)
        return ProgramProposal(
            program,
            args,
            kwargs,
            max_plate_nesting=self.max_plate_nesting,
            vectorized=self.vectorized,
        )

    def _sample(self, run: Run) -> WeightedSamples:
        refuse_shared_minibatches(run)
        _refuse_weights(run.proposal)
        work = _Work(self, run, self._site)
        base = work.draw()
        if self.radius is None:
            assert self.penalty is not None
            outcome = Outcome.penalised(work.solve(self.penalty), self.penalty)
        else:
            plan = work.ball(self.radius)
            generator = torch.Generator().manual_seed(run.accept_seed)
            outcome = Outcome.of_plan(plan, generator)
        if work.oracle.law == "search" or not math.isfinite(outcome.gap):
            warnings.warn(
                f"no certified proximal map is known for {self.reward!r}, so that points were "
                "moved to local maxima. State its structure (rewards.Concave, LowDim with "
                "lipschitz=), give curvature= and a penalty above it, or a support=",
                SamplerWarning,
                stacklevel=5,
            )
        elif outcome.gap > self._loose(outcome, base):
            warnings.warn(
                f"the certified gap {outcome.gap:.3g} is large beside the objective "
                f"{outcome.value:.3g}: the certificate holds but says little. Raise max_steps, "
                "smooth kinks of the reward, or raise the penalty",
                SamplerWarning,
                stacklevel=5,
            )
        return transport_result(self, run, work, base, outcome)

    def _loose(self, outcome: Outcome, base: Points) -> float:
        """A gap above which a certificate says little."""
        size = max(abs(outcome.value), abs(self.beta) * float(base.reward.abs().mean()))
        return max(_LOOSE * size, 10.0 * self.tolerance)


@dataclass
class Points:
    """Base draws: the values, flattened, and their rewards."""

    value: Tensor
    flat: Tensor
    reward: Tensor


class _Work:
    """The base draws of one run and the proximal steps taken from them, block by block."""

    def __init__(self, sampler: ProximalTransport, run: Run, site: str) -> None:
        self.sampler, self.run, self.site = sampler, run, site
        self.calls = 0
        self.base: Points
        self.oracle: ProximalOracle
        self._last: Tensor | None = None

    def draw(self) -> Points:
        """Draws the base and finds the proximal map of its values."""
        sampler, parts, rewards, filled = self.sampler, [], [], 0
        while filled < sampler.num_samples:
            size = min(sampler.block, sampler.num_samples - filled)
            value = self.run.proposal.draw(size).samples[self.site]
            if not filled:
                self.oracle = find(sampler, value)
            rewards.append(evaluate(sampler.reward, value, shape=(size,)).detach())
            parts.append(value)
            filled += size
        value, reward = torch.cat(parts), torch.cat(rewards)
        self.calls += filled
        self.base = Points(value, value.reshape(len(value), -1), reward)
        return self.base

    def solve(self, penalty: float) -> ProximalStep:
        """The proximal step of all draws at a penalty."""
        x, block = self.base.flat, self.sampler.max_batch
        with self.run.bar(len(x)) as bar:
            steps = []
            for start in range(0, len(x), block):
                rows = slice(start, start + block)
                warm = None if self._last is None else self._last[rows]
                steps.append(self._checked(self.oracle.solve(x[rows], penalty, warm)))
                bar.update(len(x[rows]))
        step = ProximalStep.cat(steps)
        self.calls += step.calls
        if self.oracle.law != "exact":
            self._last = step.points
        return step

    def ball(self, radius: float) -> BallPlan:
        """The plan of a mean cost within the radius."""
        spend = self.oracle.spend
        return ball_plan(
            self.solve,
            radius,
            growth=self.oracle.growth,
            tolerance=1e-5 if self.oracle.law == "search" else _BALL_TOLERANCE,
            spend=None if spend is None else lambda step, extra: spend(self.base.flat, step, extra),
        )

    def _checked(self, step: ProximalStep) -> ProximalStep:
        bad = ~(step.reward < math.inf)
        if bool(bad.any()):
            raise ValueError(
                f"the reward is NaN or +inf at {int(bad.sum())} of {len(bad)} points that were "
                "moved; a reward must be a number or -inf wherever its gradient leads"
            )
        return step


def find(sampler: ProximalTransport, value: Tensor) -> ProximalOracle:
    """The proximal map of a sampler for values like these, (n,) + event shape."""
    if sampler.cost.continuous and not value.is_floating_point():
        raise ValueError(
            f"{sampler.cost!r} moves values by real amounts, but the site holds {value.dtype}; use "
            "cost='hamming' for tokens"
        )
    problem = ProximalProblem(
        sampler.reward if sampler.beta == 1.0 else sampler.beta * sampler.reward,
        sampler.cost,
        value.shape[1:],
        curvature=_scaled_curvature(sampler),
        tolerance=sampler.tolerance,
        max_steps=sampler.max_steps,
    )
    support = sampler.support
    if support is not None:
        if support.dim() < 1 or support.shape[1:] != value.shape[1:] or not len(support):
            raise ValueError(
                f"support must have shape (m, *{tuple(value.shape[1:])}) for values of that shape, "
                f"got {tuple(support.shape)}"
            )
        evaluate(sampler.reward, support, shape=(len(support),), name="support")
        return on_support(problem, support.to(value.device))
    return find_proximal(problem)


def _scaled_curvature(sampler: ProximalTransport) -> float | None:
    if sampler.curvature is None:
        return None
    if sampler.beta < 0.0:
        raise ValueError(
            "curvature= bounds the reward from one side only; with a negative beta negate the "
            "reward and state the curvature of that"
        )
    return sampler.beta * sampler.curvature


def _refuse_weights(proposal: ProgramProposal) -> None:
    sites = proposal._sites
    weighing = [*sites.factors, *(n for n in sites.unbounded if n in sites.latents)]
    if weighing:
        raise ValueError(
            "transport moves draws of the program, of which observations, factors and tilts "
            f"({weighing}) would make weighted ones; draw from the posterior first"
        )


def _number(name: str, value: float, *, at_least: float | None = 0.0) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be a number, got {type(value).__name__}") from error
    if not math.isfinite(number) or (at_least is not None and number <= at_least):
        kind = "finite" if at_least is None else "positive and finite"
        raise ValueError(f"{name} must be {kind}, got {value}")
    return number
