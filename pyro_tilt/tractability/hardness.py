# SPDX-License-Identifier: Apache-2.0
"""What is known to be hard in general, and where that is from."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_tilt.rewards import Quadratic, Reward

__all__ = ["HIGH_RANK", "Hardness", "negative_directions", "positive_rank"]

PAPER = "Moitra, Risteski and Rohatgi 2026, arXiv 2602.16570"
DERIVED = "derived here, not a published theorem"


@dataclass(frozen=True)
class Hardness:
    """
    A result that no algorithm is fast on all bases of a kind.

    :ivar statement: what is hard.
    :ivar source: the theorem, or that it was derived for this project.

    >>> RANK_ONE_NEGATIVE.source
    'Moitra, Risteski and Rohatgi 2026, arXiv 2602.16570, Theorem 4.1'
    """

    statement: str
    source: str

    def __str__(self) -> str:
        return f"{self.statement} ({self.source})"

    def to_dict(self) -> dict[str, Any]:
        """The fields as a dictionary."""
        return asdict(self)


RANK_ONE_NEGATIVE = Hardness(
    "tilts by a negative quadratic are NP-hard to sample already at rank one, in time polynomial "
    "in the dimension whatever the size of the quadratic: on the uniform law of a hypercube they "
    "solve the partition problem",
    f"{PAPER}, Theorem 4.1",
)
HIGH_RANK_POSITIVE = Hardness(
    "tilts by a positive quadratic of high rank are NP-hard to sample, also in time polynomial in "
    "its size: they solve max-cut",
    f"{PAPER}, Theorem A.1",
)
AUTOREGRESSIVE_LINEAR = Hardness(
    "for a model that is known through its next-token laws even linear tilts are NP-hard: a last "
    "token that says whether a formula holds, tilted towards yes, finds a satisfying assignment",
    DERIVED,
)
NON_CONCAVE_TRANSPORT = Hardness(
    "the proximal map of a non-concave reward in many dimensions is NP-hard to compute: it "
    "maximises a convex quadratic over a box",
    DERIVED,
)

# Up to this rank a positive quadratic is a small mixture of linear tilts.
HIGH_RANK = 3


def spectrum(reward: Quadratic) -> Tensor:
    """Eigenvalues of A in increasing order, those at rounding level set to zero."""
    A = reward.A.detach().double().cpu()
    values = A.reshape(1) if A.dim() < 2 else torch.linalg.eigvalsh(A)
    tolerance = 4.0 * torch.finfo(reward.A.dtype).eps * len(values)
    return torch.where(values.abs() <= tolerance * values.abs().amax(), 0.0, values)


def negative_directions(reward: Reward) -> bool:
    """
    Whether a reward bends down somewhere, so that its tilts belong to the hard class of Theorem
    4.1. A negative multiple of the identity, which is easy, does not count.

    :param reward: the reward, beta folded in.

    >>> negative_directions(Quadratic(torch.tensor([[-1.0, 0.0], [0.0, 0.0]])))
    True
    >>> negative_directions(Quadratic(-torch.eye(2)))
    False
    """
    if isinstance(reward, Quadratic) and not reward.batch_shape:
        values = spectrum(reward)
        spread = float(values[-1] - values[0])
        isotropic = spread <= 1e-6 * float(values.abs().amax()) and float(values[0]) < 0.0
        return bool(values[0] < 0.0) and not isotropic
    return bool(reward.concave) and not reward.convex


def positive_rank(reward: Reward) -> int:
    """
    The number of directions in which a quadratic bends up; zero for other rewards.

    :param reward: the reward, beta folded in.

    >>> positive_rank(Quadratic(torch.diag(torch.tensor([2.0, 0.0, 1.0]))))
    2
    """
    if not isinstance(reward, Quadratic) or reward.batch_shape:
        return 0
    return int((spectrum(reward) > 0.0).sum())
