# SPDX-License-Identifier: Apache-2.0
"""genlm-control and llamppl on the constrained tasks: ``... constrained_peers FOLDER SEEDS``.

``FOLDER`` holds the model and its tokenizer as transformers saves them. Prints one line of JSON.
Each library is used as its documentation has it, with batches as large as the population and no
waiting for more, and with the caches of its model emptied before every run.
"""

from __future__ import annotations

import asyncio
import json
import math
import sys
import time
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from genlm.control import AWRS, Potential, PromptedLLM, direct_token_sampler
from llamppl import CachedCausalLM, LMContext, Model, smc_standard

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

Run = Callable[[], Awaitable[float]]


class Accepts(Potential):
    """The automaton of a task as a boolean potential of genlm-control."""

    def __init__(self, task: Task, vocabulary: list[Any]) -> None:
        super().__init__(vocabulary)
        self.task = task
        place = {token.token_id: i for i, token in enumerate(vocabulary)}
        self.places = [np.array([place[v] for v in row if v != STOP], int) for row in task.allowed]

    def _state(self, context: list[Any]) -> int:
        return self.task.state([token.token_id for token in context])

    def _log_end(self, state: int, count: int) -> float:
        cut = count == self.task.length
        return 0.0 if state >= 0 and (cut or self.task.moves[state][STOP] >= 0) else -math.inf

    async def complete(self, context: list[Any]) -> float:
        return self._log_end(self._state(context), len(context))

    async def prefix(self, context: list[Any]) -> float:
        return 0.0 if self._state(context) >= 0 else -math.inf

    async def sparse_logw_next(self, context: list[Any]) -> Any:
        state = self._state(context)
        return self.places[state], 0.0, self._log_end(state, len(context))


class Writer(Model):
    """A particle of llamppl that masks each token before it is drawn."""

    def __init__(self, lm: CachedCausalLM, task: Task, masks: list[set[int]]) -> None:
        super().__init__()
        self.context = LMContext(lm, MARKS[BEGIN])
        self.task, self.masks = task, masks
        self.state = self.count = 0

    def immutable_properties(self) -> set[str]:
        return {"task", "masks"}

    async def step(self) -> None:
        await self.observe(self.context.mask_dist(self.masks[self.state]), True)
        token = int(await self.sample(self.context.next_token()))
        self.state = self.task.moves[self.state][token]
        self.count += 1
        if self.count == self.task.length or token == STOP:
            self.finish()


def genlm_run(llm: PromptedLLM, task: Task, num_particles: int, method: str) -> Run:
    """SMC of genlm-control: by adaptive weighted rejection, or from the masked law itself."""
    condition = Accepts(task, llm.vocab)
    sampler = (
        AWRS(llm, condition, seed=0) if method == "AWRS" else direct_token_sampler(llm * condition)
    )
    length = task.length

    async def run() -> float:
        found = await sampler.smc(
            n_particles=num_particles,
            ess_threshold=THRESHOLD,
            resampling_method=RESAMPLING,
            max_tokens=length + 1,
            terminate_when=lambda context: len(context) == length,
        )
        return float(found.log_ml)

    return run


def llamppl_run(lm: CachedCausalLM, task: Task, num_particles: int) -> Run:
    masks = [set(row) for row in task.allowed]

    async def run() -> float:
        writer = Writer(lm, task, masks)
        particles = await smc_standard(
            writer, num_particles, THRESHOLD, resampling_method=RESAMPLING
        )
        weights = torch.tensor([float(each.weight) for each in particles], dtype=torch.float64)
        return float(weights.logsumexp(0) - math.log(num_particles))

    return run


def contenders(folder: str, num_particles: int) -> dict[str, dict[str, tuple[Run, Any]]]:
    """By task and name a run and the model whose caches it fills."""
    backend = {"batch_size": num_particles, "timeout": 0.0}
    llm = PromptedLLM.from_name(folder, backend="hf", prompt_ids=[BEGIN], **backend)
    lm = CachedCausalLM.from_pretrained(folder, backend="hf", **backend)
    assert lm.tokenizer.encode(MARKS[BEGIN]) == [BEGIN]
    found = {}
    for task in tasks("".join(lm.str_vocab[len(MARKS) :])):
        runs = {
            f"genlm-control, {name}": (genlm_run(llm, task, num_particles, name), llm.model)
            for name in ("AWRS", "masked law")
        }
        found[task.name] = runs | {
            "llamppl, masked tokens": (llamppl_run(lm, task, num_particles), lm.model)
        }
    return found


async def clock(run: Run, model: Any, seed: int) -> tuple[float, float, float]:
    """Wall time, CPU time and estimate of one run that finds empty caches."""
    model.clear_cache()
    torch.manual_seed(seed)
    np.random.seed(seed)
    started, used = time.perf_counter(), time.process_time()
    estimate = await run()
    return time.perf_counter() - started, time.process_time() - used, estimate


async def measure(folder: str, seeds: int) -> list[dict[str, Any]]:
    """All contenders in turn, seed after seed, after a run of each that is not counted."""
    rows = []
    for num_particles in PARTICLES:
        for task, runs in contenders(folder, num_particles).items():
            for run, model in runs.values():
                await clock(run, model, seeds)
            found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in runs}
            for seed in range(seeds):
                for name, (run, model) in runs.items():
                    found[name].append(await clock(run, model, seed))
            for name, each in found.items():
                wall, cpu, estimate = zip(*each)
                about = {"task": task, "particles": num_particles, "name": name}
                about["version"] = version(name.split(",")[0])
                rows.append(about | {"wall": wall, "cpu": cpu, "estimate": estimate})
    return rows


def main() -> None:
    torch.set_num_threads(1)
    rows = asyncio.run(measure(sys.argv[1], int(sys.argv[2])))
    print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main()
