# SPDX-License-Identifier: Apache-2.0
"""Prompts of unequal length share the calls of a network with keys and values."""

import warnings

import pytest
import torch
from each_cases import (
    SAMPLERS,
    Calls,
    assert_same,
    nothing_is_left_behind,  # noqa: F401
    twos,
)
from neural_models import tiny_gpt2

from pyro_tilt.examples.molecules.model import VOCABULARY, load_network
from pyro_tilt.infer import SMC, BestOfN, CountRows, ImportanceSampler, run_each
from pyro_tilt.language import NeuralLM

pytest.importorskip("transformers", reason="needs pyro-tilt[language]")

UNEQUAL = [[4], [2, 5, 2, 9, 3, 3, 8], [7, 2, 10]]


def model(net=None, **options):
    net = tiny_gpt2() if net is None else net
    return NeuralLM(net, **{"max_tokens": 8, "begin_token": 0, **options})


def smc(lm, prompt, seed):
    """Exchanges particles at every step, so that no cache stays where it was."""

    def log_psi(carry, t):
        return 0.9 * (carry.tokens == 2).double().sum(-1)

    options = {"num_particles": 16, "seed": seed, "ess_threshold": 1.0, "twist": log_psi}
    return SMC(lm.program(prompt), reward=twos(), beta=4.0, check_lineage=False, **options)


def plain(lm, prompt, seed):
    """Two runs of the program: a trial of one particle, then all of them."""
    options = {"num_particles": 16, "seed": seed, "check_lineage": False}
    return SMC(lm.program(prompt), reward=twos(), beta=4.0, **options)


def importance(lm, prompt, seed):
    return ImportanceSampler(
        lm.program(prompt), reward=twos(), beta=4.0, num_samples=30, seed=seed, max_batch=13
    )


def best(lm, prompt, seed):
    return BestOfN(lm.program(prompt), reward=twos(), n=3, num_samples=7, seed=seed)


KINDS = {"smc": smc, "importance": importance, "best of n": best}


@pytest.mark.parametrize("stop", [None, 6, (1, 6)])
@pytest.mark.parametrize("kind", KINDS)
def test_each_run_is_that_of_its_sampler_alone(kind, stop):
    lm = model(stop_token=stop)
    found = run_each([KINDS[kind](lm, p, 3 + i) for i, p in enumerate(UNEQUAL)])
    moved, steps = [], set()
    for i, (prompt, result) in enumerate(zip(UNEQUAL, found)):
        alone = KINDS[kind](lm, prompt, 3 + i).run()
        assert_same(result, alone)
        assert result.samples["tokens"][0, : len(prompt)].tolist() == prompt
        moved.append(kind != "smc" or bool(result.steps["resampled"].any()))
        if stop:
            ended = torch.isin(result.samples["tokens"], torch.tensor(lm.stop_tokens))
            steps |= set((ended.long().argmax(-1)[ended.any(-1)] - len(prompt)).tolist())
    assert all(moved) and (not stop or len(steps) > 1)


def test_every_kind_of_sampler_in_one_group():
    # A draft of another vocabulary, which the speculative ones have, does not go with this model.
    lm = model(stop_token=1)
    kinds = [name for name in SAMPLERS if "gsi" not in name]
    plan = [(kind, UNEQUAL[i % 3]) for i, kind in enumerate(kinds)]

    def samplers():
        return [SAMPLERS[kind](lm, prompt, i) for i, (kind, prompt) in enumerate(plan)]

    for found, sampler in zip(run_each(samplers()), samplers()):
        assert_same(found, sampler.run())


def test_calls_are_those_of_one_run():
    lm = model()
    prompts = [[4], UNEQUAL[1]]
    samplers = [plain(lm, prompt, seed) for seed, prompt in enumerate(prompts)]
    calls = Calls(lm.model)
    run_each(samplers)
    # One for the prompts and one for each later token, in the trial and again. After the first of
    # either kind a call of a single run shows whether the model takes padding.
    assert calls.rows == [2, 1, 2, 1, *[2] * 6, 2, *[32] * 7]
    calls.rows = []
    run_each([plain(lm, prompt, seed) for seed, prompt in enumerate(prompts)])
    assert calls.rows == [*[2] * 8, 2, *[32] * 7]


