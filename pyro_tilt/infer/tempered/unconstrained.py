# SPDX-License-Identifier: Apache-2.0
"""Latent sites in unconstrained coordinates, with their log densities."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from pyro.distributions import Delta, MaskedDistribution, Normal
from pyro.distributions.util import sum_rightmost
from torch import Tensor
from torch.distributions import Independent, biject_to, constraints

from pyro_tilt.ops.importance import as_double
from pyro_tilt.poutine.fast_normal import is_plain_normal
from pyro_tilt.poutine.weight_messenger import WeightMessenger

__all__ = ["PositionMessenger"]


class PositionMessenger(WeightMessenger):
    r"""
    Scores latent sites in the coordinates :math:`u` of ``biject_to(support)``.

    .. math:: \log p(x(u)) + \log |dx / du|

    With ``positions`` their values are :math:`x(u)`; without, they are drawn and :math:`u` is
    recorded. The weight gathers the factors alone.

    :param size: number of particles.
    :param dim: batch dimension of the particles; None for a plain run of one.
    :param positions: coordinates of every latent site, in the shape of the pass.
    """

    def __init__(self, size: int, dim: int | None, positions: Mapping[str, Tensor] | None) -> None:
        super().__init__(size, dim)
        self.positions = positions
        self.unconstrained: dict[str, Tensor] = {}
        self.laws: dict[str, Any] = {}
        self._moved: dict[str, tuple[Any, Any, Tensor | None]] = {}
        self._log_prior: Tensor | None = None

    @property
    def log_prior(self) -> Tensor:
        """Log density of the latent sites in their coordinates, ``(size,)`` in float64."""
        if self._log_prior is None:
            return torch.zeros(self.size, dtype=torch.float64)
        total = self._log_prior.expand(self.size)
        if float(total.detach().amax()) < math.inf:
            return total
        # A density that is infinite or unknown belongs to a value rounded onto the boundary.
        return torch.where(total < math.inf, total, -math.inf)

    def _pyro_sample(self, msg: Any) -> None:
        placed = self.positions is not None and _is_latent(msg) and not msg["done"]
        # What is placed must not be drawn first, as plain Normals would be.
        if not (placed and is_plain_normal(msg["fn"])):
            super()._pyro_sample(msg)
        if self.positions is None or not placed or msg["done"]:
            return
        name = msg["name"]
        law = unmasked(msg["fn"])
        transform = transform_of(law, name)
        value, outside = self.positions[name], None
        if transform is not None:
            value, outside = _constrained(transform, value, vectorized=self.rank > 0)
        self._moved[name] = law, transform, outside
        msg["value"], msg["done"] = value, True

    def _pyro_post_sample(self, msg: Any) -> None:
        if _is_latent(msg):
            self._score(msg["name"], msg["fn"], msg["value"])
        super()._pyro_post_sample(msg)

    def _score(self, name: str, fn: Any, value: Tensor) -> None:
        if self.positions is None:
            law, outside = unmasked(fn), None
            transform = transform_of(law, name)
            point = value if transform is None else transform.inv(value)
            self.unconstrained[name], self.laws[name] = point, law
        else:
            law, transform, outside = self._moved.pop(name)
            point = self.positions[name]
        try:
            log_prob = as_double(self._per_particle(name, log_density(law, value)))
        except NotImplementedError as error:
            raise NotImplementedError(
                f"site '{name}': {type(law).__name__} has no log_prob to move it by; use "
                "kernel='independent'"
            ) from error
        if transform is not None:
            jacobian = transform.log_abs_det_jacobian(point, value)
            log_prob = log_prob + self._per_particle(name, jacobian)
        if outside is not None:
            log_prob = torch.where(outside, -math.inf, log_prob)
        self._log_prior = log_prob if self._log_prior is None else self._log_prior + log_prob


def log_density(law: Any, value: Tensor) -> Tensor:
    """
    ``law.log_prob(value)``, for Normal laws without work on what the particle plate expanded.

    :param law: a distribution.
    :param value: a value of its full shape.
    """
    base = innermost(law)
    if type(base) is not Normal or value.shape != base.batch_shape:
        return law.log_prob(value)
    narrow = Normal(_unexpanded(base.loc), _unexpanded(base.scale), validate_args=False)
    return sum_rightmost(narrow.log_prob(value), value.dim() - len(law.batch_shape))


def _unexpanded(values: Tensor) -> Tensor:
    for dim, stride in enumerate(values.stride()):
        if stride == 0:
            values = values.narrow(dim, 0, min(1, values.shape[dim]))
    return values


def transform_of(law: Any, name: str) -> Any:
    """
    The map from unconstrained coordinates to a law's support; None where it is the identity.

    :param law: a distribution without masks.
    :param name: what an error names.
    :raises ValueError: for a discrete site or one without a density.
    """
    try:
        support = law.support
    except NotImplementedError:
        support = None
    if support is constraints.real:
        return None
    if getattr(support, "is_discrete", False):
        raise ValueError(
            f"site '{name}' is discrete ({type(innermost(law)).__name__}) and cannot be moved by "
            "a kernel of continuous coordinates; use kernel='independent', which draws all sites "
            "anew, or marginalise it"
        )
    if isinstance(innermost(law), Delta):
        raise ValueError(
            f"site '{name}' is a Delta, which has no density to move; use pyro.deterministic"
        )
    while isinstance(support, constraints.independent):
        if support.base_constraint is constraints.real:
            return None
        support = support.base_constraint
    try:
        return biject_to(law.support)
    except NotImplementedError as error:
        raise ValueError(
            f"site '{name}': the support of {type(innermost(law)).__name__} has no unconstrained "
            "coordinates (biject_to); use kernel='independent'"
        ) from error


def innermost(law: Any) -> Any:
    """The distribution inside ``Independent`` wrappers."""
    while isinstance(law, Independent):
        law = law.base_dist
    return law


def unmasked(fn: Any) -> Any:
    """The law that ``fn`` draws from: masks change its density, not its draws."""
    if isinstance(fn, MaskedDistribution):
        return unmasked(fn.base_dist)
    if isinstance(fn, Independent) and _has_mask(fn):
        return unmasked(fn.base_dist).to_event(fn.reinterpreted_batch_ndims)
    return fn


def _has_mask(fn: Any) -> bool:
    while isinstance(fn, Independent):
        fn = fn.base_dist
    return isinstance(fn, MaskedDistribution)


def _is_latent(msg: Any) -> bool:
    return not (
        msg["is_observed"]
        or msg["infer"].get("_do_not_trace")
        or type(msg["fn"]).__name__ == "_Subsample"
    )


def _constrained(
    transform: Any, point: Tensor, *, vectorized: bool
) -> tuple[Tensor, Tensor | None]:
    """The values of coordinates, and which particles overflow; those get a value in the support."""
    value = transform(point)
    finite = value.isfinite()
    if bool(finite.all()):
        return value, None
    inside = transform(torch.zeros_like(point))
    if not vectorized:
        return inside, ~finite.all()
    outside = ~finite.reshape(len(value), -1).all(-1)
    return torch.where(outside.reshape(-1, *(1,) * (value.dim() - 1)), inside, value), outside
