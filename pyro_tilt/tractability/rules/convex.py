# SPDX-License-Identifier: Apache-2.0
"""Convex functions of a few features, and concave ones by a single tangent."""

from typing import Any

import torch
from torch import Tensor

from pyro_tilt.infer.tilts import ConvexTilt
from pyro_tilt.infer.tilts.diffusion_tilt import TARGET
from pyro_tilt.rewards import LowDim, MaxAffine, Quadratic
from pyro_tilt.tractability.entry import Entry, applies, declines
from pyro_tilt.tractability.hardness import negative_directions, spectrum
from pyro_tilt.tractability.problem import Problem
from pyro_tilt.tractability.registry import register_primitive

__all__ = ["as_features"]

PAPER = "Moitra, Risteski and Rohatgi 2026, arXiv 2605.11361"
MAX_FEATURES = 3


class Bowl:
    """
    A quadratic of features, :math:`\\langle u^2, h\\rangle + \\langle u, b\\rangle + c`.

    :param heights: h, shape (k,).
    :param slopes: b, shape (k,).
    :param offset: c.
    """

    def __init__(self, heights: Tensor, slopes: Tensor, offset: Tensor) -> None:
        self.heights, self.slopes, self.offset = heights, slopes, offset

    def __call__(self, u: Tensor) -> Tensor:
        heights, slopes = self.heights.to(u), self.slopes.to(u)
        return ((u * heights + slopes) * u).sum(-1) + self.offset.to(u)


def as_features(reward: Quadratic) -> LowDim | None:
    r"""
    A quadratic that bends one way, as a function of the few features that it depends on.

    :param reward: the quadratic.
    :returns: None where it bends both ways, is linear in some direction, or depends on more than
        three features.

    >>> bowl = Quadratic(torch.diag(torch.tensor([-2.0, -1.0, 0.0])), torch.tensor([0.0, 1.0, 0.0]))
    >>> lowdim = as_features(bowl)
    >>> x = torch.tensor([[1.0, 2.0, 3.0], [-1.0, 0.5, 0.0]])
    >>> lowdim.A.shape, bool(torch.allclose(lowdim(x), bowl(x)))
    (torch.Size([2, 3]), True)
    """
    if reward.event_dim != 1 or reward.batch_shape or not (reward.concave or reward.convex):
        return None
    values, vectors = torch.linalg.eigh(reward.A.detach().double())
    bent = spectrum(reward).to(values.device) != 0.0
    rows, heights = vectors.mT[bent], values[bent]
    slope = reward.b.detach().double()
    slopes = rows @ slope
    across = (slope - slopes @ rows).norm()
    # Along a direction in which a reward is linear, no tangent but the exact one lies above it.
    if float(across) > 1e-9 * float(slope.norm()) or not 1 <= len(rows) <= MAX_FEATURES:
        return None
    f = Bowl(heights, slopes, reward.c.detach().double())
    return LowDim(f, rows.to(reward.A), concave=reward.concave, convex=reward.convex)


@register_primitive("ConvexTilt", order=40)
def convex(problem: Problem) -> Entry:
    """A mixture of linear tilts with rejection; its acceptance follows from the normalisers."""
    if problem.kind != "diffusion":
        return declines(f"for diffusion models, and the base is of the kind {problem.kind}")
    reward = _features(problem)
    if reward is None:
        return declines(
            "for MaxAffine rewards, convex or concave LowDim ones, and concave Quadratic ones that "
            f"bend in at most {MAX_FEATURES} directions and are linear in none; this is a "
            f"{type(problem.reward).__name__}"
        )
    if not (reward.convex or reward.concave):
        return declines("the LowDim reward is not declared convex or concave")

    def make(**options: Any) -> ConvexTilt:
        return ConvexTilt(problem.base.given, reward, beta=problem.beta, **options)

    bends_down = negative_directions(problem.folded)
    words = (
        "a concave reward lies below a single tangent tilt, which rejection thins"
        if bends_down
        else "the exponential of a convex reward lies below a mixture of linear tilts, which "
        "rejection thins"
    )
    source = "derived here" if bends_down else f"{PAPER}; the envelopes are derived here"
    numbers: dict[str, Any] = {}
    if problem.base.given.exact or problem.num_pilot:
        try:
            found = make(num_samples=1).plan(problem.seed)
        except NotImplementedError as error:
            return declines(str(error))
        except ValueError as error:
            # A concave function that is linear somewhere may have no tangent that can be found.
            if not bends_down:
                raise
            return declines(str(error))
        rate = found.acceptance
        cost = problem.cost_of(1.0 / max(rate, 1e-300))
        numbers = {"acceptance": rate, "acceptance_error": found.acceptance_error, "cost": cost}
        words += "; acceptance from the normalisers"
    else:
        words += "; a run estimates the normalisers and predicts its acceptance before it draws"
    return applies(
        words, make, "consistent", TARGET, cost_unit=problem.cost_unit, source=source, **numbers
    )


def _features(problem: Problem) -> LowDim | MaxAffine | None:
    reward = problem.reward
    if isinstance(reward, Quadratic):
        return as_features(reward) if negative_directions(problem.folded) else None
    return reward if isinstance(reward, LowDim | MaxAffine) else None
