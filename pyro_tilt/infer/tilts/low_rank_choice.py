# SPDX-License-Identifier: Apache-2.0
"""Which route, if any, draws from a quadratic tilt that is no multiple of the identity."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyro_tilt.infer.tilts.convex_family import DrawOptions
from pyro_tilt.infer.tilts.linear import DEFAULT_MAX_Z
from pyro_tilt.infer.tilts.low_rank import LowRankRoute
from pyro_tilt.infer.tilts.low_rank_mcmc import LogConcaveRoute, covariance_test
from pyro_tilt.infer.tilts.protocols import DiffusionModel
from pyro_tilt.rewards import Quadratic

if TYPE_CHECKING:
    from pyro_tilt.infer.tilts.quadratic import QuadraticTilt

__all__ = ["choose_max_z", "draw_options", "low_rank_route", "positive_factor"]

PAPER = "Moitra, Risteski and Rohatgi 2026, arXiv 2602.16570"
# Of a network's lattice the size is known only after its normalisers were estimated.
MAX_NETWORK_RANK, MAX_LATTICE_RANK = 2, 4


def draw_options(tilt: QuadraticTilt) -> DrawOptions:
    """
    How a sampler wants its linear tilts drawn.

    :param tilt: the sampler.
    """
    return DrawOptions(
        tilt.diffusion_sampler, tilt.eta, tilt.form, tilt.rows, tilt.max_z, tilt.normalizer_samples
    )


def choose_max_z(base: DiffusionModel, max_z: float | None) -> float:
    """
    The cap on the shift of a network's input; none for exact predictions.

    :param base: the model.
    :param max_z: what the user asked for.
    :raises ValueError: for a cap that is not positive.
    """
    if max_z is not None and not max_z > 0.0:
        raise ValueError(f"max_z must be positive, got {max_z}")
    return float(max_z or (math.inf if base.exact else DEFAULT_MAX_Z))


def positive_factor(reward: Quadratic) -> Tensor:
    r"""
    L with :math:`A = \tfrac12 L^\top L`.

    :param reward: the quadratic.
    :returns: shape (r, d), in float64.
    :raises NotImplementedError: where A has a negative direction.

    >>> positive_factor(Quadratic(torch.diag(torch.tensor([2.0, 0.0])))).abs()
    tensor([[2., 0.]], dtype=torch.float64)
    """
    values, vectors = torch.linalg.eigh(reward.A.detach().double())
    slack = len(values) * torch.finfo(reward.A.dtype).eps * float(values.abs().max())
    negative = int((values < -slack).sum())
    if negative:
        raise NotImplementedError(
            f"no route draws from the tilt by this quadratic: {negative} of its {len(values)} "
            f"eigenvalues (beta folded in) are negative, down to {float(values[0]):.3g}. A single "
            f"negative direction is NP-hard in general ({PAPER}, Theorem 4.1); a negative multiple "
            "of the identity is drawn exactly. For a few negative directions alone try ConvexTilt "
            "with rewards.LowDim(f, A, concave=True), which predicts its acceptance before it "
            "draws; otherwise TemperedSMC or SMC on the model's program, whose certificates are "
            "weaker"
        )
    kept = values > slack
    return (vectors[:, kept] * (2.0 * values[kept]).sqrt()).T.contiguous()


def low_rank_route(
    base: DiffusionModel, reward: Quadratic, *, epsilon: float, radius: float | None
) -> LowRankRoute | LogConcaveRoute:
    """
    The lattice where the rank is small, Langevin chains where the mixing density is log-concave.

    :param base: the model.
    :param reward: the quadratic, beta folded in.
    :param epsilon: the error of the lattice.
    :param radius: a bound on the norm of the features.
    :raises NotImplementedError: where neither is possible, with the reason.
    """
    factor = positive_factor(reward)
    rank = len(factor)
    lattice = LowRankRoute(base, reward, factor)
    why = f"its rank is {rank}"
    if rank <= (MAX_LATTICE_RANK if lattice.sized(radius) else MAX_NETWORK_RANK):
        try:
            lattice.check(epsilon, radius)
            return lattice
        except NotImplementedError as error:
            why = f"its rank is {rank}, and {error}"
    test = covariance_test(base, reward, factor, radius=radius)
    if test is not None and test.passed:
        return LogConcaveRoute(base, reward, factor, test)
    found = (
        "the model does not know its normalisers, so that log-concavity cannot be tested"
        if test is None
        else f"sup |L Cov L'| is at least {test.value:.3g}, not below 1"
    )
    raise NotImplementedError(
        f"no route draws from the tilt by this positive quadratic: {why}, too high for the "
        f"lattice, and the mixing density is not known to be log-concave ({found}). Positive "
        f"quadratics of high rank are NP-hard in general ({PAPER}, Theorem A.1). Use TemperedSMC "
        "or SMC on the model's program, whose certificates are weaker"
    )
