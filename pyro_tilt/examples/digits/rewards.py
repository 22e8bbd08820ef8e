# SPDX-License-Identifier: Apache-2.0
"""What the demo asks of a digit: more ink, or to be read as a given number."""

import math

import torch
from torch import Tensor, nn

from pyro_tilt.examples.digits.data import IMAGE_SHAPE
from pyro_tilt.rewards import Bounded, Linear


def ink_reward() -> Linear:
    """
    The mean ink of an image, 0 for empty and 1 for black; linear in the pixels.

    :returns: a reward of images of shape ``(1, 8, 8)`` with pixels in [-1, 1].

    >>> ink_reward()(torch.stack([torch.ones(1, 8, 8), -torch.ones(1, 8, 8)]))
    tensor([1., 0.])
    """
    size = math.prod(IMAGE_SHAPE)
    return Linear(torch.full(IMAGE_SHAPE, 0.5 / size), event_dim=3, offset=0.5)


class LogProbability(nn.Module):
    """
    The log probability that a classifier gives to one digit.

    :param classifier: maps images to log probabilities of the ten digits.
    :param digit: the digit.
    :raises ValueError: where ``digit`` is not 0 to 9.
    """

    def __init__(self, classifier: nn.Module, digit: int) -> None:
        super().__init__()
        if digit not in range(10):
            raise ValueError(f"digit must be one of 0 to 9, got {digit!r}")
        self.classifier = classifier
        self.digit = digit

    def forward(self, image: Tensor) -> Tensor:
        """
        :param image: shape ``batch_shape + (1, 8, 8)``.
        :returns: log probabilities, shape ``batch_shape``.
        """
        return self.classifier(image)[..., self.digit]


def reads_as(classifier: nn.Module, digit: int = 3) -> Bounded:
    r"""
    The log probability that an image reads as a digit, which is never above 0.

    With beta = 1 the aligned law is Bayes' rule, :math:`p(x) P(\text{digit} \mid x) / Z`, and
    Z is the probability that a base draw reads as the digit; larger beta asks for clearer ones.

    :param classifier: maps images to log probabilities of the ten digits.
    :param digit: the digit.
    :returns: a reward bounded above by 0, so that exact rejection applies.
    """
    return Bounded(LogProbability(classifier, digit), low=-math.inf, high=0.0, event_dim=3)
