# SPDX-License-Identifier: Apache-2.0
r"""Baselines b for rejection with acceptance :math:`\min(1, e^{A-b})`.

A low baseline accepts much and clips much of the target, a high one the reverse. Write
:math:`\psi(s) = \log E_p e^{sA}` and :math:`\log Z = \psi(1)`. No baseline here lies below
log Z, where clipped mass would buy nothing, or above a known bound on A, where nothing is clipped.
Chernoff baselines for alignment: Madhow, Liang, Shroff, Liang and Wang 2026 (arXiv 2602.07738).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .clipped_law import clipped_mass_from_proposals
from .importance import as_double, effective_sample_size, normalize
from .log_mgf import MIN_ESS, log_mgf

__all__ = [
    "Baseline",
    "budget_baseline",
    "chernoff_baseline",
    "chernoff_bound",
    "exact_chernoff_baseline",
    "exchange_baseline",
    "exchange_loss",
    "log_chernoff_constant",
]

LAMBDAS = tuple(2.0 ** (k / 4) for k in range(-16, 25))


@dataclass(frozen=True)
class Baseline:
    """
    A baseline and what is known of it.

    :ivar value: b.
    :ivar rule: ``"chernoff"``, ``"plain chernoff"``, ``"budget"`` or ``"exchange"``.
    :ivar log_z: log Z, exact or estimated.
    :ivar clipped_mass: estimated clipped mass of the target, nan where there are no draws.
    :ivar lam: the exponent of a Chernoff baseline.
    :ivar effective_sample_size: of the draws behind the estimate; inf where psi is exact.
    :ivar trusted: whether that sample size reached its gate.
    :ivar shift: what calibration added.
    """

    value: float
    rule: str
    log_z: float
    clipped_mass: float = math.nan
    lam: float | None = None
    effective_sample_size: float = math.inf
    trusted: bool = True
    shift: float = 0.0

    @property
    def expected_proposals(self) -> float:
        r"""Proposals per draw, :math:`e^{b-\log Z}/(1-\kappa)`."""
        return math.exp(self.value - self.log_z) / (1.0 - self.clipped_mass)


def log_chernoff_constant(lam: Tensor | float) -> Tensor:
    r"""
    The log of :math:`c_\lambda = \lambda^\lambda/(1+\lambda)^{1+\lambda}`, the least
    constant with :math:`(1-e^{-u})_+ \le c_\lambda e^{\lambda u}`.

    >>> round(log_chernoff_constant(1.0).exp().item(), 12)
    0.25
    """
    lam = torch.as_tensor(lam, dtype=torch.float64)
    return torch.xlogy(lam, lam) - torch.xlogy(1.0 + lam, 1.0 + lam)


def chernoff_bound(
    psi: Tensor, log_z: Tensor | float, lam: Tensor, epsilon: float, *, sharp: bool = True
) -> Tensor:
    r"""
    The Chernoff baseline for each exponent,

    .. math::
        b_\lambda = \tfrac1\lambda[\psi(1+\lambda) - \psi(1) + \log(c_\lambda/\epsilon)],

    under which the clipped mass is at most epsilon. The plain form has 1 for
    :math:`c_\lambda` and bounds even q(A > b) by epsilon.

    :param Tensor psi: :math:`\psi(1+\lambda)`, shape ``(..., K)``.
    :param log_z: :math:`\psi(1)`, shape ``(..., 1)`` or a number.
    :param Tensor lam: exponents, shape ``(K,)``, positive.
    :param epsilon: allowed clipped mass, in (0, 1).
    :param sharp: with the constant c_lambda.
    :return: shape ``(..., K)``.

    >>> chernoff_bound(torch.tensor([2.0]), 0.5, torch.tensor([1.0]), 0.25).item()
    1.5
    """
    constant = log_chernoff_constant(lam).to(psi) if sharp else 0.0
    return (psi - log_z + constant - math.log(epsilon)) / lam


def exact_chernoff_baseline(
    psi: Callable[[float], float],
    epsilon: float,
    *,
    sharp: bool = True,
    upper_bound: float = math.inf,
) -> Baseline:
    r"""
    The best Chernoff baseline for a known log-MGF.

    :param psi: :math:`s \mapsto \log E_p e^{sA}`; may be inf.
    :param epsilon: allowed clipped mass.
    :param sharp: use the sharpened bound.
    :param upper_bound: a sure bound on A.
    :raises ValueError: where psi(s) is infinite for every s > 1.

    >>> plain = exact_chernoff_baseline(lambda s: s * s / 2, 0.01, sharp=False)
    >>> round(plain.value, 6) == round(1 + math.sqrt(2 * math.log(100)), 6)
    True
    """
    from scipy.optimize import minimize_scalar

    check_epsilon(epsilon)
    log_z = psi(1.0)

    def bound(log_lam: float) -> float:
        lam = math.exp(log_lam)
        constant = float(log_chernoff_constant(lam)) if sharp else 0.0
        return (psi(1.0 + lam) - log_z + constant - math.log(epsilon)) / lam

    # In 1/lambda the bound is convex, so in log lambda it has a single valley.
    grid = [-8.0 + 0.25 * k for k in range(65)]
    values = [bound(x) for x in grid]
    best = min(range(len(grid)), key=values.__getitem__)
    if not math.isfinite(values[best]):
        raise ValueError("psi(s) is infinite for every s > 1: A has no finite Chernoff baseline")
    ends = (grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)])
    found = minimize_scalar(bound, bounds=ends, method="bounded", options={"xatol": 1e-10})
    log_lam = float(found.x) if found.fun <= values[best] else grid[best]
    value = clip(bound(log_lam), log_z, upper_bound)
    return Baseline(value, _chernoff_name(sharp), log_z, lam=math.exp(log_lam))


def chernoff_baseline(
    A: Tensor,
    epsilon: float,
    *,
    log_weights: Tensor | None = None,
    lam: Tensor | None = None,
    sharp: bool = True,
    min_ess: float = MIN_ESS,
    upper_bound: float = math.inf,
) -> Baseline:
    r"""
    The best Chernoff baseline whose log-MGF the draws can tell.

    Only exponents where the terms :math:`e^{(1+\lambda)A}` have an effective sample
    size of ``min_ess`` are considered. Where none has, the one with the largest is taken and
    the result is not ``trusted``. Picking the least of several estimates is optimistic;
    :func:`~pyro_tilt.ops.calibrate` on draws held out.

    :param Tensor A: draws of the log weight under the base, shape ``(N,)``.
    :param epsilon: allowed clipped mass.
    :param log_weights: log importance weights of the draws, if they are not from the base.
    :param lam: exponents to choose from, from 1/16 to 64 by default.
    :param sharp: use the sharpened bound.
    :param min_ess: the gate.
    :param upper_bound: a sure bound on A.
    :raises ValueError: where every weight is zero.

    >>> _ = torch.manual_seed(0)
    >>> found = chernoff_baseline(0.5 * torch.randn(100_000), 0.01)
    >>> found.trusted, abs(found.expected_proposals - 3.10) < 0.1
    (True, True)
    """
    check_epsilon(epsilon)
    A, log_z = checked_draws(A, log_weights)
    grid = A.new_tensor(LAMBDAS) if lam is None else as_double(lam).to(A.device)
    psi = log_mgf(A, 1.0 + grid, log_weights=log_weights)
    bounds = chernoff_bound(psi.value, log_z, grid, epsilon, sharp=sharp)
    ess = psi.effective_sample_size
    trusted = bool(psi.trusted(min_ess).any())
    allowed = psi.trusted(min_ess) if trusted else ess == ess.max()
    best = int(bounds.masked_fill(~allowed, math.inf).argmin())
    value = clip(float(bounds[best]), log_z, upper_bound)
    return Baseline(
        value,
        _chernoff_name(sharp),
        log_z,
        estimated_clipped_mass(A, value, log_weights),
        lam=float(grid[best]),
        effective_sample_size=float(ess[best]),
        trusted=trusted,
    )


def budget_baseline(
    A: Tensor,
    proposals: float,
    *,
    log_weights: Tensor | None = None,
    min_ess: float = MIN_ESS,
    upper_bound: float = math.inf,
) -> Baseline:
    r"""
    The baseline :math:`b = \log Z + \log n`, which costs :math:`n/(1-\kappa)` proposals a draw.

    :param Tensor A: draws of the log weight under the base, shape ``(N,)``.
    :param proposals: n, at least 1.
    :param log_weights: log importance weights of the draws, if they are not from the base.
    :param min_ess: effective sample size of :math:`e^A` from which the result is trusted.
    :param upper_bound: a sure bound on A.
    :raises ValueError: for n below 1, or where every weight is zero.

    >>> budget_baseline(torch.zeros(100), 1.0).value
    0.0
    """
    if not proposals >= 1.0:
        raise ValueError(f"proposals must be at least 1, got {proposals}")
    A, log_z = checked_draws(A, log_weights)
    value = clip(log_z + math.log(proposals), log_z, upper_bound)
    return _from_draws("budget", A, value, log_z, log_weights, min_ess)


def exchange_baseline(
    A: Tensor,
    rate: float,
    *,
    log_weights: Tensor | None = None,
    min_ess: float = MIN_ESS,
    upper_bound: float = math.inf,
) -> Baseline:
    r"""
    The baseline with the least :math:`E[N] + \mu\,\kappa`: compute against lost target mass.

    At the optimum :math:`p(A > b) = 1/(E[N] + \mu(1-\kappa))`. Between two neighbouring draws the
    estimated objective has no minimum, so the draws themselves (and log Z) are searched.

    :param Tensor A: draws of the log weight under the base, shape ``(N,)``.
    :param rate: the exchange rate mu, in proposals per unit of clipped mass. The draws
        tell the baseline only where N is much larger than mu.
    :param log_weights: log importance weights of the draws, if they are not from the base.
    :param min_ess: effective sample size of :math:`e^A` from which the result is trusted.
    :param upper_bound: a sure bound on A.
    :raises ValueError: for a negative rate, or where every weight is zero.

    >>> exchange_baseline(torch.tensor([0.0, 1.0]), 0.0).value == math.log((1 + math.e) / 2)
    True
    """
    if not rate >= 0.0:
        raise ValueError(f"the exchange rate must not be negative, got {rate}")
    A, log_z = checked_draws(A, log_weights)
    prob = torch.full_like(A, 1.0 / len(A)) if log_weights is None else normalize(log_weights)
    points, order = A[prob > 0].sort()
    prob = prob[prob > 0][order]
    target = prob * (points - log_z).exp()
    above = prob.flip(0).cumsum(0).flip(0) - prob
    kept = target.cumsum(0) + above * (points - log_z).exp()
    cost = (points - log_z).exp() / kept + rate * (1.0 - kept)
    cost = cost.masked_fill(points < log_z, math.inf)
    best = int(cost.argmin())
    kept_at_floor = 1.0 - estimated_clipped_mass(A, log_z, log_weights)
    at_floor = 1.0 / kept_at_floor + rate * (1.0 - kept_at_floor)
    value = log_z if at_floor <= float(cost[best]) else float(points[best])
    value = clip(value, log_z, upper_bound)
    return _from_draws("exchange", A, value, log_z, log_weights, min_ess)


def exchange_loss(b: Tensor, A: Tensor, log_z: Tensor | float, rate: float) -> Tensor:
    r"""
    A convex, unbiased loss for learning a baseline from single draws,

    .. math::
        \ell(b) = e^{b-V} + \mu\,(e^{A-V} - e^{b-V})_+,

    in :math:`e^b` the form of Rockafellar and Uryasev 2000. Its minimiser is the
    quantile of A at level :math:`1 - 1/\mu`, the limit of :func:`exchange_baseline` for large mu.

    :param Tensor b: baselines, any shape.
    :param Tensor A: log weights, same shape.
    :param log_z: V, log-normaliser of each state.
    :param rate: mu.

    >>> exchange_loss(torch.zeros(1), torch.zeros(1), 0.0, 10.0).item()
    1.0
    """
    level = (b - log_z).exp()
    return level + rate * ((A - log_z).exp() - level).clamp(min=0.0)


def check_epsilon(epsilon: float) -> None:
    """Raises ``ValueError`` for a clipped mass outside (0, 1)."""
    if not 0.0 < epsilon < 1.0:
        raise ValueError(f"epsilon must lie in (0, 1), got {epsilon}")


def checked_draws(A: Tensor, log_weights: Tensor | None) -> tuple[Tensor, float]:
    """The draws in float64 and their log Z."""
    A = as_double(A)
    log_z = float(log_mgf(A, 1.0, log_weights=log_weights).value)
    if log_z == -math.inf:
        raise ValueError(f"all {len(A)} draws have weight zero: there is no target to bound")
    return A, log_z


def clip(value: float, log_z: float, upper_bound: float) -> float:
    """``value``, but neither below log Z nor above the bound on A."""
    return min(max(value, log_z), upper_bound)


def _chernoff_name(sharp: bool) -> str:
    return "chernoff" if sharp else "plain chernoff"


def estimated_clipped_mass(A: Tensor, b: float, log_weights: Tensor | None) -> float:
    """Clipped mass under b, from draws with importance weights."""
    target = A if log_weights is None else A + as_double(log_weights)
    return float(clipped_mass_from_proposals(A, b, log_weights=target))


def _from_draws(
    rule: str, A: Tensor, value: float, log_z: float, log_weights: Tensor | None, min_ess: float
) -> Baseline:
    target = A if log_weights is None else A + as_double(log_weights)
    ess = float(effective_sample_size(target))
    mass = estimated_clipped_mass(A, value, log_weights)
    return Baseline(value, rule, log_z, mass, effective_sample_size=ess, trusted=ess >= min_ess)
