# SPDX-License-Identifier: Apache-2.0
"""What breaks off, what it leaves, and what a carry or a reward may be."""

import math
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

from pyro_tilt import align, scan
from pyro_tilt.infer import LCB, AcceptanceTooLow, SamplerWarning, SamplingError
from pyro_tilt.infer.smc import StepError
from pyro_tilt.infer.stepwise.rows import fork, put_rows
from pyro_tilt.testing.gates import P_VALUE, Z_SCORE

STEPS = 40


def walk(breaks_at=None, error=RuntimeError):
    def step(x, t):
        # The plain run of one particle goes through.
        if t == breaks_at and x.dim():
            raise error("the disk is full")
        return pyro.sample(f"x_{t}", dist.Normal(0.5 * x, 1.0))

    def program():
        x = pyro.sample("x_40", dist.Normal(0.0, 1.0))
        return scan("walk", step, x, range(STEPS - 1, -1, -1))

    return program


def flat(x, t):
    return torch.zeros(len(x))


OPTIONS = {
    "reward": lambda x: x.clamp(max=1.0),
    "num_samples": 50,
    "num_inner": 8,
    "tilt_start": False,
    "check_lineage": False,
    "max_plate_nesting": 0,
    "progress": False,
    "seed": 0,
}


@pytest.mark.parametrize("error", [RuntimeError, TypeError, OSError])
def test_a_program_that_raises_at_step_30_leaves_its_chains(error):
    sampler = LCB(walk(9, error), value=flat, keep_paths=True, **{**OPTIONS, "seed": 3})
    with pytest.raises(StepError, match="scan 'walk', step 30: .*the disk is full") as caught:
        sampler.run()
    partial = caught.value.partial
    assert isinstance(caught.value.__cause__, error)
    assert sorted(partial.samples) == ["x_10", "x_40"]
    assert len(partial.paths) == 31 and partial.paths["x_10"].equal(partial.samples["x_10"])
    assert len(partial.steps["proposals"]) == 30
    assert partial.certificate.target == "value-tilted chain up to step 29"
    assert bool(partial.samples["x_10"].isfinite().all())
    # The same draws that an uninterrupted run goes through.
    whole = LCB(walk(), value=flat, keep_paths=True, **{**OPTIONS, "seed": 3}).run()
    assert whole.paths["x_10"].equal(partial.samples["x_10"])


def test_groups_that_finished_are_kept_whole():
    calls = []

    def value(x, t):
        calls.append(t)
        if calls.count(5) > 12:
            raise OSError("the disk is full")
        return torch.zeros(len(x))

    sampler = LCB(walk(), value=value, **{**OPTIONS, "max_batch": 20})
    with pytest.raises(StepError, match="the disk is full") as caught:
        sampler.run()
    assert len(caught.value.partial) == 20 and "x_0" in caught.value.partial.samples


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        (lambda x: torch.full((len(x),), math.nan), "step 3: the value is NaN"),
        (lambda x: torch.full((len(x),), math.inf), "step 3: the value is [+]inf"),
        (lambda x: torch.zeros(len(x), 2), r"step 3: the value has shape \(50, 2\)"),
        (lambda x: 0.0, "step 3: .*the value is a float, not a tensor"),
        (lambda x: torch.full((len(x),), -math.inf), "step 3: the value is -inf at every"),
    ],
)
def test_a_bad_value_names_the_step_and_keeps_the_chains(bad, match):
    def value(x, t):
        return bad(x) if t == 36 else torch.zeros(len(x))

    with pytest.raises(SamplingError, match=match) as caught:
        LCB(walk(), value=value, **OPTIONS).run()
    assert list(caught.value.partial.samples) == ["x_40", "x_37"]


def test_a_stuck_chain_keeps_the_others():
    def baseline(x, t):
        return torch.full((len(x),), 60.0 if t == 35 else 1.0)

    with pytest.raises(AcceptanceTooLow, match="scan 'walk', step 4") as caught:
        LCB(walk(), value=flat, baseline=baseline, min_acceptance=1e-2, **OPTIONS).run()
    assert "x_36" in caught.value.partial.samples


