# SPDX-License-Identifier: Apache-2.0
"""Networks for log soft values, one value per row and step."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["SharedNetwork", "StepHeads"]


class StepHeads(nn.Module):
    """
    A small network of its own for every step, so that fitting one step leaves the others alone.

    The last layers start at zero.

    :param dim: number of features d.
    :param num_steps: number of steps.
    :param width: of the hidden layers.
    :param depth: number of hidden layers, zero for linear values.

    >>> StepHeads(3, 4)(torch.zeros(5, 3), 2).shape
    torch.Size([5])
    """

    def __init__(self, dim: int, num_steps: int, *, width: int = 64, depth: int = 2) -> None:
        super().__init__()
        self.settings = {"width": width, "depth": depth}
        self.heads = nn.ModuleList([_perceptron(dim, width, depth) for _ in range(num_steps)])

    def forward(self, features: Tensor, step: int) -> Tensor:
        """
        Values of one step.

        :param features: shape (N, d).
        :param step: its position in the scan.
        """
        return self.heads[step](features).squeeze(-1)

    def renew(self, step: int, dim: int) -> None:
        """
        Gives a step another head where it has other features than its head reads.

        :param step: its position in the scan.
        :param dim: number of its features.
        """
        old = _first_layer(self.heads[step])
        if old.in_features != dim:
            fresh = _perceptron(dim, **self.settings).requires_grad_(old.weight.requires_grad)
            self.heads[step] = fresh.to(old.weight)

    def pad(self, dim: int) -> None:
        """
        Lets all heads read d features, of which they ignore those that they did not know.

        :param dim: d.
        """
        for head in self.heads:
            layer = _first_layer(head)
            missing = dim - layer.in_features
            layer.weight = nn.Parameter(
                nn.functional.pad(layer.weight.detach(), (0, missing)), layer.weight.requires_grad
            )
            layer.in_features = dim


class SharedNetwork(nn.Module):
    """
    One network for all steps, with a learned embedding of the step beside the features.

    :param dim: number of features d.
    :param num_steps: number of steps.
    :param width: of the hidden layers.
    :param depth: number of hidden layers.
    :param embedding: length of the embedding.

    >>> SharedNetwork(3, 4)(torch.zeros(5, 3), 2).shape
    torch.Size([5])
    """

    mixes_steps = True

    def __init__(
        self, dim: int, num_steps: int, *, width: int = 128, depth: int = 2, embedding: int = 16
    ) -> None:
        super().__init__()
        self.settings = {"width": width, "depth": depth, "embedding": embedding}
        self.embedding = nn.Embedding(num_steps, embedding)
        self.body = _perceptron(dim + embedding, width, depth)

    def forward(self, features: Tensor, step: int | Tensor) -> Tensor:
        """
        Values of one step, or of a step per row.

        :param features: shape (N, d).
        :param step: its position in the scan, or positions of shape (N,).
        """
        place = self.embedding.weight[step].expand(len(features), -1)
        return self.body(torch.cat((features, place), -1)).squeeze(-1)


def _first_layer(head: nn.Module) -> nn.Linear:
    layer = next(each for each in head.modules() if isinstance(each, nn.Linear))
    return layer


def _perceptron(dim: int, width: int, depth: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(dim, width), nn.SiLU()]
        dim = width
    last = nn.Linear(dim, 1)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(*layers, last)
