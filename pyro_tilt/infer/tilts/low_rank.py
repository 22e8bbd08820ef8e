# SPDX-License-Identifier: Apache-2.0
"""Positive quadratic tilts of low rank, as mixtures of linear tilts over a lattice."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyro_tilt.infer.certificate import Certificate
from pyro_tilt.infer.tilts.convex_family import TiltFamily
from pyro_tilt.infer.tilts.convex_mixture import TiltMixture, mixture_error
from pyro_tilt.infer.tilts.convex_pool import make_family
from pyro_tilt.infer.tilts.diffusion_tilt import TARGET, TiltDraws, tilt_certificate
from pyro_tilt.infer.tilts.low_rank_lattice import Lattice
from pyro_tilt.infer.tilts.protocols import DiffusionModel
from pyro_tilt.rewards import Quadratic

if TYPE_CHECKING:
    from pyro_tilt.infer.tilts.quadratic import QuadraticTilt

__all__ = ["LowRankRoute"]

# Of the error, what is left to features outside the box; and what to the rounding of bounds.
OUTSIDE, SPARE = 0.1, 0.05


class LowRankRoute:
    r"""
    The route for :math:`A = \tfrac12 L^\top L` of low rank, beta folded in.

    With :math:`\theta(z) = b + L^\top z`, the tilt is the mixture of linear tilts

    .. math::

        q(x) = \int \pi(z)\, p_{\theta(z)}(x)\, dz, \qquad
        \pi(z) \propto e^{-|z|^2/2 + \Lambda(\theta(z))}

    (Lemma 5.4 of Moitra, Risteski and Rohatgi 2026, arXiv 2602.16570), and the integral is
    replaced by a :class:`Lattice`, which is derived here.

    :param base: the model.
    :param reward: the quadratic.
    :param factor: L, shape (r, d).
    """

    def __init__(self, base: DiffusionModel, reward: Quadratic, factor: Tensor) -> None:
        self.base, self.reward, self.factor = base, reward, factor

    def draw(self, tilt: QuadraticTilt, progress: Callable[[int], Any]) -> TiltDraws:
        """
        Draws of the tilt.

        :param tilt: the sampler, whose options count.
        :param progress: called with the rows done.
        """
        from pyro_tilt.infer.tilts.low_rank_choice import draw_options

        family = make_family(self.base, self.factor, self.reward.b, draw_options(tilt))
        # A draw outside the box would stop a run with rejection, so that it must not come up.
        outside = 1e-12 if tilt.rejection else OUTSIDE * tilt.epsilon
        low, high, sure = self._range(family, tilt.radius, outside)
        lattice = Lattice.over(low, high, _budget(tilt.epsilon))
        mixture = TiltMixture.of(family, lattice.points, lattice.log_coefficients)
        outcome = mixture.draw(
            tilt.num_samples,
            log_target=(lambda u: 0.5 * u.square().sum(-1)) if tilt.rejection else None,
            log_envelope=lambda u: 0.5 * u.square().sum(-1) + lattice.log_factor(u),
            log_scale=-math.log1p(-lattice.error),
            max_batch=tilt.rows,
            progress=progress,
        )
        made = outcome.as_draws()
        made.log_normalizer = outcome.log_normalizer + float(self.reward.c)
        off = lattice.error + (0.0 if tilt.radius is not None else outside)
        missed = 0.0 if tilt.rejection else off
        made.log_normalizer_error = math.hypot(made.log_normalizer_error, missed)
        made.certificate = self._certificate(missed, mixture, tilt, sure)
        made.info |= {
            "lattice_points": float(len(lattice)),
            "lattice_spacing": lattice.spacing,
            "lattice_total_variation": lattice.total_variation,
        }
        return made

    def sized(self, radius: float | None) -> bool:
        """
        Whether the range of the features is known without a draw.

        :param radius: a bound on their norm, if one is known.
        """
        return radius is not None or hasattr(self.base, "tilted_law")

    def check(self, epsilon: float, radius: float | None) -> None:
        """
        Refuses a lattice that would be too large, where its size is known without a draw.

        :param epsilon: its error.
        :param radius: a bound on the norm of the features.
        :raises NotImplementedError: saying how many points it would take.
        """
        if self.sized(radius):
            family = make_family(self.base, self.factor, self.reward.b)
            low, high, _ = self._range(family, radius, OUTSIDE * epsilon)
            Lattice.over(low, high, _budget(epsilon))

    def _range(
        self, family: TiltFamily, radius: float | None, outside: float
    ) -> tuple[Tensor, Tensor, bool]:
        """The box of the features under the tilt, and whether it is known to hold."""
        rank = len(self.factor)
        if radius is not None:
            ends = torch.full((rank,), float(radius)).to(family.features)
            return -ends, ends, True
        exact = getattr(self.base, "tilted_law", None)
        if exact is not None:
            return *gaussian_box(exact(self.reward).law, family, outside), True
        low, high = family.box(torch.zeros(1, rank), outside)
        for _ in range(8):
            ends = torch.cartesian_prod(*torch.stack([low, high], -1)).reshape(-1, rank)
            wider = family.box(ends, outside)
            settled = bool(((wider[1] - wider[0]) < 1.05 * (high - low)).all())
            low, high = torch.minimum(low, wider[0]), torch.maximum(high, wider[1])
            if settled:
                break
        return low, high, False

    def _certificate(
        self, off: float, mixture: TiltMixture, tilt: QuadraticTilt, sure: bool
    ) -> Certificate:
        plain = tilt_certificate(self.base)
        words = "the lattice in place of the integral over linear tilts" + (
            ", removed by rejection" if tilt.rejection else ""
        )
        estimated = mixture_error(mixture)
        if sure and mixture.family.exact:
            if tilt.rejection:
                return replace(plain, covers=f"{plain.covers}; {words}")
            # A bound on the lattice's share alone: the discretisation, left out, may be larger.
            share = min(1.0, off / (1.0 - off))
            return replace(
                plain,
                estimated_total_variation=share,
                covers=f"{words}, which costs a total variation of at most {share:.2g}",
            )
        total = off + estimated + off * estimated
        return Certificate(
            target=TARGET,
            law="consistent",
            budget="steps and normalizer_samples",
            estimated_total_variation=min(1.0, total / (1.0 - total)) if total < 1.0 else 1.0,
            covers=words + "; the error of the estimated normalisers, by their standard errors",
            excludes=plain.excludes
            + ("" if sure else "; features beyond the range of the draws that were seen"),
        )


def _budget(epsilon: float) -> float:
    r"""The error :math:`\eta` of a lattice for which :math:`\eta / (1 - \eta)` is as asked."""
    return (1.0 - OUTSIDE - SPARE) * epsilon / (1.0 + epsilon)


def gaussian_box(law: Any, family: TiltFamily, outside: float) -> tuple[Tensor, Tensor]:
    """
    A box of the features that a Gaussian mixture leaves with at most the given probability.

    :param law: the mixture, or one Gaussian.
    :param family: whose features count.
    :param outside: the probability.
    """
    parts = getattr(law, "component_distribution", law)
    logits = getattr(getattr(law, "mixture_distribution", None), "logits", None)
    means = family.project(parts.mean.reshape(-1, parts.mean.shape[-1]))
    spread = _feature_spread(parts, family).reshape(means.shape)
    if logits is not None:
        weights = logits.double().softmax(-1)
        order = weights.argsort()
        light = order[weights[order].cumsum(0) < 0.5 * outside]
        keep = torch.ones(len(weights), dtype=torch.bool)
        keep[light] = False
        means, spread = means[keep], spread[keep]
    tail = torch.tensor(0.25 * outside / means.shape[-1], dtype=torch.float64)
    reach = -torch.special.ndtri(tail).to(means) * spread
    return (means - reach).amin(0), (means + reach).amax(0)


def _feature_spread(parts: Any, family: TiltFamily) -> Tensor:
    features = family.features
    inner = getattr(parts, "base_dist", None)
    if inner is not None and hasattr(inner, "scale"):
        return (inner.scale.to(features).square() @ features.square().T).sqrt()
    covariance = parts.covariance_matrix.to(features)
    return torch.einsum("kd,...de,ke->...k", features, covariance, features).sqrt()
