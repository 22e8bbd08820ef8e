# SPDX-License-Identifier: Apache-2.0
r"""The law of rejection sampling with acceptance :math:`\min(1, e^{A-b})`.

Write :math:`w = e^A`, :math:`Z = E_p w`, :math:`q = p w / Z` (the target) and
:math:`Z_b = E_p \min(w, e^b)`. The draws have law :math:`q_b = p\,e^{\min(A,b)}/Z_b`,
which misses the *clipped mass* :math:`\kappa = 1 - Z_b/Z` of the target.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .importance import as_double, normalize

__all__ = [
    "ClippedLaw",
    "clipped_mass_from_accepted",
    "clipped_mass_from_proposals",
    "clipped_mass_upper",
    "total_variation_from_accepted",
]


@dataclass(frozen=True)
class ClippedLaw:
    """
    Exact properties of the clipped law over a base with finitely many values.

    :ivar base_log_prob: log probabilities of the base, shape ``(..., K)``.
    :ivar A: log weight of each value, shape ``(..., K)``.
    :ivar b: baseline, shape ``(...)``.

    >>> law = ClippedLaw(torch.tensor([0.5, 0.5]).log(), torch.tensor([1.0, 3.0]).log(),
    ...                  torch.tensor(1.0).log())
    >>> round(law.clipped_mass.item(), 6), round(law.total_variation.item(), 6)
    (0.5, 0.25)
    """

    base_log_prob: Tensor
    A: Tensor
    b: Tensor

    def __post_init__(self) -> None:
        for name in ("base_log_prob", "A", "b"):
            object.__setattr__(self, name, as_double(getattr(self, name)))

    @cached_property
    def log_normalizer(self) -> Tensor:
        """log Z."""
        return torch.logsumexp(self.base_log_prob + self.A, -1)

    @cached_property
    def clipped_log_normalizer(self) -> Tensor:
        """log Z_b."""
        return torch.logsumexp(self.base_log_prob + self._clipped, -1)

    @property
    def log_prob(self) -> Tensor:
        """Log probabilities of the law of the draws, q_b."""
        return self.base_log_prob + self._clipped - self.clipped_log_normalizer.unsqueeze(-1)

    @property
    def target_log_prob(self) -> Tensor:
        """Log probabilities of the target, q."""
        return self.base_log_prob + self.A - self.log_normalizer.unsqueeze(-1)

    @property
    def residual_log_weights(self) -> Tensor:
        r""":math:`(A-b)_+`, the log weights under which draws of q_b are exact for q."""
        return (self.A - self.b.unsqueeze(-1)).clamp(min=0.0)

    @cached_property
    def clipped_mass(self) -> Tensor:
        r""":math:`\kappa(b) = E_q(1 - e^{b-A})_+ = 1 - Z_b/Z`."""
        return self.clipped_mass_at(self.b)

    def clipped_mass_at(self, b: Tensor) -> Tensor:
        """The clipped mass under another baseline, shape ``(...)``."""
        return (self.target_log_prob.exp() * _lost(self.A - b.unsqueeze(-1))).sum(-1)

    @property
    def acceptance_rate(self) -> Tensor:
        r""":math:`\alpha = Z_b e^{-b}`."""
        return (self.clipped_log_normalizer - self.b).exp()

    @property
    def expected_proposals(self) -> Tensor:
        r""":math:`1/\alpha = e^{b - \log Z}/(1-\kappa)`."""
        return (self.b - self.clipped_log_normalizer).exp()

    @property
    def total_variation(self) -> Tensor:
        r""":math:`TV(q_b, q) = \kappa(b + \log\frac1{1-\kappa(b)})`, at most the clipped mass."""
        return self.clipped_mass_at(self.b - torch.log1p(-self.clipped_mass))

    @property
    def kl_to_target(self) -> Tensor:
        r""":math:`KL(q_b \| q) = \log\frac1{1-\kappa} - E_{q_b}(A-b)_+`."""
        return -torch.log1p(-self.clipped_mass) - self._mean_excess(self.log_prob)

    @property
    def kl_from_target(self) -> Tensor:
        r""":math:`KL(q \| q_b) = \log(1-\kappa) + E_q(A-b)_+`."""
        return torch.log1p(-self.clipped_mass) + self._mean_excess(self.target_log_prob)

    def capped_prob(self, max_proposals: int) -> Tensor:
        r"""
        Probabilities where the last of ``max_proposals`` rejected rows is taken.

        .. math::
            (1-f) q_b + f\, p\,(1-\min(1, e^{A-b}))/(1-\alpha), \qquad f = (1-\alpha)^n

        :param max_proposals: the cap n.
        :return: shape ``(..., K)``.
        """
        rate = self.acceptance_rate.unsqueeze(-1)
        rejected = self.base_log_prob.exp() * _lost(self.b.unsqueeze(-1) - self.A)
        left = (1.0 - rate).clamp(min=0.0) ** max_proposals
        fallback = torch.where(left > 0, rejected / (1.0 - rate), 0.0)
        return (1.0 - left) * self.log_prob.exp() + left * fallback

    @property
    def _clipped(self) -> Tensor:
        return torch.minimum(self.A, self.b.unsqueeze(-1))

    def _mean_excess(self, log_prob: Tensor) -> Tensor:
        return (log_prob.exp() * self.residual_log_weights).sum(-1)


def clipped_mass_from_proposals(
    A: Tensor, b: Tensor | float, *, log_weights: Tensor | None = None
) -> Tensor:
    r"""
    The clipped mass from draws of the base, :math:`\sum (w - e^b)_+ / \sum w`.

    :param Tensor A: log weights of the draws, shape ``(..., N)``.
    :param b: baseline, broadcast against ``(..., N)``.
    :param log_weights: log weights of the draws under the target, where they differ from ``A``
        (draws at several states: A minus the log-normaliser of the state).
    :return: shape ``(...)``.
    :raises ValueError: where every weight of a row is zero.

    >>> round(clipped_mass_from_proposals(torch.tensor([1.0, 3.0]).log(), 0.0).item(), 6)
    0.5
    """
    A = as_double(A)
    target = normalize(A if log_weights is None else log_weights)
    if bool((target.sum(-1) == 0).any()):
        raise ValueError("every weight is zero: there is no target to clip")
    return (target * _lost(A - b)).sum(-1)


def clipped_mass_from_accepted(A: Tensor, b: Tensor | float) -> tuple[Tensor, Tensor]:
    r"""
    The clipped mass from accepted draws alone, with no normaliser.

    :math:`E_{q_b}[e^{(A-b)_+} - 1] = \kappa/(1-\kappa)`, whose sample mean is unbiased.

    :param Tensor A: log weights of independent accepted draws, shape ``(..., N)``.
    :param b: the baseline under which they were accepted.
    :return: kappa and its standard error by the delta method (nan for N < 2), shape ``(...)``.

    >>> value, error = clipped_mass_from_accepted(torch.tensor([1.0, 3.0]).log(), 0.0)
    >>> round(value.item(), 6)
    0.5
    """
    odds = (as_double(A) - b).clamp(min=0.0).expm1()
    num, mean = odds.shape[-1], odds.mean(-1)
    error = odds.std(-1) / math.sqrt(num) if num > 1 else torch.full_like(mean, math.nan)
    return mean / (1.0 + mean), error / (1.0 + mean) ** 2


def total_variation_from_accepted(
    A: Tensor, b: Tensor | float, clipped_mass: Tensor | float
) -> Tensor:
    r"""
    TV(q_b, q) from accepted draws: the mean of :math:`((1-\kappa) e^{(A-b)_+} - 1)_+`.

    :param Tensor A: log weights of accepted draws, shape ``(..., N)``.
    :param b: the baseline under which they were accepted.
    :param clipped_mass: kappa, known or estimated.

    >>> round(total_variation_from_accepted(torch.tensor([1.0, 3.0]).log(), 0.0, 0.5).item(), 6)
    0.25
    """
    log_ratio = (as_double(A) - b).clamp(min=0.0) + math.log1p(-float(clipped_mass))
    return log_ratio.expm1().clamp(min=0.0).mean(-1)


def clipped_mass_upper(
    A: Tensor, b: float, upper_bound: float, *, confidence: float = 0.95
) -> float | None:
    r"""
    An upper confidence bound on the clipped mass from accepted draws.

    The empirical Bernstein bound of Maurer and Pontil 2009 (arXiv 0907.3740) on the mean of
    :math:`e^{(A-b)_+}-1`, which lies in :math:`[0, e^{A_{\max}-b}-1]`:

    .. math::
        \bar X + \sqrt{2 V \log(2/\delta)/n} + \frac{7 R\log(2/\delta)}{3(n-1)},
        \qquad R = e^{A_{\max}-b} - 1

    :param Tensor A: log weights of independent accepted draws, shape ``(N,)``.
    :param b: the baseline, chosen without these draws.
    :param upper_bound: :math:`A_{\max}`, a sure bound on A.
    :param confidence: probability with which the bound holds.
    :return: the bound on kappa, at most 1; None where A is unbounded, since no bound from a
        sample is valid then.
    :raises ValueError: for a confidence outside (0, 1), or a draw above ``upper_bound``.

    >>> clipped_mass_upper(torch.zeros(100), 1.0, 1.0)
    0.0
    >>> clipped_mass_upper(torch.zeros(100), 1.0, torch.inf) is None
    True
    """
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must lie in (0, 1), got {confidence}")
    if upper_bound == math.inf:
        return None
    A = as_double(A)
    if len(A) and float(A.max()) > upper_bound + 1e-6 * max(1.0, abs(upper_bound)):
        raise ValueError(
            f"a draw has A = {float(A.max()):g}, above its upper bound {upper_bound:g}"
        )
    if upper_bound <= b:
        return 0.0
    num = len(A)
    if num < 2:
        return 1.0
    odds = (A.clamp(max=upper_bound) - b).clamp(min=0.0).expm1()
    log_term = math.log(2.0 / (1.0 - confidence))
    width = math.expm1(upper_bound - b) if upper_bound - b < 700.0 else math.inf
    bound = float(odds.mean()) + math.sqrt(2.0 * float(odds.var()) * log_term / num)
    bound += 7.0 * width * log_term / (3.0 * (num - 1))
    return bound / (1.0 + bound) if math.isfinite(bound) else 1.0


def _lost(excess: Tensor) -> Tensor:
    r""":math:`(1 - e^{-x})_+`, exact for small x."""
    return -torch.expm1(-excess.clamp(min=0.0))
