# SPDX-License-Identifier: Apache-2.0
"""Several runs at once keep apart what is one for the process, and fail one by one."""

import os
import random
import signal
import time
import warnings

import numpy as np
import pyro
import pytest
import torch
from each_cases import (
    PROMPTS,
    SAMPLERS,
    assert_same,
    nothing_is_left_behind,  # noqa: F401
    states,
    twisted,
    twos,
)
from neural_models import BEGIN, TwoBack, both, tiny_gpt2

from pyro_tilt.infer import (
    AISP,
    SMC,
    ImportanceSampler,
    RunsFailed,
    SamplerWarning,
    SamplingError,
    run_each,
)
from pyro_tilt.language import NeuralLM


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


@pytest.fixture
def interruptible():
    """Interrupts raise, also where the tests run behind a shell that ignores them."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.mark.parametrize("place", [0, 2])
def test_an_interrupt_ends_all_runs(place, interruptible):
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


def test_joined_calls_are_made_in_the_mode_of_the_runs():
    lm, _ = both(length=3, stop=False)
    modes = []
    lm.model.register_forward_hook(
        lambda module, args, out: modes.append((len(args[0]), torch.is_grad_enabled()))
    )
    run_each([ImportanceSampler(lm.program(p), num_samples=6, seed=0) for p in ([0, 2], [0, 0])])
    assert max(rows for rows, _ in modes) > 6
    assert torch.is_grad_enabled() and not any(grad for _, grad in modes)