def test_a_number_of_steps_that_differs_is_refused():
    def step(x, t):
        return pyro.sample(f"x_{t}", dist.Normal(x, 1.0))

    lengths = iter([2, 2, 3, 3, 3])

    def shifting():
        x = pyro.sample("start", dist.Normal(0.0, 1.0))
        return scan("walk", step, x, range(next(lengths)))

    with pytest.raises(ValueError, match="scan 'walk' has 3 steps in one run and 2 in another"):
        LCB(shifting, value=flat, **{**OPTIONS, "tilt_start": True}).run()

    def own():
        count = pyro.sample("count", dist.Categorical(torch.ones(3)))
        return scan("walk", step, torch.zeros(()), range(int(count) + 1))

    with pytest.raises((ValueError, RuntimeError)) as caught:
        LCB(own, value=flat, **{**OPTIONS, "max_plate_nesting": None}).run()
    assert "before the first step" in "".join(caught.value.__notes__)


def test_a_start_value_that_knows_no_none_says_what_to_do():
    def value(x, t):
        return torch.zeros(len(x)) + (t - 1)

    with pytest.raises(TypeError) as caught:
        LCB(walk(), value=value, **{**OPTIONS, "tilt_start": True}).run()
    assert "tilt_start=False" in "".join(caught.value.__notes__)


# Rewards of a step in the middle.

LOGITS = torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.2, 0.3], [0.3, 0.3, 0.4]]).double().log()
REWARD = torch.tensor([0.0, 1.3, -0.4]).double()


def categorical(carry="value"):
    def step(c, t):
        y = c if carry == "value" else c[0]
        x = pyro.sample(f"x_{t}", dist.Categorical(logits=LOGITS[y]))
        return x if carry == "value" else (x, y)

    def program():
        x = pyro.sample("x_3", dist.Categorical(logits=LOGITS[0]))
        last = scan("chain", step, x if carry == "value" else (x, x), [2, 1, 0])
        return last if carry == "value" else last[0]

    return program


@pytest.mark.parametrize("carry", ["value", "pair"])
@pytest.mark.parametrize("path_weights", [False, "fresh"])
def test_a_reward_may_read_a_site_of_a_middle_step(carry, path_weights):
    """Its value at step 2 is the reward, zero at step 1; then the chain is the target."""

    def value(c, t):
        x = c if carry == "value" else c[0]
        if t is None:
            return (LOGITS + REWARD).logsumexp(-1)[x]
        return REWARD[x] if t == 2 else torch.zeros(len(x)).double()

    aligned = align(
        categorical(carry), lambda s: REWARD[s["x_2"]] + 0.5 * (s["x_0"] == 1), of=["x_2", "x_0"]
    )
    result = LCB(
        aligned,
        value=value,
        epsilon=1e-3,
        num_samples=20_000,
        num_inner=32,
        keep_paths=True,
        path_weights=path_weights,
        seed=1,
        progress=False,
    ).run()
    middle = result.paths["x_2"]
    torch.testing.assert_close(
        result.stats["reward"], REWARD[middle] + 0.5 * (result.samples["x_0"] == 1)
    )
    kernel = LOGITS.exp()
    law = (LOGITS[0].exp() @ kernel) * REWARD.exp()
    if path_weights:
        # The reward of x_0 has no value before the last step, which the weights make good.
        ends = (kernel @ kernel) @ torch.tensor([1.0, math.exp(0.5), 1.0]).double()
        law = law * ends
        weights = result.residual_log_weights.exp()
        for j in range(3):
            share = float(law[j] / law.sum())
            terms = weights * ((middle == j).double() - share)
            assert abs(float(terms.mean())) < Z_SCORE * float(terms.std()) / 20_000**0.5
    else:
        counts = torch.bincount(middle, minlength=3).double()
        assert stats.chisquare(counts, law / law.sum() * counts.sum()).pvalue > P_VALUE


def test_a_reward_of_the_trace_is_refused():
    aligned = align(categorical(), lambda trace: REWARD[trace.nodes["x_0"]["value"]], of="trace")
    with pytest.raises(ValueError, match="there is no trace of a whole run"):
        LCB(aligned, value=lambda x, t: torch.zeros(len(x)), tilt_start=False).run()


# Carries.


class Cache:
    """Keys that grow by a column per step, reordered in place as caches of transformers are."""

    def __init__(self, keys):
        self.keys = keys
        self.shared = torch.arange(5)
        self.length = 0

    def update(self, key):
        self.keys = torch.cat([self.keys, key.unsqueeze(-1)], -1)
        self.length += 1
        return self.keys

    def reorder_cache(self, index):
        self.keys = self.keys.index_select(0, index)


