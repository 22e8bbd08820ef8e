# SPDX-License-Identifier: Apache-2.0
"""Laws to draw the sites of a step from, in place of the program's own."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

__all__ = ["Proposal", "checked_proposal", "gradient_proposal"]

Proposal = Callable[[str, Any, Any, Any], Any]
"""Maps the name of a latent site, its law, the carry and the element of ``xs`` of the step (both
None outside steps) to the law to draw from, or None for the program's own."""


def checked_proposal(name: str, fn: Any, law: Any) -> Any:
    """
    The proposal expanded to the batch shape of the program's law.

    :param name: name of the site.
    :param fn: the program's law.
    :param law: what is proposed.
    :raises ValueError: where the two do not fit.
    """
    if not hasattr(law, "log_prob"):
        raise ValueError(
            f"site '{name}': the proposal is a {type(law).__name__}, not a distribution or None"
        )
    if law.batch_shape != fn.batch_shape and law.event_shape == fn.event_shape:
        # Where it does not expand the message below says what was expected.
        with suppress(RuntimeError, ValueError):
            law = law.expand(fn.batch_shape)
    if law.event_shape != fn.event_shape or law.batch_shape != fn.batch_shape:
        raise ValueError(
            f"site '{name}': the proposal has batch shape {tuple(law.batch_shape)} and event shape "
            f"{tuple(law.event_shape)}, the program's law {tuple(fn.batch_shape)} and "
            f"{tuple(fn.event_shape)}"
        )
    return law


def gradient_proposal(twist: Callable[[Any, Any], Tensor]) -> Proposal:
    r"""
    Shifts Gaussian kernels along the gradient of the log twist.

    .. math:: N(\mu, \sigma^2) \to N(\mu + \sigma^2 \nabla\log\psi(\mu), \sigma^2)

    to first order the optimal kernel :math:`\propto N(\mu, \sigma^2)\,\psi` (as in Wu, Trippe,
    Naesseth, Blei and Cunningham 2023, arXiv 2306.17775). The ratio of the two densities enters
    the weight, so the target stays. For steps whose carry is the value of their only latent site,
    with a law ``Normal``, ``to_event`` of it, or ``MultivariateNormal``.

    :param twist: log twist of a carry and the element of ``xs``, differentiable by torch.
    """

    def propose(name: str, fn: Any, carry: Any, x: Any) -> Any:
        if carry is None:
            return None
        base = fn.base_dist if isinstance(fn, dist.Independent) else fn
        if not isinstance(base, (dist.Normal, dist.MultivariateNormal)):
            raise ValueError(
                f"site '{name}': the gradient proposal is for Gaussian kernels, and the law is "
                f"{type(base).__name__}; give a callable proposal= instead"
            )
        mean = base.mean
        if not isinstance(carry, Tensor) or carry.shape[1:] not in ((), mean.shape[1:]):
            raise ValueError(
                f"site '{name}': the gradient proposal evaluates the twist at the mean of the "
                "kernel, so the carry must be the value of this one site; give a callable "
                "proposal= instead"
            )
        slope = _slope(twist, mean, x, name)
        if isinstance(base, dist.Normal):
            shifted: Any = dist.Normal(mean + base.scale.square() * slope, base.scale)
            if base is not fn:
                shifted = shifted.to_event(fn.reinterpreted_batch_ndims)
            return shifted
        root = base.scale_tril
        step = (root @ (root.mT @ slope.unsqueeze(-1))).squeeze(-1)
        return dist.MultivariateNormal(mean + step, scale_tril=root)

    return propose


def _slope(twist: Callable[[Any, Any], Tensor], mean: Tensor, x: Any, name: str) -> Tensor:
    with torch.enable_grad():
        point = mean.detach().clone().requires_grad_()
        value = twist(point, x)
        if not value.requires_grad:
            raise ValueError(
                f"site '{name}': the twist has no gradient by torch, which the gradient proposal "
                "needs"
            )
        (slope,) = torch.autograd.grad(value.sum(), point)
    # A twist that vanishes there has no slope; the program's own kernel is the choice then.
    return torch.nan_to_num(slope, nan=0.0, posinf=0.0, neginf=0.0)
