# SPDX-License-Identifier: Apache-2.0
"""Finite mixtures: each component is tilted, and its weight grows by its normaliser."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
import torch.distributions as td
from torch import Tensor

from pyro_tilt.distributions.exact.common import EVERY_REWARD, closed_form, fits
from pyro_tilt.distributions.exact.discrete import true_logits
from pyro_tilt.distributions.exact.reshaping import batched
from pyro_tilt.distributions.registry import ExactTilt, find_tilt, register_tilt
from pyro_tilt.rewards import Linear, LinearIn, Quadratic, Reward


@register_tilt(td.MixtureSameFamily, Linear)
@register_tilt(td.MixtureSameFamily, LinearIn)
@register_tilt(td.MixtureSameFamily, Quadratic)
def mixture_tilt(base: Any, reward: Any) -> ExactTilt | None:
    """Weights in proportion to w_k Z_k, components tilted each on its own."""
    if not fits(base, reward):
        return None
    parts = _component_tilt(base, base.component_distribution, batched(reward))
    if parts is None:
        return None
    logits = true_logits(base.mixture_distribution)
    moved, log_z = _reweighted(logits, parts.log_normalizer)
    law = None
    if parts.law is not None:
        law = dist.MixtureSameFamily(dist.Categorical(logits=moved), parts.law)
    return closed_form(base, law, log_z, method=parts.method, error=parts.error)


@register_tilt(dist.MixtureOfDiagNormals, Linear)
@register_tilt(dist.MixtureOfDiagNormals, Quadratic)
@register_tilt(dist.MixtureOfDiagNormalsSharedCovariance, Linear)
@register_tilt(dist.MixtureOfDiagNormalsSharedCovariance, Quadratic)
def diagonal_mixture_tilt(base: Any, reward: Any) -> ExactTilt | None:
    """As of a mixture in general, whose class can also draw many batched values at once."""
    scale = base.coord_scale
    if isinstance(base, dist.MixtureOfDiagNormalsSharedCovariance):
        scale = scale.unsqueeze(-2)
    parts = dist.Normal(base.locs, scale).to_event(1)
    mixture = dist.MixtureSameFamily(dist.Categorical(logits=base.component_logits), parts)
    mixture._validate_args = base._validate_args
    return mixture_tilt(mixture, reward)


@register_tilt(dist.MaskedMixture, EVERY_REWARD)
def masked_mixture_tilt(base: Any, reward: Reward) -> ExactTilt | None:
    """Each element is of one component, which is tilted."""
    first, second = find_tilt(base.component0, reward), find_tilt(base.component1, reward)
    if first is None or second is None:
        return None
    log_z = torch.where(base.mask, second.log_normalizer, first.log_normalizer)
    law = None
    if first.law is not None and second.law is not None:
        law = dist.MaskedMixture(base.mask.expand(log_z.shape), first.law, second.law)
    method = first.method if first.method == second.method else "quadrature"
    return closed_form(base, law, log_z, method=method, error=max(first.error, second.error))


def _component_tilt(base: Any, components: Any, reward: Reward) -> ExactTilt | None:
    try:
        return find_tilt(components, reward)
    except ValueError as error:
        raise ValueError(
            f"a component of {type(base).__name__} has no tilt, and so the mixture has none "
            f"(the last index is that of the component): {error}"
        ) from error


def _reweighted(logits: Tensor, log_k: Tensor) -> tuple[Tensor, Tensor]:
    """Unnormalised log weights of the tilted mixture, and its normaliser."""
    moved = logits.log_softmax(-1) + log_k
    return moved, moved.logsumexp(-1)
