# SPDX-License-Identifier: Apache-2.0
"""A Gaussian over perturbations whose mean follows the importance weights of its draws."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_tilt.ops.importance import as_double, normalize

__all__ = ["PrelogitGaussian"]


@dataclass
class PrelogitGaussian:
    r"""
    The law :math:`Q = N(U, \sigma^2 I)` of perturbations V, with the prior
    :math:`P = N(0, \sigma^2 I)`.

    Towards :math:`q^*(V) \propto e^{r(V)/\lambda} P(V)` a draw of Q has the log weight

    .. math:: \frac{r(V)}\lambda - \frac{1 - \alpha}{\sigma^2} \langle U, V \rangle + \text{const}

    with :math:`\alpha = 0`; the new mean is the weighted mean of the draws. It tends to the moment
    projection :math:`E_{q^*} V`, which minimises the Kullback-Leibler divergence from q\* to Q and
    not that from Q to q\*. Any other :math:`\alpha` makes the penalty on U weaker by
    :math:`1 - \alpha`: with a linear reward :math:`\langle a, V \rangle` the map is
    :math:`U \mapsto \alpha U + \sigma^2 a / \lambda`, whose fixed point
    :math:`\sigma^2 a / (\lambda (1 - \alpha))` is that of ``effective_lam``
    :math:`= \lambda (1 - \alpha)` (derived here).

    :param mean: U, shape ``(..., tau, d)``, independent searches in front.
    :param sigma: standard deviation, above 0.
    :param lam: :math:`\lambda`, the inverse of beta, above 0.
    :param alpha: at most 1.
    :raises ValueError: for numbers outside these ranges.

    >>> q = PrelogitGaussian(torch.zeros(1, 2), sigma=0.5, lam=0.1, alpha=0.9)
    >>> round(q.effective_lam, 6), q.kl_bound().item()
    (0.01, 0.0)
    """

    mean: Tensor
    sigma: float
    lam: float
    alpha: float = 0.0

    def __post_init__(self) -> None:
        for name in ("sigma", "lam"):
            value = getattr(self, name)
            if not 0.0 < value < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {value!r}")
        if not -math.inf < self.alpha <= 1.0:
            raise ValueError(f"alpha must be a number of at most 1, got {self.alpha!r}")

    @property
    def effective_lam(self) -> float:
        r""":math:`\lambda (1 - \alpha)`, the weight of the divergence that a search settles at."""
        return self.lam * (1.0 - self.alpha)

    def draw(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """
        Perturbations.

        :param n: for every search.
        :param generator: of the noise; torch's global random state by default.
        :returns: shape ``(..., n, tau, d)``.

        >>> PrelogitGaussian(torch.zeros(3, 1, 2), 1.0, 1.0).draw(5).shape
        torch.Size([3, 5, 1, 2])
        """
        *front, tau, width = self.mean.shape
        noise = torch.randn(
            (*front, n, tau, width),
            generator=generator,
            dtype=self.mean.dtype,
            device=self.mean.device,
        )
        return self.mean.unsqueeze(-3) + self.sigma * noise

    def log_weights(self, perturbations: Tensor, rewards: Tensor) -> Tensor:
        """
        Log weights of draws, up to a constant.

        :param perturbations: V, shape ``(..., n, tau, d)``.
        :param rewards: shape ``(..., n)``; ``-inf`` is a weight of zero.
        :returns: shape ``(..., n)``, in double precision.
        """
        inner = (as_double(self.mean).unsqueeze(-3) * as_double(perturbations)).sum((-1, -2))
        return as_double(rewards) / self.lam - (1.0 - self.alpha) / self.sigma**2 * inner

    def updated(self, perturbations: Tensor, rewards: Tensor) -> PrelogitGaussian:
        """
        The Gaussian around the weighted mean of draws; unmoved where all weights are zero.

        :param perturbations: V, shape ``(..., n, tau, d)``.
        :param rewards: shape ``(..., n)``.

        >>> q = PrelogitGaussian(torch.zeros(1, 1), sigma=1.0, lam=1e-6)
        >>> draws = torch.tensor([[[0.5]], [[-2.0]]])
        >>> q.updated(draws, torch.tensor([0.0, 1.0])).mean.item()  # the best one alone
        -2.0
        """
        weights = normalize(self.log_weights(perturbations, rewards))
        mean = (weights[..., None, None] * as_double(perturbations)).sum(-3)
        none = weights.sum(-1)[..., None, None] == 0.0
        mean = torch.where(none, as_double(self.mean), mean).to(self.mean.dtype)
        return PrelogitGaussian(mean, self.sigma, self.lam, self.alpha)

    def kl_bound(self) -> Tensor:
        r"""
        :math:`\mathrm{KL}(Q \| P) = \|U\|^2 / (2\sigma^2)`, shape ``(...)``.

        What is decoded from V is a function of it (and of further noise), so that by the data
        processing inequality its law has no larger divergence from that at U = 0.

        >>> PrelogitGaussian(torch.ones(2, 2), sigma=1.0, lam=1.0).kl_bound().item()
        2.0
        """
        return as_double(self.mean).square().sum((-1, -2)) / (2.0 * self.sigma**2)
