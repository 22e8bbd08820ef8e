# SPDX-License-Identifier: Apache-2.0
"""Samplers on language models, and what two results have in common."""

import random
import threading

import numpy as np
import pytest
import torch
from neural_models import BEGIN, STOP, TwoBack
from pyro.poutine.runtime import _DIM_ALLOCATOR, _PYRO_STACK

from pyro_tilt import rewards
from pyro_tilt.infer import (
    GSI,
    LCB,
    SMC,
    BestOfN,
    BlockBestOfN,
    ExpBestOfN,
    ImportanceSampler,
    SoftBestOfN,
)
from pyro_tilt.infer.twists import RolloutTwist
from pyro_tilt.language import NeuralLM

PROMPTS = [[0], [2, 0], [0, 2], [2]]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(autouse=True)
def nothing_is_left_behind():
    yield
    assert not [each.name for each in threading.enumerate() if each.name.startswith("pyro_tilt")]
    assert not _PYRO_STACK and not _DIM_ALLOCATOR._stack


def twos():
    return rewards.Bounded(lambda y: (y == 2).double().mean(-1), low=0.0, high=1.0, event_dim=1)


def states():
    kept = np.random.get_state()
    return torch.get_rng_state().tolist(), kept[1].tolist(), kept[2:], random.getstate()


def assert_same(found, alone):
    assert type(found) is type(alone) and found.sampler == alone.sampler
    for part in ("samples", "stats", "steps"):
        ours, theirs = getattr(found, part), getattr(alone, part)
        assert list(ours) == list(theirs)
        for name, value in ours.items():
            exact = not value.is_floating_point()
            tolerance = {"rtol": 0, "atol": 0} if exact else CLOSE
            torch.testing.assert_close(value, theirs[name], equal_nan=True, **tolerance)
    torch.testing.assert_close(found.log_weights, alone.log_weights, **CLOSE)
    evidence = found.log_normalizer, alone.log_normalizer
    torch.testing.assert_close(*evidence, equal_nan=True, **CLOSE)
    assert found.certificate.law == alone.certificate.law
    assert found.certificate.target == alone.certificate.target
    costs = [result.cost.to_dict() | {"seconds": 0.0} for result in (found, alone)]
    assert costs[0] == costs[1]
    # Of all that is told beside the draws, the rows of each model among it.
    assert found.info == pytest.approx(alone.info, rel=1e-5, abs=1e-5, nan_ok=True)


def twisted(lm, prompt, seed):
    def log_psi(carry, t):
        return 0.6 * (carry.tokens == 2).double().sum(-1)

    options = {"num_particles": 40, "seed": seed, "ess_threshold": 1.0}
    return SMC(lm.program(prompt), reward=twos(), beta=4.0, twist=log_psi, **options)


def rolled(lm, prompt, seed):
    twist = RolloutTwist(lm.program(prompt), reward=twos(), beta=4.0, num_draws=2)
    options = {"num_particles": 20, "seed": seed, "ess_threshold": 1.0}
    return SMC(lm.program(prompt), reward=twos(), beta=4.0, twist=twist, **options)


def guided(lm, prompt, seed, **options):
    draft = NeuralLM(TwoBack(5), max_tokens=lm.max_tokens, begin_token=BEGIN, stop_token=STOP)
    options = {"n": 4, "threshold": 0.4, "num_samples": 12, "seed": seed, **options}
    program = draft.program(prompt)
    return GSI(lm.program(prompt), draft=program, reward=twos(), beta=3.0, **options)


def so_far(carry, t):
    return (carry.tokens == 2).double().mean(-1)


def by_blocks(lm, prompt, seed):
    return guided(lm, prompt, seed, block=2, value=so_far)


def chains(lm, prompt, seed):
    options = {"num_samples": 12, "seed": seed, "epsilon": 0.2, "value": so_far}
    return LCB(lm.program(prompt), reward=twos(), beta=2.0, **options)


def best(kind, **more):
    def make(lm, prompt, seed):
        options = {"n": 4, "num_samples": 15, "seed": seed, **more}
        return kind(lm.program(prompt), reward=twos(), **options)

    return make


SAMPLERS = {
    "smc": lambda lm, prompt, seed: SMC(
        lm.program(prompt), reward=twos(), beta=4.0, num_particles=40, num_chains=2, seed=seed
    ),
    "twisted": twisted,
    "rollout": rolled,
    "importance": lambda lm, prompt, seed: ImportanceSampler(
        lm.program(prompt), reward=twos(), beta=4.0, num_samples=60, seed=seed, max_batch=25
    ),
    "best of n": best(BestOfN),
    "soft best of n": best(SoftBestOfN, beta=2.0),
    "exponential best of n": best(ExpBestOfN, beta=2.0),
    "blocks": best(BlockBestOfN, block=2, value=so_far),
    "gsi": guided,
    "gsi by blocks": by_blocks,
    "chains": chains,
}


class Calls:
    """Rows of each call of a module."""

    def __init__(self, module):
        module.register_forward_hook(lambda module, args, kwargs, out: self.note(args, kwargs),
                                     with_kwargs=True)  # fmt: skip
        self.rows = []

    def note(self, args, kwargs):
        self.rows.append(len(args[0] if args else kwargs["input_ids"]))
