# SPDX-License-Identifier: Apache-2.0
"""
Trains the digit models from their seeds: ``python -m pyro_tilt.examples.digits.train``.

About two minutes on two cores. On the same machine with the same number of threads the weights
are the same again; elsewhere they differ by floating-point rounding, which training amplifies.
"""

import argparse
import math
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm.auto import tqdm

from pyro_tilt.examples.digits.classifier import CHANNELS, Classifier, score
from pyro_tilt.examples.digits.data import SPLIT_SEED, Digits, load_digits, split_indices
from pyro_tilt.examples.digits.model import (
    NUM_TRAIN_STEPS,
    WEIGHTS,
    Denoiser,
    count_parameters,
    make_scheduler,
    make_unet,
    save_weights,
)


@dataclass(frozen=True)
class DiffusionSettings:
    """How the denoising network is trained."""

    seed: int = 0
    steps: int = 3800
    batch: int = 128
    learning_rate: float = 2e-3
    warm_up: int = 100
    clip: float = 1.0
    average: float = 0.999


@dataclass(frozen=True)
class ClassifierSettings:
    """How a classifier is trained."""

    seed: int = 1
    steps: int = 1200
    batch: int = 128
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2
    pixel_noise: float = 0.15


def learning_rate_scale(step: int, steps: int, warm_up: int) -> float:
    """
    Linear warm-up followed by a half cosine to zero, by step count.

    :param step: the current step, from 0.
    :param steps: the number of steps.
    :param warm_up: how many of them are warm-up.

    >>> [round(learning_rate_scale(s, 300, 100), 3) for s in (0, 99, 200, 299)]
    [0.01, 1.0, 0.5, 0.0]
    """
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / (steps - warm_up)))


def diffusion_loss(denoiser: Denoiser, images: Tensor, levels: Tensor, seed: int = 0) -> float:
    """
    The mean squared error of the predicted noise, over 20 fixed passes.

    :param denoiser: the network.
    :param images: shape ``(n, 1, 8, 8)``.
    :param levels: cumulative signal levels of the schedule.
    :param seed: seed of times and noise.
    """
    generator = torch.Generator().manual_seed(seed)
    images = images.repeat(20, 1, 1, 1)
    times = torch.randint(NUM_TRAIN_STEPS, (len(images),), generator=generator)
    noise = torch.randn(images.shape, generator=generator)
    total = 0.0
    with torch.no_grad():
        for x, t, e in zip(images.split(1024), times.split(1024), noise.split(1024)):
            level = levels[t].reshape(-1, 1, 1, 1)
            guess = denoiser(level.sqrt() * x + (1 - level).sqrt() * e, t)
            total += functional.mse_loss(guess, e, reduction="sum").item()
    return total / images.numel()


def train_diffusion(images: Tensor, settings: DiffusionSettings) -> Denoiser:
    """
    Trains the denoising network and returns the moving average of its weights.

    :param images: shape ``(n, 1, 8, 8)`` in [-1, 1].
    :param settings: see :class:`DiffusionSettings`.
    """
    levels = make_scheduler().alphas_cumprod
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        denoiser = Denoiser(make_unet()).train()
        average = deepcopy(denoiser).requires_grad_(False)
        optimizer = torch.optim.AdamW(denoiser.parameters(), lr=settings.learning_rate)
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda s: learning_rate_scale(s, settings.steps, settings.warm_up)
        )
        bar = tqdm(range(settings.steps), desc="diffusion", mininterval=1.0)
        for step in bar:
            x = images[torch.randint(len(images), (settings.batch,))]
            t = torch.randint(NUM_TRAIN_STEPS, (settings.batch,))
            noise = torch.randn_like(x)
            level = levels[t].reshape(-1, 1, 1, 1)
            guess = denoiser(level.sqrt() * x + (1 - level).sqrt() * noise, t)
            loss = functional.mse_loss(guess, noise)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(denoiser.parameters(), settings.clip)
            optimizer.step()
            scheduler.step()
            update_average(average, denoiser, min(settings.average, (1 + step) / (2 + step)))
            if step % 100 == 0:
                bar.set_postfix(loss=f"{loss.item():.3f}")
    return average.eval()


