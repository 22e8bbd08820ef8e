# SPDX-License-Identifier: Apache-2.0
"""Laws made of other laws: products, copies, affine images, particles."""

from __future__ import annotations

import math
from functools import reduce
from operator import mul
from typing import Any

import pyro.distributions as dist
import torch
import torch.distributions as td
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from torch import Tensor
from torch.distributions.transforms import AffineTransform
from torch.nn.functional import logsigmoid

from pyro_tilt.distributions.exact.common import EVERY_REWARD, closed_form, fits, slope_of
from pyro_tilt.distributions.exact.reshaping import pulled_back, separated
from pyro_tilt.distributions.registry import ExactTilt, find_tilt, register_tilt
from pyro_tilt.rewards import Linear, LinearIn, Quadratic, Reward, evaluate


@register_tilt(td.Distribution, LinearIn)
def linear_in_x(base: Any, reward: LinearIn) -> ExactTilt | None:
    """Without any other statistic the reward is linear."""
    if set(reward.coefficients) != {"x"}:
        return None
    linear = Linear(reward.coefficients["x"], reward.event_dim, offset=reward.offset)
    return find_tilt(base, linear)


@register_tilt(td.Independent, Linear)
@register_tilt(td.Independent, LinearIn)
def independent_tilt(base: Any, reward: Linear | LinearIn) -> ExactTilt | None:
    """A product of laws stays one; the normalisers multiply."""
    if not fits(base, reward):
        return None
    count = base.reinterpreted_batch_ndims
    parts = find_tilt(base.base_dist, separated(reward, count))
    if parts is None:
        return None
    dims = tuple(range(-count, 0))
    log_z = parts.log_normalizer.sum(dims) if count else parts.log_normalizer
    size = reduce(mul, base.event_shape[:count], 1)
    law = None if parts.law is None else dist.Independent(parts.law, count)
    return closed_form(
        base, law, log_z + reward.offset, method=parts.method, error=size * parts.error
    )


@register_tilt(ExpandedDistribution, Linear)
@register_tilt(ExpandedDistribution, LinearIn)
@register_tilt(ExpandedDistribution, Quadratic)
def expanded_tilt(base: Any, reward: Any) -> ExactTilt | None:
    """The tilt of what is expanded, for a reward that does not vary over the copies."""
    if not fits(base, reward):
        return None
    inner = base.base_dist
    if torch.broadcast_shapes(reward.batch_shape, inner.batch_shape) != inner.batch_shape:
        return None
    found = find_tilt(inner, reward)
    if found is None:
        return None
    log_z = found.log_normalizer.expand(base.batch_shape)
    law = None if found.law is None else found.law.expand(base.batch_shape)
    return closed_form(base, law, log_z, method=found.method, error=found.error)


@register_tilt(MaskedDistribution, EVERY_REWARD)
def masked_tilt(base: Any, reward: Reward) -> ExactTilt | None:
    """The mask hides elements from a density; the law under it is tilted all the same."""
    found = find_tilt(base.base_dist, reward)
    if found is None:
        return None
    law = None if found.law is None else found.law.mask(base._mask)
    return closed_form(base, law, found.log_normalizer, method=found.method, error=found.error)


@register_tilt(td.TransformedDistribution, Linear)
def affine_linear(base: Any, reward: Linear) -> ExactTilt | None:
    """A linear reward of an affine image is a linear reward of the original."""
    transforms = base.transforms
    affine = all(isinstance(transform, AffineTransform) for transform in transforms)
    inner = base.base_dist
    if not affine or inner.event_shape != base.event_shape or not fits(base, reward):
        return None
    pulled = reward
    for transform in reversed(transforms):
        loc, scale = (
            torch.as_tensor(value, dtype=pulled.theta.dtype, device=pulled.theta.device)
            for value in (transform.loc, transform.scale)
        )
        pulled = pulled_back(pulled, loc, scale)
    found = find_tilt(inner, pulled)
    if found is None or found.law is None:
        return found
    law = dist.TransformedDistribution(found.law, transforms)
    return closed_form(base, law, found.log_normalizer, method=found.method, error=found.error)


@register_tilt(dist.Delta, EVERY_REWARD)
def delta_tilt(base: Any, reward: Reward) -> ExactTilt:
    """A point stays where it is; the normaliser is its reward."""
    value = evaluate(reward, base.v, shape=base.batch_shape)
    if bool((value == -math.inf).any()):
        raise ValueError("this tilt of Delta does not exist: the reward of its point is -inf")
    return closed_form(base, base, value)


@register_tilt(dist.Empirical, EVERY_REWARD)
def empirical_tilt(base: Any, reward: Reward) -> ExactTilt:
    """Particles keep their places; their log weights grow by their rewards."""
    particles, log_weights = base.enumerate_support(), base.log_weights
    dim = log_weights.dim() - 1
    values = particles.movedim(dim, 0)
    shape = (values.shape[0], *base.batch_shape)
    rewards = evaluate(reward, values, shape=shape).movedim(0, -1)
    moved = log_weights + rewards
    log_z = moved.logsumexp(-1) - log_weights.logsumexp(-1)
    if bool((log_z == -math.inf).any()):
        raise ValueError("this tilt of Empirical does not exist: every particle has reward -inf")
    return closed_form(base, dist.Empirical(particles, moved), log_z)


@register_tilt(dist.ZeroInflatedDistribution, Linear)
def zero_inflated_linear(base: Any, reward: Linear) -> ExactTilt | None:
    """A mixture of a point at zero, which a linear reward does not reach, and the tilted law."""
    slope = slope_of(base, reward)
    found = None if slope is None else find_tilt(base.base_dist, Linear(slope.theta, 0))
    if found is None or found.law is None or slope is None:
        return None
    log_gate, log_open = _log_gates(base)
    log_rest = log_open + found.log_normalizer
    log_z = torch.logaddexp(log_gate, log_rest)
    law = dist.ZeroInflatedDistribution(found.law, gate=(log_gate - log_z).exp())
    log_z = log_z + slope.offset
    return closed_form(base, law, log_z, method=found.method, error=found.error)


def _log_gates(base: Any) -> tuple[Tensor, Tensor]:
    """Logarithms of the gate and its complement, as given: Pyro's expand fails once both exist."""
    if "gate" in base.__dict__:
        return base.gate.log(), torch.log1p(-base.gate)
    return logsigmoid(base.gate_logits), logsigmoid(-base.gate_logits)
