# SPDX-License-Identifier: Apache-2.0
"""Constrained writing by SMC, beside genlm-control and llamppl, on one GPT-2.

All three start from the same begin token of the shipped network and write under the same
automaton, with as many particles, the same resampling and one thread. The exact evidence sums the
probability of every accepted sequence. The peers live in an environment of their own, made by
``make bench-peers`` or named by ``PYRO_TILT_PEERS``; ours runs one half before and one half after
them, so that a machine that grows busy slows both. A run of each is left out at first.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor

from benchmarks.bench_language import network
from benchmarks.harness import Row
from benchmarks.peers.constrained_task import (
    BEGIN,
    MARKS,
    PARTICLES,
    RESAMPLING,
    STOP,
    THRESHOLD,
    Task,
    tasks,
)
from pyro_tilt.examples.molecules.model import CHARACTERS
from pyro_tilt.infer import SMC
from pyro_tilt.infer.errors import ZeroWeights
from pyro_tilt.language import NeuralLM
from pyro_tilt.rewards import Constraint

TITLE = "Constrained writing beside genlm-control and llamppl"
SEEDS = int(os.environ.get("PYRO_TILT_BENCH_SEEDS", "40"))
ROOT = Path(__file__).parent.parent
MASKED, PLAIN = "pyro_tilt SMC, masked proposal", "pyro_tilt SMC, proposing from the program"
PEERS = ("genlm-control", "llamppl")
ABSENT = "not installed: make bench-peers"
Runs = dict[tuple[str, int, str], "Score"]


@dataclass(frozen=True)
class Score:
    """Wall time, CPU time and estimated log evidence of every seed."""

    wall: np.ndarray
    cpu: np.ndarray
    estimate: np.ndarray

    def and_then(self, other: Score) -> Score:
        pairs = zip(vars(self).values(), vars(other).values())
        return Score(*(np.concatenate(pair) for pair in pairs))

    def relative(self, exact: float) -> tuple[float, float]:
        """Mean of estimated over exact evidence, which should be 1, and its standard error."""
        ratio = np.exp(self.estimate - exact)
        return float(ratio.mean()), float(ratio.std(ddof=1) / math.sqrt(len(ratio)))


class Automaton:
    """A task for all particles at once."""

    def __init__(self, task: Task) -> None:
        self.moves = torch.tensor(task.moves)
        self.bars = torch.where(self.moves >= 0, 0.0, -torch.inf)

    def states(self, tokens: Tensor) -> Tensor:
        """Where it is after tokens ``(n, t)``; -1 for rejected ones."""
        state = torch.zeros_like(tokens[:, 0])
        for token in tokens.unbind(-1):
            # State -1 looks up a row that is not used.
            state = torch.where(state < 0, state, self.moves[state, token])
        return state

    def accepts(self, tokens: Tensor) -> Tensor:
        """Whether no token is rejected."""
        return self.states(tokens) >= 0

    def log_accepts(self, carry, t) -> Tensor:
        """The twist of a particle: whether it has a way on."""
        return torch.where(self.accepts(carry.tokens), 0.0, -torch.inf)

    def masked(self, name, law, carry, t):
        """The law of the next token among those that are not rejected."""
        if carry is None:
            return None
        state = 0 if carry.tokens is None else self.states(carry.tokens)
        return dist.Categorical(logits=law.logits + self.bars[state])


def language_model(net: torch.nn.Module, task: Task) -> NeuralLM:
    stop = STOP if task.stops else None
    return NeuralLM(net, max_tokens=task.length, begin_token=BEGIN, stop_token=stop)


def exact_evidence(lm: NeuralLM, task: Task) -> float:
    """Log probability that the model writes an accepted sequence, by enumeration."""
    starts, states = zip(*task.beginnings())
    tokens, bars = torch.tensor(starts), Automaton(task).bars
    mass = (lm.next_log_probs(tokens).double() + bars[list(states)]).logsumexp(-1)
    return float((lm.log_prob(tokens).double() + mass).logsumexp(0))


def samplers(lm: NeuralLM, task: Task, num_particles: int) -> dict[str, Callable[[int], float]]:
    """Our two ways, as functions of a seed to an estimate of the log evidence."""
    automaton, program = Automaton(task), lm.program()
    reward = Constraint(automaton.accepts, event_dim=1)

    def sampler(**steering) -> Callable[[int], float]:
        def run(seed: int) -> float:
            smc = SMC(
                program,
                reward=reward,
                num_particles=num_particles,
                seed=seed,
                resampling=RESAMPLING,
                ess_threshold=THRESHOLD,
                check_lineage=False,
                max_plate_nesting=0,
                **steering,
            )
            try:
                return float(smc.run().log_normalizer)
            except ZeroWeights:
                # Estimates are unbiased with those that are zero.
                return -math.inf

        return run

    return {MASKED: sampler(proposal=automaton.masked), PLAIN: sampler(twist=automaton.log_accepts)}


def clock(run: Callable[[int], float], seeds: range) -> Score:
    """Runs seed after seed, after one that is not counted."""
    run(seeds.stop)
    found = []
    for seed in seeds:
        started, used = time.perf_counter(), time.process_time()
        estimate = run(seed)
        found.append((time.perf_counter() - started, time.process_time() - used, estimate))
    return Score(*(np.array(each) for each in zip(*found)))


def ours(net: torch.nn.Module, seeds: range) -> Runs:
    return {
        (task.name, count, name): clock(run, seeds)
        for count in PARTICLES
        for task in tasks(CHARACTERS)
        for name, run in samplers(language_model(net, task), task, count).items()
    }


def peers_python() -> Path | None:
    """The interpreter of the environment of the peers, where there is one."""
    folder = Path(os.environ.get("PYRO_TILT_PEERS", ROOT / ".venv-peers"))
    python = folder / "bin" / "python"
    return python if python.exists() else None


def save(net: torch.nn.Module, folder: str) -> None:
    """Saves the network and a tokenizer of its characters as transformers reads them."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate((*MARKS, *CHARACTERS))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    # Says that characters stand for themselves; genlm asks for it.
    tokenizer.decoder = decoders.ByteFallback()
    begin, stop = MARKS
    marks = {"bos_token": begin, "eos_token": stop, "pad_token": stop}
    net.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **marks).save_pretrained(folder)


