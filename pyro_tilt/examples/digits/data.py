# SPDX-License-Identifier: Apache-2.0
"""The 1,797 handwritten digits of scikit-learn, in three disjoint parts."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_tilt.examples.extras import require

IMAGE_SHAPE = (1, 8, 8)
NUM_IMAGES = 1797
NUM_TRAIN = 1000
NUM_CONFIRM = 437
SPLIT_SEED = 20240


@dataclass(frozen=True)
class Digits:
    """
    Labelled images.

    :param images: shape ``(n, 1, 8, 8)``, pixels in [-1, 1], where 1 is full ink.
    :param labels: shape ``(n,)``, the digits 0 to 9.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor) -> "Digits":
        return Digits(self.images[index], self.labels[index])


@dataclass(frozen=True)
class Split:
    """
    Indices of three disjoint parts of the images.

    :param train: what the diffusion and classifier A learn from, 1,000 images.
    :param confirm: what classifier B learns from, 437 other images.
    :param held_out: the remaining 360 images, which no weight has seen.
    """

    train: Tensor
    confirm: Tensor
    held_out: Tensor


def split_indices(seed: int = SPLIT_SEED) -> Split:
    """
    The fixed split of the images.

    :param seed: seed of the permutation.
    :returns: three disjoint index tensors that together cover every image.

    >>> [len(part) for part in vars(split_indices()).values()]
    [1000, 437, 360]
    """
    order = torch.randperm(NUM_IMAGES, generator=torch.Generator().manual_seed(seed))
    train, confirm, held_out = order.split(
        [NUM_TRAIN, NUM_CONFIRM, NUM_IMAGES - NUM_TRAIN - NUM_CONFIRM]
    )
    return Split(train, confirm, held_out)


def load_digits() -> Digits:
    """
    All real digits, scaled from ink levels 0 to 16 to [-1, 1].

    :returns: 1,797 labelled images.
    :raises ImportError: where scikit-learn is not installed.
    """
    raw = require("sklearn.datasets").load_digits()
    images = torch.tensor(raw.images, dtype=torch.float32).reshape(-1, *IMAGE_SHAPE) / 8 - 1
    return Digits(images, torch.tensor(raw.target, dtype=torch.long))
