# SPDX-License-Identifier: Apache-2.0
"""Several prompts at once: each run is that of its sampler alone, and calls are shared."""

import os
import random
import signal
import threading
import time
import warnings

import numpy as np
import pyro
import pytest
import torch
from neural_models import BEGIN, STOP, TwoBack, both, tiny_gpt2
from pyro.poutine.runtime import _DIM_ALLOCATOR, _PYRO_STACK

from pyro_tilt import rewards
from pyro_tilt.infer import (
    AISP,
    GSI,
    LCB,
    SMC,
    BestOfN,
    BlockBestOfN,
    CountRows,
    ExpBestOfN,
    ImportanceSampler,
    RunsFailed,
    SamplerWarning,
    SamplingError,
    SoftBestOfN,
    SpeculativeRejection,
    run_each,
)
from pyro_tilt.infer.twists import RolloutTwist
from pyro_tilt.language import NeuralLM, TabularLM

PROMPTS = [[0], [2, 0], [0, 2], [2]]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(autouse=True)
def _nothing_is_left_behind():
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


class Calls:
    """Rows of each call of a module."""

    def __init__(self, module):
        module.register_forward_hook(lambda module, args, kwargs, out: self.note(args, kwargs),
                                     with_kwargs=True)  # fmt: skip
        self.rows = []

    def note(self, args, kwargs):
        self.rows.append(len(args[0] if args else kwargs["input_ids"]))


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


def test_caches_of_unequal_length_are_not_mixed():
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


def test_rewards_that_draw_have_the_states_of_their_own_run():
    lm, _ = both(length=4)

    def noisy(y):
        noise = torch.rand(()) + np.random.rand() + random.random()
        return lm.log_prob(y).exp() + noise

    def samplers():
        options = {"reward": noisy, "num_samples": 10}
        return [ImportanceSampler(lm.program(p), seed=s, **options) for s, p in enumerate(PROMPTS)]

    for found, sampler in zip(run_each(samplers()), samplers()):
        alone = sampler.run()
        assert torch.equal(found.stats["reward"], alone.stats["reward"])


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


def test_the_others_finish_where_some_fail():
    lm, _ = both(length=6, stop=False)

    class Broken(Exception):
        pass

    def late(carry, t):
        if t == 5:
            raise Broken("no more")
        return torch.zeros(40)

    def samplers():
        made = [twisted(lm, prompt, seed) for seed, prompt in enumerate(PROMPTS)]
        made[1].twist = late
        made.append(SMC(lm.program(), reward=lambda y: y / 0.0 * 0.0, num_particles=5, seed=0))
        return made

    before = states()
    with pytest.raises(
        RunsFailed, match=r"2 of 5 runs failed \(at 1, 4\); run 1: .*no more"
    ) as info:
        run_each(samplers())
    assert states() == before
    error = info.value
    assert isinstance(error, SamplingError)
    assert list(error.errors) == [1, 4] and error.__cause__ is error.errors[1]
    assert error.errors[1].partial.samples["token_4"].shape == (40,)
    assert error.results[1] is None and error.results[4] is None
    for place in (0, 2, 3):
        assert_same(error.results[place], samplers()[place].run())


def stop_after(lm, calls, act):
    """A reward-like value that acts once the network has been asked for often enough."""
    seen = []

    def value(carry, t):
        seen.append(t)
        if len(seen) == calls:
            act()
        return torch.zeros(len(carry.tokens))

    return value


@pytest.mark.parametrize("place", [0, 2])
def test_an_interrupt_ends_all_runs(place):
    lm, _ = both(length=6, stop=False)
    left = []

    def act():
        try:
            os.kill(os.getpid(), signal.SIGINT)
            for _ in range(1000):
                time.sleep(0.01)
        finally:
            left.append(place)

    samplers = [twisted(lm, prompt, seed) for seed, prompt in enumerate(PROMPTS)]
    samplers[place].twist = stop_after(lm, 3, act)
    before, started = states(), time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_each(samplers)
    assert time.monotonic() - started < 5.0
    assert states() == before and left == [place]


