# SPDX-License-Identifier: Apache-2.0
"""
Sentences near a reference in meaning: ``python -m pyro_tilt.examples.text``.

The reward is the similarity of sentence vectors (extra ``text``), the language model is small
enough for every law to be known, so that each sampler stands beside what it should have drawn.
"""

from __future__ import annotations

import argparse
import sys

import torch
from torch import Tensor

from pyro_tilt.diagnostics import kl
from pyro_tilt.examples.text.phrases import phrase_model, sentences
from pyro_tilt.examples.text.similarity import SentenceSimilarity
from pyro_tilt.infer import SMC, BestOfN, Sampler, SoftBestOfN, WeightedSamples
from pyro_tilt.language import TabularLM, laws

REFERENCE = "The kitten is having a nap on the carpet."
SHOWN = 3


def samplers(
    lm: TabularLM, reward: SentenceSimilarity, table: Tensor, *, beta: float, n: int, draws: int
) -> dict[str, tuple[Sampler, Tensor]]:
    """
    Samplers by name, each with the exact law of what it draws.

    :param lm: the language model.
    :param reward: of its sentences.
    :param table: the same for every sentence.
    :param beta: of the tilt.
    :param n: candidates of a choice.
    :param draws: of each sampler.
    """
    program, base = lm.program(), lm.law()
    twist = lm.value_function(lm.soft_values(table, beta))
    tilted = SMC(program, reward=reward, beta=beta, twist=twist, num_particles=draws, seed=0)
    best = BestOfN(program, reward=reward, n=n, num_samples=draws, seed=0)
    soft = SoftBestOfN(program, reward=reward, beta=beta, n=n, num_samples=draws, seed=0)
    return {
        f"SMC with exact twists, beta {beta:g}": (tilted, laws.tilt(base, table, beta)),
        f"best of {n}": (best, laws.best_of_n(base, table, n)),
        f"soft best of {n}": (soft, laws.soft_best_of_n(base, table, beta, n)),
    }


def lines(name: str, result: WeightedSamples, law: Tensor, table: Tensor, base: Tensor) -> str:
    """One sampler: what it reached, what its law is, and its likeliest sentences."""
    reached, exact = float(result.expectation(lambda s: result.stats["reward"])), float(law @ table)
    spent = float(kl.exact(law, base))
    tokens = result.samples["tokens"]
    kinds, kind = tokens.unique(dim=0, return_inverse=True)
    weights = torch.zeros(len(kinds), dtype=torch.float64)
    weights.index_add_(0, kind, result.get_normalized_weights())
    top = weights.topk(min(SHOWN, len(kinds)))
    shown = zip(top.values.tolist(), sentences(kinds[top.indices]))
    head = f"{name}: similarity {reached:.3f} (exact {exact:.3f}), {spent:.2f} nats from the model"
    return "\n".join([head, *(f"    {share:6.1%}  {text}" for share, text in shown)])


def main(arguments: list[str] | None = None) -> int:
    """
    Prints the comparison.

    :param arguments: command line, by default that of the process.
    """
    parser = argparse.ArgumentParser(
        prog="python -m pyro_tilt.examples.text",
        description="Sentences near a reference in meaning.",
    )
    parser.add_argument("--reference", default=REFERENCE, help="the sentence to be near to")
    parser.add_argument("--beta", type=float, default=15.0)
    parser.add_argument("-n", type=int, default=16, help="candidates of best-of-n")
    parser.add_argument("--draws", type=int, default=2000)
    options = parser.parse_args(arguments)

    lm = phrase_model()
    try:
        reward = SentenceSimilarity(options.reference, decode=sentences)
    except ImportError as error:
        print(error, file=sys.stderr)
        return 1
    table = reward(lm.enumerate()).double()
    base = lm.law().double()
    print(f"reference: {options.reference}")
    print(f"the model: similarity {float(base @ table):.3f}")
    sizes = {"beta": options.beta, "n": options.n, "draws": options.draws}
    for name, (sampler, law) in samplers(lm, reward, table, **sizes).items():
        print(lines(name, sampler.run(), law.double(), table, base))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
