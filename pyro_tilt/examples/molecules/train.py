# SPDX-License-Identifier: Apache-2.0
"""
Trains the molecule models from their seeds: ``python -m pyro_tilt.examples.molecules.train``.

Some twenty minutes on two cores for all three. On the same machine with the same number of threads
the weights are the same again; elsewhere they differ by rounding, which training amplifies.
"""

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from pyro_tilt.examples.extras import require
from pyro_tilt.examples.molecules.data import SPLIT_SEED, split_molecules
from pyro_tilt.examples.molecules.model import (
    VOCABULARY,
    WEIGHTS,
    log_probs,
    make_draft,
    make_gpt2,
    make_gru,
)


@dataclass(frozen=True)
class Settings:
    """How a model is trained."""

    make: Callable[[], nn.Module]
    seed: int = 0
    steps: int = 1000
    batch: int = 128
    learning_rate: float = 3e-3
    warm_up: int = 100
    weight_decay: float = 1e-2
    clip: float = 1.0


MODELS = {
    "gru": Settings(make_gru, steps=2500),
    "draft": Settings(make_draft, seed=1, steps=1600, learning_rate=5e-3),
    "gpt2": Settings(make_gpt2, seed=2, learning_rate=2e-3),
}


def learning_rate_scale(step: int, settings: Settings) -> float:
    """
    Linear warm-up followed by a half cosine to zero.

    :param step: the current step, from 0.
    :param settings: see :class:`Settings`.
    """
    if step < settings.warm_up:
        return (step + 1) / settings.warm_up
    share = (step - settings.warm_up) / (settings.steps - settings.warm_up)
    return 0.5 * (1.0 + math.cos(math.pi * share))


def loss(module: nn.Module, tokens: Tensor) -> Tensor:
    """
    Mean negative log probability per character, the first stop counted and the padding not.

    :param module: the language model.
    :param tokens: shape ``(batch, length)``, padded with stops.
    """
    stopped = (tokens == VOCABULARY.stop).long().cumsum(-1)
    counted = stopped <= 1
    values = log_probs(module, tokens)
    return -values.masked_fill(~counted, 0.0).sum() / counted.sum()


def train(tokens: Tensor, settings: Settings, *, name: str) -> nn.Module:
    """
    Trains one model.

    :param tokens: shape ``(molecules, length)``, padded with stops.
    :param settings: see :class:`Settings`.
    :param name: shown by the progress bar.
    """
    lengths = (tokens != VOCABULARY.stop).sum(-1) + 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        module = settings.make().train()
        optimizer = torch.optim.AdamW(
            module.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate_scale(step, settings)
        )
        bar = tqdm(range(settings.steps), desc=name, mininterval=1.0)
        for step in bar:
            chosen = torch.randint(len(tokens), (settings.batch,))
            value = loss(module, tokens[chosen, : int(lengths[chosen].max())])
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            nn.utils.clip_grad_norm_(module.parameters(), settings.clip)
            optimizer.step()
            scheduler.step()
            if step % 50 == 0:
                bar.set_postfix(nats=f"{value.item():.3f}")
    return module.eval().requires_grad_(False)


@torch.no_grad()
def held_out_loss(module: nn.Module, tokens: Tensor) -> float:
    """
    Nats per character on molecules that were not trained on.

    :param module: the language model.
    :param tokens: shape ``(molecules, length)``.
    """
    counts = (tokens != VOCABULARY.stop).sum(-1) + 1
    total = sum(
        loss(module, part).item() * int(count.sum())
        for part, count in zip(tokens.split(256), counts.split(256))
    )
    return total / int(counts.sum())


def main(arguments: list[str] | None = None) -> None:
    """
    Trains and saves the models.

    :param arguments: command line, by default that of the process.
    """
    parser = argparse.ArgumentParser(description="Train the molecule models from their seeds.")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="folder of the weights")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)

    split = split_molecules()
    tokens, held_out = VOCABULARY.encode(split.train), VOCABULARY.encode(split.held_out)
    print(f"real molecules: {len(tokens)} to train, {len(held_out)} held out")
    for name in options.models:
        settings = MODELS[name]
        module = train(tokens, settings, name=name)
        facts = {
            "held_out_nats": held_out_loss(module, held_out),
            "parameters": sum(p.numel() for p in module.parameters()),
            "settings": {k: v for k, v in asdict(settings).items() if k != "make"},
            "split_seed": SPLIT_SEED,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }
        state = {k: v.contiguous() for k, v in module.state_dict().items() if k != "lm_head.weight"}
        header = {"facts": json.dumps(facts, sort_keys=True)}
        save = require("safetensors.torch", extra="language").save_file
        save(state, str(options.out / f"{name}.safetensors"), metadata=header)
        print(f"{name}:", facts)


if __name__ == "__main__":
    main()