def test_an_interrupt_of_a_joined_call_ends_all_runs():
    lm, _ = both(length=6, stop=False)

    def interrupt(module, args, output):
        if len(args[0]) == 160:
            raise KeyboardInterrupt

    lm.model.register_forward_hook(interrupt)
    before = states()
    with pytest.raises(KeyboardInterrupt):
        run_each([twisted(lm, prompt, seed) for seed, prompt in enumerate(PROMPTS)])
    assert states() == before


def test_a_run_that_ends_the_process_ends_all():
    lm, _ = both(length=6, stop=False)

    def act():
        raise SystemExit(3)

    samplers = [twisted(lm, prompt, seed) for seed, prompt in enumerate(PROMPTS)]
    samplers[1].twist = stop_after(lm, 2, act)
    with pytest.raises(SystemExit):
        run_each(samplers)


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


def test_a_run_sees_the_torch_and_pyro_of_the_caller():
    lm, _ = both(length=4)
    seen = []

    def reward(y):
        seen.append(
            (torch.is_inference_mode_enabled(), torch.get_default_dtype(), torch.zeros(()).device,
             torch.is_autocast_enabled("cpu"), pyro.settings.get("cholesky_relative_jitter"))
        )  # fmt: skip
        return (y == 2).double().sum(-1)

    def samplers():
        return [ImportanceSampler(lm.program(p), reward=reward, num_samples=4, seed=0)
                for p in PROMPTS]  # fmt: skip

    torch.set_default_dtype(torch.float64)
    settings = pyro.settings.context(cholesky_relative_jitter=7.0)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16), settings:
        run_each(samplers())
        shared, seen[:] = list(seen), []
        for sampler in samplers():
            sampler.run()
    assert shared == seen
    assert set(shared) == {(True, torch.float64, torch.device("cpu"), True, 7.0)}


def test_settings_of_one_run_are_not_those_of_another():
    lm, _ = both(length=4, stop=False)
    seen = []

    class Loud:
        """Changes what is common to the process around its whole run."""

        def __init__(self, place):
            self.place, self.program = place, lm.program()

        def __call__(self):
            dtype = [torch.float32, torch.float64][self.place]
            before = torch.get_default_dtype()
            torch.set_default_dtype(dtype)
            with warnings.catch_warnings(), pyro.validation_enabled(self.place == 0):
                warnings.simplefilter("ignore" if self.place else "error")
                tokens = self.program()
                action = warnings.filters[0][0]
            seen.append((self.place, torch.get_default_dtype(), action))
            torch.set_default_dtype(before)
            return tokens

    shown = list(warnings.filters)
    run_each([ImportanceSampler(Loud(place), num_samples=3, seed=0) for place in (0, 1)])
    assert set(seen) == {(0, torch.float32, "error"), (1, torch.float64, "ignore")}
    assert warnings.filters == shown
    assert torch.get_default_dtype() == torch.float32


def test_parameters_belong_to_their_run_and_stay():
    lm, _ = both(length=4)
    pyro.param("common", torch.tensor(5.0))

    def program(place):
        def run():
            start = pyro.param("start", torch.tensor(float(place)))
            tokens = lm.program()()
            read = pyro.param("start") + start + pyro.param("common")
            pyro.deterministic("read", read.detach())
            pyro.param(f"own_{place}", torch.tensor(float(place)))
            return tokens

        return run

    found = run_each([ImportanceSampler(program(i), num_samples=2, seed=0) for i in (1, 2)])
    assert [float(result.samples["read"].flatten()[0]) for result in found] == [7.0, 9.0]
    store = pyro.get_param_store()
    assert {name: value.item() for name, value in store.items()} == {
        "common": 5.0, "start": 1.0, "own_1": 1.0, "own_2": 2.0,
    }  # fmt: skip
    assert sorted(store._param_to_name.values()) == sorted(store.keys())


def test_warnings_are_shown_once_for_each_run():
    lm, _ = both(length=5)

    def samplers():
        return [ImportanceSampler(lm.program(p), reward=twos(), beta=400.0, num_samples=40, seed=i)
                for i, p in enumerate(PROMPTS)]  # fmt: skip

    with warnings.catch_warnings(record=True) as alone:
        warnings.simplefilter("always")
        for sampler in samplers():
            sampler.run()
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        run_each(samplers())
    assert alone
    assert sorted(str(w.message) for w in found) == sorted(str(w.message) for w in alone)
    with pytest.raises(RunsFailed) as info:
        run_each(samplers())
    assert all(isinstance(error, SamplerWarning) for error in info.value.errors.values())