def peers(net: torch.nn.Module) -> Runs | str:
    """What the peers take and estimate; in place of it, why there is nothing."""
    python = peers_python()
    if python is None:
        return ABSENT
    quiet = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as folder:
        save(net, folder)
        module = "benchmarks.peers.constrained_peers"
        command = [str(python), "-m", module, folder, str(SEEDS)]
        options = {"cwd": ROOT, "env": os.environ | quiet, "capture_output": True, "text": True}
        done = subprocess.run(command, **options)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        missing = last[0].startswith(("ModuleNotFoundError", "ImportError"))
        return ABSENT if missing else f"failed: {last[0][:80]}"
    found = json.loads(done.stdout.splitlines()[-1])
    return {
        (row["task"], row["particles"], f"{row['name']} ({row['version']})"): Score(
            *(np.array(row[key]) for key in ("wall", "cpu", "estimate"))
        )
        for row in found["rows"]
    }


def run() -> list[Row]:
    net, half = network(), SEEDS // 2
    mine = ours(net, range(half))
    found = peers(net)
    again = ours(net, range(half, SEEDS))
    mine = {key: score.and_then(again[key]) for key, score in mine.items()}
    theirs = {} if isinstance(found, str) else found
    rows = []
    for task in tasks(CHARACTERS):
        exact = exact_evidence(language_model(net, task), task)
        for count in PARTICLES:
            for (of, particles, name), score in (mine | theirs).items():
                if (of, particles) == (task.name, count):
                    rows.append(evidence_row(task, count, name, score, exact))
            if theirs:
                rows.append(time_row(task, count, mine, theirs))
    if isinstance(found, str):
        rows += [Row(f"{name} on the same tasks", found, "measured", False) for name in PEERS]
    return rows


def evidence_row(task: Task, count: int, name: str, score: Score, exact: float) -> Row:
    """Time and errors of one library; ours must agree with the exact evidence."""
    error = score.estimate[np.isfinite(score.estimate)] - exact
    mean, deviation = score.relative(exact)
    lost = int(np.isinf(score.estimate).sum())
    bias = f"{error.mean():+.3f} ± {error.std(ddof=1) / math.sqrt(len(error)):.3f}"
    measured = (
        f"{np.median(score.wall) * 1e3:.0f} ms wall, {np.median(score.cpu) * 1e3:.0f} ms CPU; "
        f"log evidence {exact:.4f} exact, bias {bias}, SD {error.std(ddof=1):.3f}"
        + (f" without {lost} runs of no weight" if lost else "")
        + f"; evidence / exact {mean:.3f} ± {deviation:.3f}"
    )
    title = f"{name}: {task.name}, {count} particles, {len(score.wall)} seeds"
    if name not in (MASKED, PLAIN):
        return Row(title, measured, "-", True)
    target = "evidence within 3 standard errors of the exact one"
    return Row(title, measured, target, abs(mean - 1.0) <= 3.0 * deviation)


def time_row(task: Task, count: int, mine: Runs, theirs: Runs) -> Row:
    """Wall time of our masked proposal over that of the fastest peer, with its interval."""
    our = mine[task.name, count, MASKED]
    others = {name: each for (of, n, name), each in theirs.items() if (of, n) == (task.name, count)}
    best = min(others, key=lambda name: float(np.median(others[name].wall)))
    peer = others[best]
    generator = np.random.default_rng(0)

    def medians(wall: np.ndarray) -> np.ndarray:
        return np.median(wall[generator.integers(len(wall), size=(4000, len(wall)))], axis=1)

    ratio = np.median(our.wall) / np.median(peer.wall)
    low, high = np.quantile(medians(our.wall) / medians(peer.wall), [0.025, 0.975])
    cpu = np.median(our.cpu) / np.median(peer.cpu)
    measured = (
        f"{ratio:.2f} [{low:.2f}, {high:.2f}], of CPU time {cpu:.2f} (the fastest peer: {best})"
    )
    title = f"wall time, masked proposal / fastest peer: {task.name}, {count} particles"
    return Row(title, measured, "at most 1", ratio <= 1.0)
