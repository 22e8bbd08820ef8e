# SPDX-License-Identifier: Apache-2.0
"""One baseline per state of a step, from fresh proposals of that state or from a known log-MGF."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_tilt.infer.errors import ZeroWeights
from pyro_tilt.ops.baselines import chernoff_bound
from pyro_tilt.ops.importance import as_double
from pyro_tilt.ops.log_mgf import MIN_ESS, log_mgf

__all__ = ["LAMBDAS", "StateRule", "baselines_from_draws", "baselines_from_mgf"]

LAMBDAS = tuple(2.0 ** (k / 4) for k in range(-8, 25))
# Draws cannot tell neighbouring exponents apart, and pay for each.
FEW_LAMBDAS = tuple(2.0**k for k in range(-2, 7))


@dataclass(frozen=True)
class StateRule:
    """
    How a baseline is chosen at one state.

    :ivar name: ``"chernoff"``, ``"budget"`` or ``"exchange"``.
    :ivar epsilon: clipped mass of one step that ``"chernoff"`` aims at.
    :ivar budget: proposals of one step that ``"budget"`` aims at.
    :ivar exchange_rate: proposals that a unit of clipped mass is worth.
    """

    name: str
    epsilon: float
    budget: float
    exchange_rate: float


def baselines_from_mgf(
    rule: StateRule,
    mgf: Callable[[Any, Any, Tensor], Tensor],
    carry: Any,
    x: Any,
    n: int,
    where: str,
) -> Tensor:
    """
    Baselines from known log-MGFs of A under the kernel.

    :param mgf: maps the carry before the step, its element of ``xs`` and orders, shape (K,), to
        the log-MGFs, shape (n, K).
    :returns: shape (n,), float64, at least the log normaliser of the step.
    :raises ValueError: for a wrong shape or NaN.

    >>> rule = StateRule("budget", 0.05, 1.0, 0.0)
    >>> baselines_from_mgf(rule, lambda c, x, s: 0.5 * s.square().expand(2, -1), None, 0, 2, "step")
    tensor([0.5000, 0.5000], dtype=torch.float64)
    """
    lam = torch.tensor(LAMBDAS, dtype=torch.float64)
    psi = mgf(carry, x, torch.cat([lam.new_ones(1), 1.0 + lam]))
    if not isinstance(psi, Tensor) or psi.shape != (n, len(lam) + 1):
        shape = tuple(psi.shape) if isinstance(psi, Tensor) else type(psi).__name__
        raise ValueError(f"{where}: log_mgf gave {shape}, expected shape ({n}, {len(lam) + 1})")
    psi = as_double(psi)
    if bool(psi.isnan().any()) or bool((psi[:, 0] == torch.inf).any()):
        raise ValueError(f"{where}: log_mgf is NaN, or +inf at order 1")
    log_z = psi[:, 0]
    if rule.name == "budget":
        return log_z + math.log(rule.budget)
    bounds = chernoff_bound(psi[:, 1:], psi[:, :1], lam.to(psi.device), rule.epsilon)
    found = torch.maximum(bounds.amin(1), log_z)
    if not bool((found < torch.inf).all()):
        raise ValueError(
            f"{where}: the log-MGF is infinite beyond order 1 at some state, which has no finite "
            "Chernoff baseline; give baseline='budget' or a function"
        )
    return found


def baselines_from_draws(rule: StateRule, A: Tensor, where: str) -> Tensor:
    r"""
    Baselines from fresh draws of A under the kernel at each state.

    Rule ``"chernoff"`` takes the least sharpened bound over a grid of exponents, of those at which
    the terms :math:`e^{(1 + \lambda) A}` have an effective sample size of 50 or a quarter of the
    draws; where none has, the largest A seen counts as well. No baseline lies below the estimated
    log normaliser of its state, nor above the largest A seen at any state.

    :param A: shape (n, k).
    :returns: shape (n,), float64.
    :raises ZeroWeights: where all draws of all states are ``-inf``.

    >>> rule = StateRule("chernoff", 0.05, 1.0, 0.0)
    >>> baselines_from_draws(rule, torch.zeros(2, 10), "step").tolist()
    [0.0, 0.0]
    """
    A = as_double(A)
    ceiling = A.max()
    if not bool(ceiling > -torch.inf):
        raise ZeroWeights(
            f"{where}: the value is -inf at every proposal of every chain: nothing is left to "
            "align to. Check the value function, or draw more by num_inner"
        )
    log_z = log_mgf(A, 1.0).value[:, 0]
    dead = log_z == -torch.inf
    if rule.name == "budget":
        found = log_z + math.log(rule.budget)
    elif rule.name == "exchange":
        found = _exchange(A, log_z, rule.exchange_rate)
    else:
        found = _chernoff(A, log_z, rule.epsilon)
    # A state whose draws all miss gets the most careful baseline that there is.
    found = torch.where(dead, ceiling, found)
    return torch.minimum(torch.maximum(found, log_z), ceiling)


def _chernoff(A: Tensor, log_z: Tensor, epsilon: float) -> Tensor:
    lam = A.new_tensor(FEW_LAMBDAS)
    psi = log_mgf(A, 1.0 + lam)
    bounds = chernoff_bound(psi.value, log_z.unsqueeze(-1), lam, epsilon)
    trusted = psi.trusted(min(MIN_ESS, A.shape[-1] / 4))
    best = bounds.masked_fill(~trusted, torch.inf).amin(-1)
    widest = psi.effective_sample_size.argmax(-1, keepdim=True)
    careful = torch.maximum(bounds.gather(-1, widest).squeeze(-1), A.amax(-1))
    return torch.where(trusted.any(-1), best, careful)


def _exchange(A: Tensor, log_z: Tensor, rate: float) -> Tensor:
    """At each state the draw, or log Z, with the least proposals plus priced clipped mass."""
    k = A.shape[-1]
    points = torch.cat([A, log_z.unsqueeze(-1)], -1).sort(-1).values - log_z.unsqueeze(-1)
    excess = A - log_z.unsqueeze(-1)
    order = excess.sort(-1).values
    below = torch.cat([order.new_zeros(len(A), 1), order.exp().cumsum(-1)], -1)
    rank = torch.searchsorted(order, points, right=True)
    kept = (below.gather(-1, rank) + (k - rank) * points.exp()) / k
    cost = points.exp() / kept + rate * (1.0 - kept)
    best = cost.masked_fill(points < 0.0, torch.inf).argmin(-1, keepdim=True)
    return points.gather(-1, best).squeeze(-1) + log_z
