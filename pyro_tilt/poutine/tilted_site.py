# SPDX-License-Identifier: Apache-2.0
"""Takes a Tilted sample site apart, through the wrappers that plates and users put on it."""

from typing import Any

import torch
from pyro.distributions import MaskedDistribution
from pyro.distributions.util import sum_rightmost
from torch import Tensor
from torch.distributions import Independent

from pyro_tilt.distributions import Tilted
from pyro_tilt.rewards import evaluate, log_tilt


def find_tilted(fn: Any) -> Tilted | None:
    """The :class:`~pyro_tilt.distributions.Tilted` inside ``fn``, or None."""
    while isinstance(fn, (Independent, MaskedDistribution)):
        fn = fn.base_dist
    return fn if isinstance(fn, Tilted) else None


def base_of(fn: Any) -> Any:
    """``fn`` with the Tilted inside it replaced by its base, wrappers kept."""
    if isinstance(fn, Tilted):
        return fn.base
    base = base_of(fn.base_dist)
    if isinstance(fn, MaskedDistribution):
        return base.mask(fn._mask)
    return base.to_event(fn.reinterpreted_batch_ndims)


def reduce_like(fn: Any, values: Tensor) -> Tensor:
    """Sums and masks ``values``, one per Tilted element, as ``fn`` does its log_prob."""
    if isinstance(fn, Tilted):
        return values
    values = reduce_like(fn.base_dist, values)
    if isinstance(fn, MaskedDistribution):
        if isinstance(fn._mask, bool):
            return values if fn._mask else torch.zeros_like(values)
        return torch.where(fn._mask, values, values.new_zeros(()))
    return sum_rightmost(values, fn.reinterpreted_batch_ndims)


def samples_exactly(tilted: Tilted) -> bool:
    """Whether draws of a Tilted distribution follow its law without a weight."""
    return tilted.law is not None or tilted.tractability.sampling != "lcb"


def log_normalizer(tilted: Tilted, *, name: str) -> Tensor | float:
    """
    The log normaliser; zero where the user says that it does not vary.

    :param tilted: a Tilted distribution.
    :param name: the site that an error names.
    :raises NotImplementedError: where it is unknown.
    """
    if tilted.tractability.normalizer == "constant":
        return 0.0
    try:
        return tilted.log_normalizer
    except NotImplementedError as error:
        raise NotImplementedError(f"site '{name}': {error}") from error


def log_correction(fn: Any, value: Tensor, log_z: Tensor | float, *, name: str) -> Tensor:
    """
    The log density of ``fn`` relative to its base, ``beta * r - log Z``.

    :param fn: a Tilted distribution, perhaps wrapped.
    :param value: a value.
    :param log_z: the log normaliser of the Tilted inside, asked for before the base is drawn from.
    :param name: what an error names.
    :raises ValueError: if the reward is NaN or ``+inf``.
    """
    tilted = find_tilted(fn)
    assert tilted is not None
    reward = evaluate(tilted.reward, value, name=name)
    return reduce_like(fn, log_tilt(reward, tilted.beta) - log_z)
