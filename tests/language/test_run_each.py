# SPDX-License-Identifier: Apache-2.0
"""Several prompts at once: each run is that of its sampler alone, and calls are shared."""

import time

import pyro
import pytest
import torch
from each_cases import (
    PROMPTS,
    SAMPLERS,
    Calls,
    assert_same,
    guided,
    nothing_is_left_behind,  # noqa: F401
    so_far,
    states,
    twisted,
    twos,
)
from neural_models import BEGIN, STOP, both, tiny_gpt2

from pyro_tilt.infer import SMC, CountRows, ImportanceSampler, SpeculativeRejection, run_each
from pyro_tilt.language import NeuralLM, TabularLM


@pytest.mark.parametrize("name", SAMPLERS)
def test_each_run_is_that_of_its_sampler_alone(name):
    make, (lm, _) = SAMPLERS[name], both(length=5)
    before = states()
    found = run_each([make(lm, prompt, seed) for seed, prompt in enumerate(PROMPTS)])
    assert states() == before
    for seed, (prompt, result) in enumerate(zip(PROMPTS, found)):
        assert_same(result, make(lm, prompt, seed).run())
        assert result.samples["tokens"][0, : len(prompt)].tolist() == prompt


def test_samplers_and_seeds_are_mixed():
    lm, tabular = both(length=5)
    other = NeuralLM(lm.model, max_tokens=5, begin_token=BEGIN, stop_token=STOP, temperature=2.0)
    models = [lm, tabular, other] * len(SAMPLERS)
    kinds = [name for name in SAMPLERS if "gsi" not in name] * 3
    prompts = [PROMPTS[i % 4] if models[i] is not tabular else () for i in range(len(kinds))]
    plan = list(zip(kinds, models, prompts))

    def samplers():
        return [
            SAMPLERS[kind](model, prompt, 7 * i) for i, (kind, model, prompt) in enumerate(plan)
        ]

    for found, sampler in zip(run_each(samplers()), samplers()):
        assert_same(found, sampler.run())


@pytest.mark.parametrize("cached", [True, False])
def test_calls_are_those_of_one_run(cached):
    if cached:
        pytest.importorskip("transformers", reason="needs pyro-tilt[language]")
        lm = NeuralLM(tiny_gpt2(), max_tokens=6, begin_token=0)
    else:
        lm, _ = both(length=8, stop=False)

    def sampler(seed, prompt):
        options = {"num_particles": 16, "seed": seed, "check_lineage": False}
        return SMC(lm.program(prompt), reward=twos(), beta=4.0, **options)

    prompts = [[0, 2], [2, 2], [2, 0], [0, 0]]
    calls = Calls(lm.model)
    alone = [sampler(seed, prompt).run() for seed, prompt in enumerate(prompts)]
    each, calls.rows = calls.rows, []
    found = run_each(sampler(seed, prompt) for seed, prompt in enumerate(prompts))
    assert 4 * len(calls.rows) == len(each)
    assert sum(calls.rows) == sum(each)
    assert calls.rows[0] == 4 and calls.rows[-1] == 64
    for result, other in zip(found, alone):
        assert_same(result, other)


def test_prompts_of_unequal_length_share_a_recurrent_state():
    lm, _ = both(length=8, stop=False)

    def samplers():
        programs = [lm.program(prompt) for prompt in ([0], [2, 0, 2], [2, 2])]
        return [ImportanceSampler(p, reward=twos(), num_samples=9, seed=3) for p in programs]

    calls = Calls(lm.model)
    run_each(samplers())
    # Two runs of each program, whose first call reads the prompt and stands alone.
    assert calls.rows == [1, 1, 1] + [3] * 7 + [1, 1, 1] + [27] * 7


def test_caches_of_unequal_length_are_not_mixed_up():
    pytest.importorskip("transformers", reason="needs pyro-tilt[language]")
    lm = NeuralLM(tiny_gpt2(), max_tokens=6, begin_token=0, stop_token=1)
    plan = [(kind, prompt) for kind in ("twisted", "best of n", "blocks") for prompt in PROMPTS[:3]]

    def samplers():
        return [SAMPLERS[kind](lm, [t + 3 for t in prompt], i) for i, (kind, prompt) in
                enumerate(plan)]  # fmt: skip

    for found, sampler in zip(run_each(samplers()), samplers()):
        assert_same(found, sampler.run())