class Noisy(TwoBack):
    def forward(self, tokens, state):
        logits, state = super().forward(tokens, state)
        return logits + torch.rand(()), state


class Narrow(TwoBack):
    def forward(self, tokens, state):
        if len(tokens) > 20:
            raise RuntimeError("too many rows")
        return super().forward(tokens, state)


class Stating(TwoBack):
    def forward(self, tokens, state):
        logits, state = super().forward(tokens, state)
        return logits + pyro.param("shift", torch.tensor(1.0)).detach(), state


@pytest.mark.parametrize("kind,reason", [(Noisy, "random numbers"), (Narrow, "too many rows"),
                                         (Stating, "statement of Pyro")])  # fmt: skip
def test_networks_whose_calls_cannot_be_joined(kind, reason):
    lm = NeuralLM(kind(), max_tokens=3, begin_token=BEGIN)

    def samplers():
        return [ImportanceSampler(lm.program(p), reward=twos(), num_samples=15, seed=3)
                for p in ([0, 2], [0, 0])]  # fmt: skip

    with pytest.warns(SamplerWarning, match=reason):
        together = run_each(samplers())
    for found, sampler in zip(together, samplers()):
        assert_same(found, sampler.run())


def test_hooks_of_one_run_do_not_reach_the_others():
    pytest.importorskip("transformers", reason="needs pyro-tilt[language]")
    lm = NeuralLM(tiny_gpt2(), max_tokens=6, begin_token=0)
    draft = NeuralLM(tiny_gpt2(1), max_tokens=6, begin_token=0)

    def both_models():
        # A call of another network while the first is perturbed.
        tokens = lm.program()()
        with torch.no_grad():
            pyro.deterministic("other", draft.log_prob(tokens))
        return tokens

    def samplers():
        search = {"module": lm.model.lm_head, "n": 4, "iterations": 2, "num_samples": 3}
        made = [AISP(both_models, reward=twos(), seed=i, sigma=3.0, **search) for i in range(2)]
        made += [SAMPLERS["smc"](model, [4], 3) for model in (lm, draft)]
        return made

    for found, sampler in zip(run_each(samplers()), samplers()):
        assert_same(found, sampler.run())


def test_speculation_and_tables():
    lm, tabular = both(length=6)
    assert isinstance(tabular, TabularLM)

    def samplers():
        options = {"num_samples": 6, "score": so_far}
        return [SpeculativeRejection(model.program(), reward=twos(), n=8, seed=i, **options)
                for i, model in enumerate((lm, tabular, lm))]  # fmt: skip

    for found, sampler in zip(run_each(samplers()), samplers()):
        assert_same(found, sampler.run())


def test_training_calls_record_their_own_graphs():
    net = TwoBack()
    net.table.requires_grad_(True)
    lm = NeuralLM(net, max_tokens=3, begin_token=BEGIN)

    def reward(y):
        with torch.enable_grad():
            table = lm.log_prob(y)
            (slope,) = torch.autograd.grad(table.sum(), net.table)
        return slope[:, :, 2].sum().expand(y.shape[:-1])

    def samplers():
        return [ImportanceSampler(lm.program(p), reward=reward, num_samples=6, seed=1)
                for p in ([0, 2], [0, 0])]  # fmt: skip

    # The reward is one number of all particles, so only its sums can be compared.
    for found, sampler in zip(run_each(samplers()), samplers()):
        assert_same(found, sampler.run())


def test_a_run_within_a_run():
    lm, _ = both(length=3)

    def reward(y):
        inner = [
            ImportanceSampler(lm.program(), num_samples=5, seed=s, vectorized=False) for s in (0, 1)
        ]
        with pyro.poutine.block():
            first, second = run_each(inner, progress=False)
        return (
            (first.samples["tokens"] == second.samples["tokens"])
            .double()
            .mean()
            .expand(y.shape[:-1])
        )

    def samplers():
        return [ImportanceSampler(lm.program(p), reward=reward, num_samples=6, seed=1)
                for p in ([0, 2], [0, 0])]  # fmt: skip

    for found, sampler in zip(run_each(samplers()), samplers()):
        assert_same(found, sampler.run())


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
