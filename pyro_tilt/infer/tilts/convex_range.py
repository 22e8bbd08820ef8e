# SPDX-License-Identifier: Apache-2.0
"""The range of features over which an envelope has to hold."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_tilt.infer.tilts.convex_family import TiltFamily
from pyro_tilt.infer.tilts.convex_feature import FeatureFunction, box_grid, finite

__all__ = ["feature_range"]

# A range this many times that of the base stands for one without end.
_GROWTH = 200.0


def feature_range(
    f: FeatureFunction, family: TiltFamily, *, exit_probability: float
) -> tuple[Tensor, Tensor]:
    """
    A box that holds the features under every tilt by a gradient that f has in the box.

    The box of the base gives gradients, their tilts a larger box, and so on until it settles.

    :param f: a convex function.
    :param family: the tilts.
    :param exit_probability: of a tilt, see :meth:`TiltFamily.box`.
    :returns: lower and upper ends, shape (k,) each.
    :raises ValueError: where it does not settle, as for a tilt that is not integrable or far out.
    """
    k = len(family.features)
    first = low, high = family.box(family.features.new_zeros(1, k), exit_probability)
    for _ in range(500):
        least, most = f.steepest(low, high, 33 if k == 1 else 9)
        if not all(finite(x) for x in [*least.tolist(), *most.tolist()]):
            break
        wider = family.box(
            box_grid(least, most, 2 if k == 1 else 3).unique(dim=0), exit_probability
        )
        width = high - low
        low, high = torch.minimum(low, wider[0]), torch.maximum(high, wider[1])
        if bool((high - low <= (1 + 1e-3) * width).all()):
            return low, high
        if bool((high - low > _GROWTH * (first[1] - first[0])).any()):
            break
    raise ValueError(
        "the reward is too strong for a mixture of linear tilts: the features under it reach at "
        f"least from {low.tolist()} to {high.tolist()}, those of the base from "
        f"{first[0].tolist()} to {first[1].tolist()}; the tilt is not integrable, or lies too far "
        "out to be enclosed. Lower beta, or give range= where the features are bounded"
    )