def test_bounds_on_rows_and_runs_change_nothing():
    lm, _ = both(length=6, stop=False)

    def samplers():
        return [twisted(lm, prompt, seed) for seed, prompt in enumerate(PROMPTS)]

    alone = [sampler.run() for sampler in samplers()]
    for options, largest in (
        ({"max_batch": 100}, 96),
        ({"max_live": 1}, 40),
        ({"max_live": 3}, 120),
    ):
        calls = Calls(lm.model)
        for found, other in zip(run_each(samplers(), **options), alone):
            assert_same(found, other)
        assert max(calls.rows) == largest
        lm.model._forward_hooks.popitem()


def test_speculation_and_tables():
    lm, tabular = both(length=6)
    assert isinstance(tabular, TabularLM)

    def samplers():
        options = {"num_samples": 6, "score": so_far}
        return [SpeculativeRejection(model.program(), reward=twos(), n=8, seed=i, **options)
                for i, model in enumerate((lm, tabular, lm))]  # fmt: skip

    for found, sampler in zip(run_each(samplers()), samplers()):
        assert_same(found, sampler.run())


def test_rows_are_those_of_the_run_that_asked():
    lm, _ = both(length=6)
    with CountRows() as outer:
        found = run_each([guided(lm, prompt, seed) for seed, prompt in enumerate(PROMPTS)])
    with CountRows() as plain:
        alone = [guided(lm, prompt, seed).run() for seed, prompt in enumerate(PROMPTS)]
    assert outer.rows == plain.rows
    for result, other in zip(found, alone):
        assert result.cost.network_rows == other.cost.network_rows > 0
        assert result.info["draft_network_rows"] == other.info["draft_network_rows"] > 0
    assert len({result.cost.network_rows for result in found}) > 1


def test_seconds_add_up_to_no_more_than_the_time_of_all():
    lm, _ = both(length=6)

    def slow(y):
        time.sleep(0.02)
        return (y == 2).double().sum(-1)

    def sampler(reward, seed):
        return ImportanceSampler(lm.program(), reward=reward, num_samples=5, seed=seed)

    started = time.perf_counter()
    found = run_each([sampler(twos(), 0), sampler(slow, 1), sampler(slow, 2)])
    total = time.perf_counter() - started
    seconds = [result.cost.seconds for result in found]
    assert sum(seconds) <= total
    assert min(seconds[1:]) >= 0.02


def test_runs_without_a_seed_get_one_each_from_the_state_of_the_caller():
    lm, _ = both(length=5)

    def draw(seeds):
        torch.manual_seed(8)
        options = {"num_samples": 30}
        samplers = [ImportanceSampler(lm.program(), seed=seed, **options) for seed in seeds]
        return [result.samples["tokens"] for result in run_each(samplers)], torch.rand(())

    (first, second, third), after = draw([None, None, 4])
    (again, *_), _ = draw([None, None, 4])
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert torch.equal(third, draw([4])[0][0])
    torch.manual_seed(8)
    torch.randint(2**31, ()), torch.randint(2**31, ())
    assert after == torch.rand(())


def test_bad_arguments():
    lm, _ = both()
    sampler = ImportanceSampler(lm.program(), num_samples=3)
    assert run_each([]) == []
    with pytest.raises(ValueError, match=r"samplers\[1\] occurs before"):
        run_each([sampler, sampler])
    with pytest.raises(TypeError, match=r"samplers\[0\] must be a Sampler, got function"):
        run_each([lm.generate.__func__])
    for name in ("max_batch", "max_live"):
        with pytest.raises(ValueError, match=name):
            run_each([sampler], **{name: 0})


def test_bars_of_single_runs_are_off_and_come_back(capsys):
    lm, _ = both()
    samplers = [
        ImportanceSampler(lm.program(), num_samples=3, seed=s, progress=True) for s in (0, 1)
    ]
    run_each(samplers, progress=True)
    shown = capsys.readouterr().err
    assert "run_each: 100%" in shown and "2/2" in shown
    assert "ImportanceSampler" not in shown
    assert [sampler.progress for sampler in samplers] == [True, True]


def test_arguments_go_to_all_programs():
    lm, _ = both(length=3)

    def program(scale, *, shift):
        pyro.deterministic("told", torch.tensor(scale + shift))
        return lm.program()()

    samplers = [ImportanceSampler(program, num_samples=2, seed=s) for s in (0, 1)]
    for result in run_each(samplers, args=(2.0,), kwargs={"shift": 0.5}):
        assert set(result.samples["told"].flatten().tolist()) == {2.5}
