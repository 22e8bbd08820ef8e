# SPDX-License-Identifier: Apache-2.0
"""Language models as programs: speed of writing, several prompts, and constrained writing.

Generation runs on the shipped GPT-2 (transformers) with its cache, 64 sequences of 64 tokens at
a time, without a stop token, so that both sides run the same rows. Several prompts are runs of SMC
on the shipped networks, made one after another or with their calls joined; the prompts are of one
length, or of unequal length and padded. The constrained task is text of the same model without one
of its characters, whose evidence is known where the forbidden character is looked for by
enumeration of short sequences.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch

from benchmarks.harness import Row, paired_ratio
from pyro_tilt.examples.molecules.model import VOCABULARY, WEIGHTS, load_network, make_gpt2
from pyro_tilt.infer import SMC, ProgramProposal, WeightedSamples, run_each
from pyro_tilt.language import NeuralLM
from pyro_tilt.rewards import Constraint

TITLE = "Language models: tokens per second, and constrained writing"
BATCH, TOKENS, ROUNDS = 64, 64, 7
FIRST, EACH = "CNOcSFBn", (4, 32)
UNEQUAL = ["C", "CC(=O)N", "CCO", "c1ccccc1", "N", "OCC", "CN", "O=C(O)c1c"]
SHORT, PARTICLES, SEEDS = 3, 200, 20
FORBIDDEN = "C"


def network() -> torch.nn.Module:
    """The shipped GPT-2, or where it is missing an untrained one: the speed is the same."""
    if (WEIGHTS / "gpt2.safetensors").exists():
        return load_network("gpt2")
    torch.manual_seed(0)
    return make_gpt2().eval().requires_grad_(False)


def language_model(net: torch.nn.Module, max_tokens: int) -> NeuralLM:
    return NeuralLM(net, max_tokens=max_tokens, begin_token=VOCABULARY.begin)


def run() -> list[Row]:
    net = network()
    rows = [
        several(name, load_network(name), each, FIRST) for name in ("gpt2", "gru") for each in EACH
    ]
    rows += [several("gpt2", load_network("gpt2"), each, UNEQUAL) for each in EACH]
    return [*speed(net), *rows, *constrained(net)]


def speed(net: torch.nn.Module) -> list[Row]:
    """Tokens per second of CPU time against ``generate`` of transformers."""
    lm = language_model(net, TOKENS)
    begin = torch.full((BATCH, 1), VOCABULARY.begin)
    options = {"do_sample": True, "top_k": 0, "max_new_tokens": TOKENS, "eos_token_id": None}

    def theirs():
        mask = torch.ones_like(begin)
        return net.generate(begin, attention_mask=mask, pad_token_id=1, **options)

    proposal = ProgramProposal(lm.program())
    assert theirs().shape == (BATCH, TOKENS + 1)
    rows = []
    # A program keeps the state before a step, so that samplers can go back to it.
    for name, ours, bound in (
        ("NeuralLM.generate", lambda: lm.generate(BATCH), 1.0),
        ("its Pyro program, as samplers run it", lambda: proposal.draw(BATCH), None),
    ):
        ratio, mine, other = paired_ratio(ours, theirs, rounds=2 * ROUNDS, blocks=(2, 2))
        count = BATCH * TOKENS
        measured = (
            f"{count / mine:,.0f} tokens/s against {count / other:,.0f} of transformers' generate "
            f"(time ratio {ratio:.2f})"
        )
        target = "-" if bound is None else f"ratio at most {bound:.2f}"
        met = bound is None or ratio <= bound
        rows.append(Row(f"{name}, batch {BATCH}", measured, target, met))
    return rows


def several(name: str, net: torch.nn.Module, each: int, texts: Sequence[str]) -> Row:
    """
    SMC after several prompts with joined calls, by CPU time of one run after another.

    On one core a call of 32 rows leaves little to gain by joining it to others.
    """
    # The longest prompt and what is written after it fill the context.
    lm = language_model(net, TOKENS + 1 - max(map(len, texts)))
    calls: list[int] = []
    net.register_forward_hook(lambda module, args, output: calls.append(1))
    prompts = [VOCABULARY.encode([text])[0, : len(text)].tolist() for text in texts]

    def reward(y: torch.Tensor) -> torch.Tensor:
        return (y == prompts[0][0]).double().mean(-1)

    def samplers() -> list[SMC]:
        fixed = {"reward": reward, "beta": 5.0, "num_particles": each}
        options = {**fixed, "check_lineage": False, "progress": False}
        return [SMC(lm.program(p), seed=i, **options) for i, p in enumerate(prompts)]

    def together() -> list[WeightedSamples]:
        return run_each(samplers(), progress=False)

    def alone() -> list[WeightedSamples]:
        return [sampler.run() for sampler in samplers()]

    # The first time, one padded call of either kind is compared with a single one.
    together()
    counts = []
    results = []
    for way in (together, alone):
        calls.clear()
        results.append(way())
        counts.append(len(calls))
    same = all(
        torch.equal(ours.samples["tokens"], theirs.samples["tokens"])
        for ours, theirs in zip(*results)
    )
    ratio, ours, theirs = paired_ratio(together, alone, rounds=ROUNDS, blocks=(1, 1))
    measured = (
        f"{ours:.2f} s against {theirs:.2f} s one after another (time ratio {ratio:.2f}), "
        f"{counts[0]} calls of the network against {counts[1]}, tokens "
        f"{'the same' if same else 'NOT the same'}"
    )
    lengths = "" if len(set(map(len, texts))) == 1 else ", unequal lengths"
    return Row(
        f"run_each, {len(prompts)} prompts of {each} particles{lengths}, {name}",
        measured,
        f"one call for {len(prompts)}, the same tokens",
        same and counts[0] * len(prompts) <= counts[1],
    )


def constrained(net: torch.nn.Module) -> list[Row]:
    """SMC on text without a character, beside the exact evidence."""
    lm = language_model(net, SHORT)
    forbidden = VOCABULARY.encode([FORBIDDEN])[0, 0]
    grid = torch.tensor(list(itertools.product(range(lm.vocabulary_size), repeat=SHORT)))
    log_prob = lm.log_prob(grid).double()
    exact = log_prob[(grid != forbidden).all(-1)].logsumexp(0)
    reward = Constraint(lambda y: (y != forbidden).all(-1), event_dim=1)

    def log_psi(carry, t):
        alive = (carry.tokens != forbidden).all(-1)
        return torch.where(alive, 0.0, -torch.inf).double()

    def evidence(seed):
        options = {"num_particles": PARTICLES, "seed": seed, "check_lineage": False}
        return SMC(lm.program(), reward=reward, twist=log_psi, **options).run()

    runs = [evidence(seed) for seed in range(SEEDS)]
    error = torch.stack([each.log_normalizer for each in runs]) - exact
    seconds = sum(each.cost.seconds for each in runs) / SEEDS
    rmse = float(error.square().mean().sqrt())
    name = f"SMC, no {FORBIDDEN!r} in {SHORT} tokens, {PARTICLES} particles, {SEEDS} seeds"
    measured = f"log evidence {exact:.4f} exact, RMSE {rmse:.4f}; {seconds * 1e3:.0f} ms a run"
    return [Row(name, measured, "RMSE at most 0.2", rmse <= 0.2)]