@dataclass
class State:
    x: torch.Tensor
    history: list
    cache: Cache
    slots: dict
    kind: str = "walk"


def history():
    """Steps whose law needs the whole past, kept four times over and changed in place."""

    def step(state, t):
        past = state.cache.keys.sum(-1) + sum(state.history) + state.slots["x"].sum(-1)
        x = pyro.sample(f"x_{t}", dist.Normal(0.2 * past, 1.0))
        state.history.append(x)
        state.cache.update(x)
        state.slots["x"][..., t] = x
        return State(x, state.history, state.cache, state.slots)

    def program():
        x = pyro.sample("x_3", dist.Normal(0.0, 1.0))
        slots = torch.zeros(*x.shape, 4)
        slots[..., 3] = x
        init = State(x, [x], Cache(x.unsqueeze(-1)), {"x": slots})
        last = scan("chain", step, init, [2, 1, 0])
        copies = torch.stack(
            [torch.stack(last.history, -1), last.cache.keys, last.slots["x"].flip(-1)]
        )
        return {"x": last.x, "copies": copies, "length": last.cache.length}

    return program


def test_caches_and_histories_follow_their_chain():
    def program():
        made = history()()
        assert made["length"] == 3
        pyro.deterministic("copies", made["copies"].movedim(0, -1), event_dim=2)
        return made["x"]

    result = LCB(
        program,
        reward=lambda x: x.clamp(max=2.0),
        value=lambda s, t: s.x.clamp(max=2.0),
        num_samples=2000,
        num_inner=16,
        tilt_start=False,
        keep_paths=True,
        check_lineage=False,
        max_plate_nesting=0,
        path_weights=3,
        seed=0,
        progress=False,
    ).run()
    assert result.info["proposals_per_step"] > 1.3
    truth = torch.stack([result.paths[f"x_{t}"] for t in (3, 2, 1, 0)], -1)
    copies = result.samples["copies"]
    for k in range(3):
        torch.testing.assert_close(copies[..., k], truth)


def test_forked_rows_are_a_memory_of_their_own():
    cache = Cache(torch.arange(6.0).view(3, 2))
    moved = fork((cache, torch.ones(3)), torch.tensor([2, 0]), 3)
    assert moved[0].keys.tolist() == [[4.0, 5.0], [0.0, 1.0]]
    assert cache.keys.shape == (3, 2)
    put = put_rows((cache, torch.ones(3)), torch.tensor([1, 0]), moved)
    assert put[0].keys.tolist() == [[0.0, 1.0], [4.0, 5.0], [4.0, 5.0]]
    assert put[0].shared.equal(torch.arange(5))
    with pytest.raises(ValueError, match=r"carry\.keys: 1 particles brought back"):
        put_rows(cache, torch.tensor([1]), Cache(torch.zeros(1, 7)))


def test_a_transformer_cache_is_a_carry():
    transformers = pytest.importorskip("transformers")

    def step(carry, t):
        x, cache = carry
        keys, _ = cache.update(x.view(-1, 1, 1, 1), x.view(-1, 1, 1, 1), 0)
        mean = 0.5 * keys.mean((1, 2, 3))
        x = pyro.sample(f"x_{t}", dist.Normal(mean if x.dim() else mean[0], 1.0))
        return x, cache

    def program():
        x = pyro.sample("x_3", dist.Normal(torch.zeros(()), 1.0))
        x, cache = scan("chain", step, (x, transformers.DynamicCache()), [2, 1, 0])
        pyro.deterministic("keys", cache.layers[0].keys.flatten(1), event_dim=1)
        return x

    options = {**OPTIONS, "num_samples": 500, "keep_paths": True}
    with_values = LCB(program, value=lambda c, t: c[0].clamp(max=1.0), **options).run()
    truth = torch.stack([with_values.paths[f"x_{t}"] for t in (3, 2, 1)], -1)
    torch.testing.assert_close(with_values.samples["keys"].flatten(1), truth)
    assert with_values.info["proposals_per_step"] > 1.1


def test_a_capped_run_is_flagged_in_its_partial_result():
    def baseline(x, t):
        return torch.full((len(x),), 3.0)

    with pytest.warns(SamplerWarning, match="rejected value"):
        result = LCB(walk(), value=flat, baseline=baseline, max_proposals=3, **OPTIONS).run()
    assert int(result.stats["capped"].sum()) > 0
