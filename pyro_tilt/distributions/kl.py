# SPDX-License-Identifier: Apache-2.0
"""Divergences from tilted laws."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution, kl_divergence, register_kl

from pyro_tilt.distributions.grid_law import GridLaw
from pyro_tilt.distributions.tilted import Tilted


@register_kl(Tilted, Distribution)
def kl_from_tilted(p: Tilted, q: Distribution) -> Tensor:
    r"""
    The divergence of a tilted law from another, its base above all.

    .. math::

        \mathrm{KL}(q \,\|\, p) = \beta\, \mathbb{E}_q r - \log Z

    By torch's KL of the exact law where that pair is registered, otherwise by the sum or
    integral that gave the law.

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
    return kl_divergence(law, other)
