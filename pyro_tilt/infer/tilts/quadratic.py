# SPDX-License-Identifier: Apache-2.0
"""Quadratic tilts of a diffusion, each by the route that its structure allows."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
from tqdm import tqdm

from pyro_tilt.infer.sampler import Run, check_count
from pyro_tilt.infer.tilts.diffusion_tilt import DiffusionTilt, TiltDraws
from pyro_tilt.infer.tilts.isotropic import IsotropicRoute
from pyro_tilt.infer.tilts.linear import LinearTilt
from pyro_tilt.infer.tilts.linear_draws import choose_form
from pyro_tilt.infer.tilts.low_rank_choice import choose_max_z, low_rank_route
from pyro_tilt.infer.tilts.protocols import DiffusionModel
from pyro_tilt.rewards import Linear, Quadratic

__all__ = ["QuadraticTilt"]


class Route(Protocol):
    """A way to draw from one kind of quadratic tilt."""

    def draw(self, tilt: QuadraticTilt, progress: Callable[[int], Any]) -> TiltDraws:
        """Draws of the tilt."""


Match = Callable[[DiffusionModel, Quadratic], "Route | None"]


class LinearRoute:
    """
    The route where nothing is quadratic, as at a beta of zero.

    :param reward: the reward, beta folded in.
    """

    def __init__(self, reward: Quadratic) -> None:
        self.reward = reward

    @classmethod
    def match(cls, base: DiffusionModel, reward: Quadratic) -> LinearRoute | None:
        """
        The route where A = 0, otherwise None.

        :param base: the model.
        :param reward: the quadratic, beta folded in.
        """
        return None if bool(reward.A.any()) else cls(reward)

    def draw(self, tilt: QuadraticTilt, progress: Callable[[int], Any]) -> TiltDraws:
        """
        Draws of the tilt.

        :param tilt: the sampler, whose options count.
        :param progress: called with the rows done.
        """
        linear = LinearTilt(
            tilt.base,
            Linear(self.reward.b.expand(tilt.base.event_shape), offset=self.reward.c),
            sampler=tilt.diffusion_sampler,
            eta=tilt.eta,
            form=tilt.form,
            num_samples=tilt.num_samples,
            max_batch=tilt.rows,
        )
        return linear.draw(progress)


# Asked in this order; a route gets the quadratic with beta folded in.
ROUTES: tuple[Match, ...] = (LinearRoute.match, IsotropicRoute.match)


class QuadraticTilt(DiffusionTilt):
    r"""
    Draws of a diffusion tilted by a quadratic reward, :math:`q \propto p\, e^{\beta (x^\top A x +
    b^\top x + c)}`.

    What can be done depends on A. A negative multiple of the identity is as easy as no tilt: see
    :func:`isotropic_draws`. A positive :math:`A = \tfrac12 L^\top L` of low rank makes the tilt a
    mixture of linear ones over a lattice of a few points per direction, see
    :class:`~pyro_tilt.infer.tilts.Lattice`; one of any rank does so by Langevin chains, where
    :math:`\sup_\theta \|L\, \mathrm{Cov}_\theta L^\top\| < 1`. A negative direction beside flat
    ones is hard in general, even one of them alone, and so is a positive A of high rank (Moitra,
    Risteski and Rohatgi 2026, arXiv 2602.16570, Theorems 4.1 and A.1): those are refused.

    Certificate, for the tilt in continuous time; it leaves out, by name, the discretisation and the
    error of a network, and so is *consistent* in the number of steps whatever the route. The
    lattice costs a total variation of ``epsilon`` at most where the model knows its normalisers;
    that bound, or with the error of estimated normalisers an estimate, stands in
    ``estimated_total_variation``.

    :param base: a diffusion model whose draws are vectors.
    :param reward: the quadratic.
    :param beta: multiplies the reward.
    :param sampler: ``"ancestral"``, ``"heun"`` or ``"euler"``.
    :param eta: noise of the ancestral sampler.
    :param form: ``"start"``, ``"prediction"``, or ``"auto"`` for the first wherever it is right.
    :param epsilon: total variation that the lattice may cost.
    :param rejection: remove the error of the lattice by rejecting a share of ``epsilon``.
    :param radius: a bound on :math:`|L x|` over the data, where one is known.
    :param mcmc_steps: moves of a Langevin chain.
    :param normalizer_samples: draws of each anchor where normalisers are estimated.
    :param max_z: as in :class:`LinearTilt`, for the linear tilts of a mixture.
    :param num_samples: draws per chain; see :class:`~pyro_tilt.infer.Sampler` for the other
        options ``num_chains``, ``seed``, ``progress`` and ``max_batch``.
    :raises TypeError: for a reward that is no :class:`~pyro_tilt.rewards.Quadratic`.
    :raises ValueError: for shapes that do not fit, and where the tilt does not exist.
    :raises NotImplementedError: where no route fits A.

    Example::

        >>> import pyro.distributions as dist
        >>> from pyro_tilt import diffusion, rewards
        >>> base = diffusion.MixtureDiffusion(
        ...     dist.MultivariateNormal(torch.zeros(2), torch.eye(2)), diffusion.VP.linear(100))
        >>> reward = rewards.Quadratic(-0.5 * torch.eye(2), torch.tensor([3.0, 0.0]))
        >>> result = QuadraticTilt(base, reward, num_samples=4000, seed=0).run()
        >>> round(result.expectation("x_0")[0].item(), 1), round(result.log_normalizer.item(), 3)
        (1.5, 1.557)
    """

    def __init__(
        self,
        base: DiffusionModel,
        reward: Quadratic,
        *,
        beta: float = 1.0,
        sampler: str = "ancestral",
        eta: float = 1.0,
        form: str = "auto",
        epsilon: float = 1e-3,
        rejection: bool = False,
        radius: float | None = None,
        mcmc_steps: int = 200,
        normalizer_samples: int = 2000,
        max_z: float | None = None,
        **options: Any,
    ) -> None:
        if not isinstance(reward, Quadratic):
            raise TypeError(
                f"QuadraticTilt takes a rewards.Quadratic, got {type(reward).__name__}; LinearTilt "
                "and ConvexTilt take other rewards"
            )
        super().__init__(base, reward, beta=beta, sampler=sampler, eta=eta, **options)
        _check_shapes(base, reward)
        self.form = form
        choose_form(form, sampler, eta)
        if not 0.0 < epsilon < 0.5:
            raise ValueError(f"epsilon must lie in (0, 0.5), got {epsilon}")
        if radius is not None and not 0.0 < radius < math.inf:
            raise ValueError(f"radius must be positive and finite, got {radius}")
        self.epsilon, self.rejection, self.radius = float(epsilon), bool(rejection), radius
        self.mcmc_steps = check_count("mcmc_steps", mcmc_steps)
        self.normalizer_samples = check_count("normalizer_samples", normalizer_samples)
        self.max_z = choose_max_z(base, max_z)
        moved = reward.to(device=base.device, dtype=base.dtype)
        self.reward: Quadratic = moved
        self.folded: Quadratic = moved._times(self.beta)
        _check_exists(base, self.folded)
        self.route = self._choose()

    def _draw(self, run: Run, bar: tqdm) -> TiltDraws:
        return self.route.draw(self, bar.update)

    def _choose(self) -> Route:
        for match in ROUTES:
            route = match(self.base, self.folded)
            if route is not None:
                return route
        return low_rank_route(self.base, self.folded, epsilon=self.epsilon, radius=self.radius)


def _check_shapes(base: DiffusionModel, reward: Quadratic) -> None:
    if reward.batch_shape != torch.Size() or reward.event_shape != base.event_shape:
        raise ValueError(
            f"A must be ({', '.join(str(n) for n in (*base.event_shape, *base.event_shape))}), as "
            f"the model's states have shape {tuple(base.event_shape)}; got "
            f"{tuple(reward.A.shape)}. Flatten the states of a model over images, and for a latent "
            "diffusion state the reward in the latent space"
        )


def _check_exists(base: DiffusionModel, reward: Quadratic) -> None:
    """A model that knows its tilts in closed form refuses those that do not exist."""
    tilted_law = getattr(base, "tilted_law", None)
    if tilted_law is None or not bool(reward.A.any()):
        return
    try:
        tilted_law(reward)
    except NotImplementedError:
        return
    except ValueError as error:
        raise ValueError(
            f"the quadratic tilt is not integrable against this model: {error}"
        ) from error
