# SPDX-License-Identifier: Apache-2.0
"""The beta that spends a given divergence from the base program."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from pyro_tilt.infer.reweighting import BaseView, base_view
from pyro_tilt.ops.importance import effective_sample_size, normalize

if TYPE_CHECKING:
    from pyro_tilt.infer.weighted_samples import WeightedSamples


def beta_for_kl(result: WeightedSamples, nats: float, *, min_ess: float = 10.0) -> float:
    r"""
    The beta at which the aligned law is ``nats`` away from the base program.

    .. math::
        \mathrm{KL}(q_\beta \,\|\, p) = \beta\, \mathbb E_{q_\beta} r
        - \log \mathbb E_p e^{\beta r}

    increases with beta, since its derivative is :math:`\beta\,\mathrm{Var}_{q_\beta} r`. It is
    estimated by reweighting the draws, so the answer is as good as the draws reach: around the
    beta they were made at. The base is the program with its observations and other factors.

    :param result: draws with a reward and one beta, from any sampler.
    :param nats: the divergence to spend, at least zero.
    :param min_ess: fewest effective draws that an answer may rest on, at that beta as at zero.
    :returns: a beta of at least zero.
    :raises ValueError: where the draws do not reach that far.

    >>> from pyro_tilt.infer.certificate import Certificate
    >>> from pyro_tilt.infer.weighted_samples import WeightedSamples
    >>> x = torch.distributions.Normal(0.0, 1.0).icdf((torch.arange(9999) + 1) / 10000)
    >>> draws = WeightedSamples(
    ...     kind="iid",
    ...     samples={"x": x},
    ...     stats={"reward": x},
    ...     log_weights=torch.zeros(9999),
    ...     certificate=Certificate(target="joint tilt", law="exact"),
    ...     beta=0.0,
    ... )
    >>> round(beta_for_kl(draws, 0.5), 1)
    1.0
    """
    if not (math.isfinite(nats) and nats >= 0):
        raise ValueError(f"nats must be a finite number of at least zero; got {nats}")
    view = base_view(result)
    view = _alive(view)
    floor = _kl(view, 0.0)
    if nats < floor:
        raise ValueError(
            f"the reward is -inf on a part of the base program, which costs {floor:.4g} nats at "
            f"any positive beta; {nats:.4g} nats are fewer"
        )
    if nats == floor:
        return 0.0
    near = float(effective_sample_size(view.log_weights))
    if near < min_ess:
        raise ValueError(
            f"the draws were made too far from the base to measure a divergence from it: their "
            f"effective sample size at beta = 0 is {near:.2f}, below min_ess = {min_ess:g}"
        )
    beta = _solve(view, nats)
    if beta is None or _ess(view, beta) < min_ess:
        _out_of_reach(view, nats, min_ess, beta)
    return float(beta or 0.0)


def _alive(view: BaseView) -> BaseView:
    """Keeps the draws that a positive beta can return, and counts the mass of the others."""
    alive = ~torch.isneginf(view.reward) & (view.log_weights > -math.inf)
    if not bool(alive.any()):
        raise ValueError("every weight is zero: there is nothing to reweight")
    if bool(alive.all()):
        return view
    share = torch.logsumexp(view.log_weights[alive], 0) - torch.logsumexp(view.log_weights, 0)
    return BaseView(view.reward[alive], view.log_weights[alive], view.log_mass + share)


def _kl(view: BaseView, beta: float) -> float:
    tilt = beta * view.reward
    log_weights = view.log_weights + tilt
    mean = normalize(log_weights) @ tilt
    spent = mean - torch.logsumexp(log_weights, 0) + torch.logsumexp(view.log_weights, 0)
    return max(float(spent), 0.0) - float(view.log_mass)


def _ess(view: BaseView, beta: float) -> float:
    return float(effective_sample_size(view.log_weights + beta * view.reward))


def _solve(view: BaseView, nats: float) -> float | None:
    """The root, or None where even a tilt onto the best draws spends less."""
    from scipy.optimize import brentq

    best = view.reward == view.reward.max()
    limit = torch.logsumexp(view.log_weights, 0) - torch.logsumexp(view.log_weights[best], 0)
    if nats >= float(limit) - float(view.log_mass):
        return None
    # The scale of beta is set by the spread of the reward.
    high = 1.0 / float((view.reward.max() - view.reward).mean())
    while _kl(view, high) < nats:
        high *= 2.0
        if not math.isfinite(high):
            return None
    return float(brentq(lambda beta: _kl(view, beta) - nats, 0.0, high, xtol=1e-12 * high))


def _out_of_reach(view: BaseView, nats: float, min_ess: float, beta: float | None) -> None:
    """Finds the largest divergence that enough effective draws support, and raises."""
    spread = float((view.reward.max() - view.reward).mean())
    high = beta if beta is not None else (1e4 / spread if spread > 0 else 1.0)
    betas = [0.0, *torch.logspace(-6, 0, 400, dtype=torch.float64).mul(high).tolist()]
    reach = max(candidate for candidate in betas if _ess(view, candidate) >= min_ess)
    raise ValueError(
        f"{nats:.4g} nats are out of reach of these draws: the largest divergence with an "
        f"effective sample size of {min_ess:g} is {_kl(view, reach):.4g} nats, at beta = "
        f"{reach:.4g}, where the effective sample size is {_ess(view, reach):.1f}. Draw more, or "
        "sample at a beta nearer to the answer"
    )