@torch.no_grad()
def update_average(average: nn.Module, current: nn.Module, decay: float) -> None:
    """
    One step of the exponential moving average of weights.

    :param average: updated in place.
    :param current: the weights of this step.
    :param decay: weight of the old average.
    """
    torch._foreach_lerp_(list(average.parameters()), list(current.parameters()), 1 - decay)


def train_classifier(
    digits: Digits, channels: tuple[int, int], settings: ClassifierSettings
) -> Classifier:
    """
    Trains a classifier with pixel noise, which keeps it calm off the real images.

    :param digits: labelled images.
    :param channels: widths of the convolutions.
    :param settings: see :class:`ClassifierSettings`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        classifier = Classifier(channels).train()
        optimizer = torch.optim.AdamW(
            classifier.parameters(),
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda s: learning_rate_scale(s, settings.steps, 50)
        )
        for _ in tqdm(range(settings.steps), desc="classifier", mininterval=1.0):
            index = torch.randint(len(digits), (settings.batch,))
            x = digits.images[index]
            x = (x + settings.pixel_noise * torch.randn_like(x)).clamp(-1.0, 1.0)
            loss = functional.nll_loss(classifier(x), digits.labels[index])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            scheduler.step()
    return classifier.eval().requires_grad_(False)


@torch.no_grad()
def fit_temperature(classifier: Classifier, digits: Digits) -> None:
    """
    Sets the temperature that minimises the log loss, by a grid of 400 values.

    One number is fitted, and it cannot change which digit is most probable.

    :param classifier: updated in place.
    :param digits: labelled images that the classifier was not trained on.
    """
    classifier.temperature.fill_(1.0)
    log_probs = classifier(digits.images)
    grid = torch.logspace(-1, 1, 400)
    losses = torch.stack(
        [functional.nll_loss((log_probs / t).log_softmax(-1), digits.labels) for t in grid]
    )
    classifier.temperature.copy_(grid[losses.argmin()])


def main(arguments: list[str] | None = None) -> None:
    """
    Trains and saves all three models.

    :param arguments: command line, by default that of the process.
    """
    parser = argparse.ArgumentParser(description="Train the digit models from their seeds.")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="folder of the weights")
    parser.add_argument("--steps", type=int, default=DiffusionSettings.steps)
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)

    digits, split = load_digits(), split_indices()
    train, confirm, held_out = digits[split.train], digits[split.confirm], digits[split.held_out]
    counts = {"train": len(train), "confirm": len(confirm), "held_out": len(held_out)}
    common = {"split_seed": SPLIT_SEED, "counts": counts, "torch": torch.__version__}
    print("real images:", counts)

    for number, (name, part) in enumerate({"a": train, "b": confirm}.items()):
        setting = ClassifierSettings(seed=1 + number)
        classifier = train_classifier(part, CHANNELS[name], setting)
        fit_temperature(classifier, held_out)
        facts = {
            "held_out": score(classifier, held_out),
            "temperature": classifier.temperature.item(),
            "trained_on": len(part),
            "parameters": count_parameters(classifier),
            "settings": asdict(setting),
        }
        save_weights(options.out / f"classifier_{name}.safetensors", classifier, facts | common)
        print(f"classifier {name}:", facts)

    settings = DiffusionSettings(steps=options.steps)
    denoiser = train_diffusion(train.images, settings)
    levels = make_scheduler().alphas_cumprod
    facts = {
        "loss_train": diffusion_loss(denoiser, train.images, levels),
        "loss_held_out": diffusion_loss(denoiser, held_out.images, levels),
        "trained_on": len(train),
        "parameters": count_parameters(denoiser),
        "settings": asdict(settings),
        "threads": torch.get_num_threads(),
    }
    save_weights(options.out / "unet.safetensors", denoiser.unet, facts | common)
    print("diffusion:", facts)


if __name__ == "__main__":
    main()
