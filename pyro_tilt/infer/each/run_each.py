# SPDX-License-Identifier: Apache-2.0
"""Several samplers at once, each a run of its own, with their network calls made together."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from tqdm import tqdm

from pyro_tilt.infer.each.conductor import Conductor
from pyro_tilt.infer.each.errors import RunsFailed
from pyro_tilt.infer.each.turns import Turns
from pyro_tilt.infer.each.world import World
from pyro_tilt.infer.errors import SamplerWarning
from pyro_tilt.infer.sampler import DEFAULT_MAX_BATCH, Sampler, check_count
from pyro_tilt.infer.weighted_samples import WeightedSamples

__all__ = ["run_each"]


def run_each(
    samplers: Iterable[Sampler],
    *,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    max_batch: int = DEFAULT_MAX_BATCH,
    max_live: int | None = None,
    progress: bool | None = None,
) -> list[WeightedSamples]:
    """
    Runs samplers side by side, as for several prompts, and makes their network calls together.

    Each run is that of its sampler alone: its draws, weights, ancestors, evidence, certificate and
    random states are its own, and it meets the others in network calls alone. Those of one
    :class:`~pyro_tilt.language.NeuralLM` network, or of several around one module, are joined
    where their rows can lie in one batch. A recurrent module reads prompts of one length together
    and everything after them. A transformers model with a cache of keys and values reads prompts
    and caches of unequal length together too: they are padded to the longest, with a mask and the
    positions that each has alone, where its ``forward`` takes ``attention_mask`` and
    ``position_ids``, and where padding takes no more memory than contents or next to none. The
    first padded call is compared with a single one; a model that does not pass joins what agrees in
    length, as does one that is read anew at every step, and as do prompts beyond a sliding window.
    Where lengths agree nothing is padded. The runs go in lock step: all wait until each has asked
    for a call or ended. Sums in a larger batch are rounded otherwise, so that log probabilities
    differ in their last digits from those of the run alone, and with them, at odds of that order, a
    token.

    Each run has a thread, of which one works at a time, with the handlers, parameters, settings and
    random states that it would have alone; so nothing is gained on the runs' own work. Calls that
    record gradients, that a hook registered within a run changes (as for
    :class:`~pyro_tilt.infer.AISP`), or whose network draws random numbers are made by each run for
    itself. A program must not hold a lock while it calls a network.

    ``cost`` of a result has the rows of its own run. Its ``seconds`` are the time that the run
    worked, its preparation included, and its rows' part of the joined calls, so that they add up to
    the time of all.

    :param samplers: one for each run, no two the same object. Those without a seed get one each
        from the global random state of torch, which nothing else advances.
    :param args: of all programs.
    :param kwargs: of all programs.
    :param max_batch: the most rows of a joined call; bounds memory.
    :param max_live: the most runs that have begun and not ended, whose caches lie in memory; None
        for all.
    :param progress: show a bar over the runs, whose own bars are off; None shows one after three
        seconds.
    :returns: the result of each, in order.
    :raises RunsFailed: where runs fail, after the others have finished; it holds their results.
    :raises ValueError: for a sampler that occurs twice.

    >>> from pyro_tilt.infer import SMC
    >>> from pyro_tilt.language import TabularLM
    >>> lm = TabularLM.random(3, 4, seed=0)
    >>> def reward(y):
    ...     return (y == 2).double().sum(-1)
    >>> results = run_each(
    ...     SMC(lm.program(prompt), reward=reward, num_particles=50, seed=i)
    ...     for i, prompt in enumerate([[0], [2, 1]])
    ... )
    >>> [result.samples["tokens"][0, :2].tolist()[: i + 1] for i, result in enumerate(results)]
    [[0], [2, 1]]
    """
    found = _checked(samplers)
    max_batch = check_count("max_batch", max_batch)
    max_live = check_count("max_live", max(1, len(found)) if max_live is None else max_live)
    if torch.cuda.is_available():
        # Random states of GPUs can be kept only once there are some.
        torch.cuda.init()
    seeds = [int(torch.randint(2**31, ())) if each.seed is None else None for each in found]
    base = World.current()
    conductor = Conductor(base, max_batch=max_batch, max_live=max_live)
    for sampler, seed in zip(found, seeds):
        body = partial(sampler.run, *args, **(kwargs or {}))
        conductor.add(body, base.fork(seed))
    shown = [each.progress for each in found]
    try:
        for each in found:
            each.progress = False
        _conduct(conductor, len(found), progress)
    finally:
        for each, before in zip(found, shown):
            each.progress = before
    base.adopt([run.world for run in conductor.runs])
    return _results(conductor)


def _checked(samplers: Iterable[Sampler]) -> list[Sampler]:
    found = list(samplers)
    for place, each in enumerate(found):
        if not isinstance(each, Sampler):
            raise TypeError(f"samplers[{place}] must be a Sampler, got {type(each).__name__}")
        if any(each is other for other in found[:place]):
            raise ValueError(
                f"samplers[{place}] occurs before; a sampler keeps what it is doing, so give each "
                "run its own"
            )
    return found


def _conduct(conductor: Conductor, total: int, progress: bool | None) -> None:
    options: dict[str, Any] = {"disable": progress is False, "delay": 0 if progress else 3}
    with tqdm(total=total, desc="run_each", unit=" runs", **options) as bar:

        def note(run: Turns) -> None:
            bar.update()

        conductor.conduct(note)


def _results(conductor: Conductor) -> list[WeightedSamples]:
    for reason in conductor.refused.values():
        warnings.warn(
            f"calls of several runs could not be joined and were made one by one; {reason}",
            SamplerWarning,
            stacklevel=3,
        )
    errors = {i: run.error for i, run in enumerate(conductor.runs) if run.error is not None}
    results = [run.result for run in conductor.runs]
    for run, result in zip(conductor.runs, results):
        if result is not None:
            result.cost = replace(result.cost, seconds=run.seconds)
    if errors:
        failed = {i: error for i, error in errors.items() if isinstance(error, Exception)}
        raise RunsFailed(results, failed) from next(iter(failed.values()))
    return results
