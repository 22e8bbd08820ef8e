# SPDX-License-Identifier: Apache-2.0
"""Normalisers of many tilts from the draws of a few."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_tilt.infer.tilts.linear_draws import linear_tilt_draws
from pyro_tilt.infer.tilts.protocols import DiffusionModel
from pyro_tilt.ops.importance import as_double, effective_sample_size

__all__ = ["SharedNormalizers", "shared_normalizers"]


@dataclass
class SharedNormalizers:
    r"""
    Draws of several tilts pooled into one estimate of :math:`\Lambda` everywhere.

    With :math:`N_j` draws of the tilt :math:`\theta_j` and :math:`\theta_0 = 0`,

    .. math::

        e^{\Lambda(\theta)} = \sum_n \frac{e^{\langle\theta, x_n\rangle}}
        {\sum_j N_j e^{\langle\theta_j, x_n\rangle - \Lambda_j}}, \qquad \Lambda_0 = 0,

    the multistate Bennett acceptance ratio (Shirts and Chodera 2008, arXiv 0801.1426), whose
    covariance gives the errors; it takes the draws for independent.

    :ivar anchors: the tilts with draws, shape (J, d), the first of them zero.
    :ivar log_normalizers: their :math:`\Lambda`, shape (J,), in float64.
    :ivar draws: all draws, shape (n, d).
    :ivar log_mixture: :math:`\log \sum_j N_j e^{\langle\theta_j, x\rangle - \Lambda_j}` of each.
    :ivar counts: draws of each anchor, shape (J,).
    """

    anchors: Tensor
    log_normalizers: Tensor
    draws: Tensor
    log_mixture: Tensor
    counts: Tensor

    @classmethod
    def fit(
        cls, anchors: Tensor, draws: Tensor, counts: Tensor, *, tolerance: float = 1e-10
    ) -> SharedNormalizers:
        """
        Solves for the normalisers of the anchors.

        :param anchors: shape (J, d), the first of them zero.
        :param draws: shape (n, d), those of each anchor in turn.
        :param counts: how many each has, shape (J,).
        :param tolerance: of the largest change of an iteration.
        :raises ValueError: where the draws of some anchors have no overlap with the others.

        >>> _ = torch.manual_seed(0)
        >>> anchors = torch.tensor([[0.0], [1.0]])
        >>> draws = torch.cat([torch.randn(5000, 1), 1.0 + torch.randn(5000, 1)])
        >>> fitted = SharedNormalizers.fit(anchors, draws, torch.tensor([5000, 5000]))
        >>> round(fitted.log_normalizers[1].item(), 1)
        0.5
        """
        flat = as_double(draws).flatten(1)
        anchors = as_double(anchors).flatten(1)
        counts = counts.to(flat)
        if bool(anchors[0].any()) or int(counts.sum()) != len(flat):
            raise ValueError("the first anchor must be zero, and counts must add up to the draws")
        scores = flat @ anchors.T
        log_counts = counts.log()
        values = torch.zeros(len(anchors)).to(flat)
        for _ in range(500):
            mixture = (scores + log_counts - values).logsumexp(-1)
            weights = (scores - values - mixture.unsqueeze(-1)).exp()
            found = values + weights.sum(0).log()
            newton = _newton(values, weights, counts)
            # Newton's step once it is the better of the two; the fixed point always converges.
            if newton is not None and _residual(scores, log_counts, newton) < _residual(
                scores, log_counts, found - found[0]
            ):
                found = newton
            found = found - found[0]
            change = float((found - values).abs().max())
            values = found
            if change < tolerance:
                break
        else:
            raise ValueError(
                "the normalisers of the anchors did not settle: neighbouring tilts share too few "
                "draws; put anchors between them, or draw more"
            )
        return cls(anchors, values, flat, (scores + log_counts - values).logsumexp(-1), counts)

    def log_normalizer(self, thetas: Tensor) -> tuple[Tensor, Tensor]:
        r"""
        :math:`\Lambda` and its standard error.

        :param thetas: shape (K,) + event shape, anchors or not.
        :returns: values and errors, both (K,), in float64.
        """
        rows = as_double(thetas).to(self.draws.device).flatten(1)
        logs = self.draws @ rows.T - self.log_mixture.unsqueeze(-1)
        values = logs.logsumexp(0)
        anchored = self.draws @ self.anchors.T - self.log_mixture.unsqueeze(-1)
        known = (anchored - self.log_normalizers).exp()
        shares = (logs - values).exp()
        errors = [self._error(known, shares[:, k]) for k in range(shares.shape[1])]
        return values, torch.stack(errors)

    def effective(self, thetas: Tensor) -> Tensor:
        """
        The effective share of the pooled draws for each tilt; where small, so is what they know.

        :param thetas: shape (K,) + event shape.
        :returns: shape (K,).
        """
        rows = as_double(thetas).to(self.draws.device).flatten(1)
        logs = self.draws @ rows.T - self.log_mixture.unsqueeze(-1)
        return effective_sample_size(logs.T) / len(self.draws)

    def _error(self, known: Tensor, share: Tensor) -> Tensor:
        """From the asymptotic covariance of the log normalisers, against that of the zero tilt."""
        table = torch.cat([known, share.unsqueeze(-1)], -1)
        counts = torch.cat([self.counts, self.counts.new_zeros(1)])
        gram = table.T @ table
        # As Shirts and Chodera write it, on the factor of the Gram matrix, which keeps the inverse
        # symmetric; its one null direction is the common constant.
        values, vectors = torch.linalg.eigh(gram)
        factor = vectors * values.clamp(min=0.0).sqrt()
        inner = torch.eye(len(counts)).to(gram) - factor.T @ (counts.unsqueeze(-1) * factor)
        covariance = factor @ torch.linalg.pinv(inner, rtol=1e-10, hermitian=True) @ factor.T
        last = len(counts) - 1
        variance = covariance[last, last] + covariance[0, 0]
        return (variance - covariance[0, last] - covariance[last, 0]).clamp(min=0.0).sqrt()


def shared_normalizers(
    base: DiffusionModel, thetas: Tensor, *, num_samples: int = 1000, **options: Any
) -> SharedNormalizers:
    r"""
    Draws the base and a few tilts in one run, and pools them for the normaliser of any tilt.

    Neighbouring tilts should overlap: :math:`\delta^\top \mathrm{Cov}\, \delta` of about one or
    less, with :math:`\delta` their difference.

    :param base: the model.
    :param thetas: the anchors, shape (J,) + event shape; zero is added.
    :param num_samples: draws of each.
    :param options: of :func:`linear_tilt_draws`.
    :raises ValueError: as :meth:`SharedNormalizers.fit` does.
    """
    zero = torch.zeros_like(thetas[:1])
    anchors = torch.cat([zero, thetas])
    draws = linear_tilt_draws(base, anchors.repeat_interleave(num_samples, 0), **options)
    counts = torch.full((len(anchors),), num_samples)
    return SharedNormalizers.fit(anchors.to(draws), draws, counts)


def _newton(values: Tensor, weights: Tensor, counts: Tensor) -> Tensor | None:
    """One Newton step with the first value held at zero, None where it cannot be taken."""
    gram = weights.T @ weights
    gradient = counts * (weights.sum(0) - 1.0)
    hessian = torch.diag(counts * weights.sum(0)) - counts.unsqueeze(-1) * gram * counts
    if len(values) == 1:
        return None
    factor, failed = torch.linalg.cholesky_ex(hessian[1:, 1:])
    if int(failed):
        return None
    step = torch.cholesky_solve(gradient[1:].unsqueeze(-1), factor).squeeze(-1)
    return values + torch.cat([values.new_zeros(1), step])


def _residual(scores: Tensor, log_counts: Tensor, values: Tensor) -> float:
    mixture = (scores + log_counts - values).logsumexp(-1, keepdim=True)
    miss = (scores - values - mixture).logsumexp(0).abs().max()
    return float(miss) if math.isfinite(float(miss)) else math.inf
