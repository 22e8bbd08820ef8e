# SPDX-License-Identifier: Apache-2.0
"""Two small classifiers of digits that share no training image."""

from pathlib import Path

import torch
from torch import Tensor, nn

from pyro_tilt.examples.digits.data import Digits
from pyro_tilt.examples.digits.model import WEIGHTS, load_weights

# Different widths, so that B is neither trained on A's images nor built as A is.
CHANNELS = {"a": (16, 32), "b": (12, 24)}


class Classifier(nn.Module):
    """
    A convolutional classifier whose probabilities carry a fitted temperature.

    :param channels: widths of the two convolutions.
    :param hidden: width of the dense layer.
    """

    temperature: Tensor

    def __init__(self, channels: tuple[int, int] = (16, 32), hidden: int = 64) -> None:
        super().__init__()
        first, second = channels
        self.layers = nn.Sequential(
            nn.Conv2d(1, first, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(first, second, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(second * 16, hidden),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(hidden, 10),
        )
        self.register_buffer("temperature", torch.ones(()))

    def forward(self, image: Tensor) -> Tensor:
        """
        :param image: shape ``batch_shape + (1, 8, 8)``, pixels in [-1, 1].
        :returns: log probabilities of the ten digits, shape ``batch_shape + (10,)``.
        """
        logits = self.layers(image.reshape(-1, *image.shape[-3:])) / self.temperature
        return logits.log_softmax(-1).reshape(*image.shape[:-3], 10)


def load_classifier(name: str, directory: Path = WEIGHTS) -> Classifier:
    """
    A trained classifier.

    :param name: ``"a"`` (learned from the diffusion's images) or ``"b"`` (from others).
    :param directory: where the weights are.
    :returns: the frozen classifier on the CPU.
    :raises ValueError: for another name.
    """
    if name not in CHANNELS:
        raise ValueError(f"classifiers are named {sorted(CHANNELS)}, got {name!r}")
    classifier = Classifier(CHANNELS[name])
    load_weights(directory / f"classifier_{name}.safetensors", classifier)
    return classifier


@torch.no_grad()
def score(classifier: nn.Module, digits: Digits) -> dict[str, float]:
    """
    How well a classifier reads labelled digits.

    :param classifier: returns log probabilities.
    :param digits: labelled images.
    :returns: ``accuracy``, ``log_loss`` (nats per image) and ``confidence``, the mean
        probability of the chosen digit, which equals the accuracy where calibrated.
    """
    log_probs = classifier(digits.images)
    best, chosen = log_probs.max(-1)
    return {
        "accuracy": (chosen == digits.labels).double().mean().item(),
        "log_loss": nn.functional.nll_loss(log_probs, digits.labels).item(),
        "confidence": best.exp().double().mean().item(),
    }