def test_rows_of_the_check_are_nobodys():
    lm = model()
    # Checks every call, for among the few rows of a trial one more is lost in rounding.
    lm.model.register_forward_hook(lambda *call: lm.network.ragged.checked.clear())
    calls = Calls(lm.model)
    with CountRows() as together:
        run_each([plain(lm, prompt, seed) for seed, prompt in enumerate(UNEQUAL)])
    with CountRows() as alone:
        for seed, prompt in enumerate(UNEQUAL):
            plain(lm, prompt, seed).run()
    assert calls.rows[:4] == [3, 1, 3, 1] and len(calls.rows) == 2 * 16 + 3 * 16
    assert together.rows == alone.rows == 3 * (8 + 1 + 7 * 16)


def test_lengths_that_agree_are_not_padded():
    lm = model()
    seen = []
    lm.model.register_forward_hook(
        lambda module, args, kwargs, out: seen.append(
            (kwargs.get("attention_mask"), kwargs.get("position_ids"))
        ),
        with_kwargs=True,
    )
    run_each([plain(lm, prompt, 0) for prompt in ([4, 5], [6, 7], [9, 9])])
    # The begin token is what this model calls padding, so that the prompt has a mask of ones.
    assert len(seen) == 16 and all(ids is None for _, ids in seen)
    assert all(mask is None or bool(mask.all()) for mask, _ in seen)


def test_bounds_on_rows():
    lm = model()
    alone = [plain(lm, prompt, i).run() for i, prompt in enumerate(UNEQUAL)]
    for most, largest in ((40, 32), (20, 16), (48, 48)):
        calls = Calls(lm.model)
        found = run_each([plain(lm, p, i) for i, p in enumerate(UNEQUAL)], max_batch=most)
        assert max(calls.rows) == largest
        for result, other in zip(found, alone):
            assert_same(result, other)


def test_padding_does_not_outgrow_what_it_pads(monkeypatch):
    monkeypatch.setattr("pyro_tilt.ops.ragged.LITTLE", 0)
    lm = model()
    calls = Calls(lm.model)
    prompts = [UNEQUAL[1], *[[4]] * 6]
    found = run_each([plain(lm, prompt, seed) for seed, prompt in enumerate(prompts)])
    # Six caches of 2 tokens, 3 at the next step and so on, lack 36 to one of 8: more than they all
    # hold up to the third step.
    apart = [96, 16]
    assert calls.rows[-12:] == [6, 1, *apart, *apart, *apart, 112, 112, 112, 112]
    for seed, (prompt, result) in enumerate(zip(prompts, found)):
        assert_same(result, plain(lm, prompt, seed).run())


def test_the_shipped_network():
    lm = NeuralLM(load_network("gpt2"), max_tokens=12, begin_token=VOCABULARY.begin)
    texts = ["C", "c1ccccc1", "CC(=O)N", "N", "CCO", "O=C(O)c1ccccc1O"]
    prompts = [VOCABULARY.encode([text])[0, : len(text)].tolist() for text in texts]
    calls = Calls(lm.model)

    def samplers():
        return [plain(lm, prompt, i) for i, prompt in enumerate(prompts)]

    found, joined = run_each(samplers()), len(calls.rows)
    alone = [sampler.run() for sampler in samplers()]
    assert joined == 24 + 2 and len(calls.rows) - joined == 24 * 6
    for result, other in zip(found, alone):
        assert_same(result, other)


class Deaf(torch.nn.Module):
    """Takes a mask and positions, and reads neither where they come together."""

    def __init__(self, net, fail):
        super().__init__()
        self.net, self.config, self.fail = net, net.config, fail

    def forward(
        self, input_ids, attention_mask=None, position_ids=None, past_key_values=None, **others
    ):
        if position_ids is not None and self.fail:
            raise RuntimeError("no positions here")
        return self.net(input_ids, past_key_values=past_key_values, **others)


@pytest.mark.parametrize("fail", [False, True])
def test_models_that_do_not_take_padding_are_read_apart(fail):
    lm = model(Deaf(tiny_gpt2(), fail))
    calls = Calls(lm.model)
    prompts = [*UNEQUAL, [9, 4, 2]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = run_each([smc(lm, prompt, i) for i, prompt in enumerate(prompts)])
    # Those of one length still go together.
    assert sorted(calls.rows[-3:]) == [16, 16, 32]
    for i, (prompt, result) in enumerate(zip(prompts, found)):
        assert_same(result, smc(lm, prompt, i).run())
