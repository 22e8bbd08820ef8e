# SPDX-License-Identifier: Apache-2.0
"""Divergences from tilted laws."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution, kl_divergence, register_kl

from pyro_tilt.distributions.grid_law import GridLaw
from pyro_tilt.distributions.registry import find_tilt
from pyro_tilt.distributions.tilted import Tilted


@register_kl(Tilted, Distribution)
def kl_from_tilted(p: Tilted, q: Distribution) -> Tensor:
    r"""
    The divergence of a tilted law from another, its base above all.

    .. math::

        \mathrm{KL}(q \,\|\, p) = \beta\, \mathbb{E}_q r - \log Z

    By the sum or integral that gave the law, otherwise by torch's KL where that pair is
    registered. From the very base that was tilted it is known wherever :math:`\log Z` is, since
    :math:`\beta\, \mathbb{E}_q r` is the derivative of :math:`\log Z` by :math:`\log \beta`.

    :param p: the tilted law.
    :param q: any law on the same space.
    :raises NotImplementedError: where there is no exact law, so that callers estimate it.
    """
    if p.is_base and p.base is q:
        return torch.zeros_like(p.log_normalizer)
    law = p.law
    if law is None:
        raise NotImplementedError(
            f"no KL from Tilted({type(p.base).__name__}): its law is not known exactly"
        )
    other = q.law if isinstance(q, Tilted) and q.law is not None else q
    if isinstance(law, GridLaw):
        return law.divergence(other)
    try:
        return kl_divergence(law, other)
    except NotImplementedError:
        spent = _spent(p) if q is p.base or q is p._untilted else None
        if spent is None:
            raise
        return spent


def _spent(p: Tilted) -> Tensor | None:
    """The divergence from the base by the derivative of log Z, None where it has no graph."""
    further = torch.is_grad_enabled() and p.log_normalizer.requires_grad
    with torch.enable_grad():
        step = p.log_normalizer.new_ones(()).requires_grad_()
        found = find_tilt(p.base, p.scaled_reward * step)
        if found is None or not found.log_normalizer.requires_grad:
            return None
        log_z = found.log_normalizer
        # One step for all batch elements: its derivative of each is that of a linear function.
        ones = torch.ones_like(log_z, requires_grad=True)
        (total,) = torch.autograd.grad(log_z, step, ones, create_graph=True)
        (gain,) = torch.autograd.grad(total, ones, create_graph=further)
    spent = gain - log_z
    return spent if further else spent.detach()
