# SPDX-License-Identifier: Apache-2.0
"""Runs that break off, are taken up from their file, and end as if nothing had happened."""

import dataclasses
from typing import NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_tilt import checkpoint, reward_factor, scan, twist
from pyro_tilt.infer import SMC, counted
from pyro_tilt.infer.smc import ResumeError, StepError
from pyro_tilt.testing.hidden_markov import two_state_hmm
from pyro_tilt.testing.tabular_diffusion import tabular_masked_diffusion

TENSORS = ("log_weights", "log_normalizer", "log_normalizer_error", "chain_log_normalizers")


def same(here, there):
    """Every number of two results, bit for bit."""
    for name in TENSORS:
        a, b = getattr(here, name), getattr(there, name)
        assert torch.equal(a.nan_to_num(nan=7.0), b.nan_to_num(nan=7.0)), name
    for table in ("samples", "stats", "steps"):
        a, b = getattr(here, table), getattr(there, table)
        assert list(a) == list(b)
        for name in a:
            assert a[name].dtype == b[name].dtype
            assert torch.equal(a[name], b[name]), (table, name)
    assert (here.paths is None) == (there.paths is None)
    if here.paths is not None:
        assert list(here.paths) == list(there.paths)
        for name in here.paths:
            assert torch.equal(here.paths[name], there.paths[name])
    assert dataclasses.replace(here.cost, seconds=0) == dataclasses.replace(there.cost, seconds=0)
    assert here.certificate == there.certificate


class Fuse:
    """Burns through at one step of a run over particles, once."""

    def __init__(self, at=None):
        self.at = at

    def __call__(self, t, x):
        if t == self.at and x.dim():
            self.at = None
            raise ConnectionError("the machine went away")


def walk(fuse, data, steps=40):
    """Sites before, in and after the steps, rewards on the way, draws of two generators."""

    def step(carry, t):
        x, total, (y,) = carry
        x = pyro.sample(f"x_{t}", dist.Normal(0.9 * x, 0.5))
        fuse(t, x)
        reward_factor(f"reward_{t}", 0.1 * x, beta=0.7)
        y = pyro.sample(f"y_{t}", dist.Normal(NET(y), 1.0 + np.random.rand()).to_event(1))
        pyro.sample(f"obs_{t}", dist.Normal(x + y.sum(-1), 0.7), obs=data[t])
        twist(f"twist_{t}", lambda: -0.1 * x.square())
        return x, total + x, [y]

    start = pyro.sample("start", dist.Normal(torch.tensor(0.0), 1.0))
    wide = pyro.sample("wide", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    x, total, _ = scan("walk", step, (start, torch.zeros_like(start), [wide]), range(steps))
    after = pyro.sample("after", dist.Normal(total, 1.0))
    pyro.sample("late", dist.Normal(after, 2.0), obs=torch.tensor(0.4))
    return x


with torch.random.fork_rng():
    torch.manual_seed(0)
    NET = counted(torch.nn.Linear(2, 2))
DATA = torch.randn(40, generator=torch.Generator().manual_seed(0))


def make(path=None, program=walk, **options):
    options = {"num_particles": 60, "seed": 3, "check_lineage": False, **options}
    return SMC(program, reward=lambda x: 0.5 * x, beta=0.7, progress=False, save_to=path, **options)


@pytest.mark.parametrize("keep_paths", [False, True])
@pytest.mark.parametrize("every", [1, 7, 30])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, every, keep_paths):
    whole = make(keep_paths=keep_paths).run(Fuse(), DATA)
    path = tmp_path / "run.pt"
    sampler = make(path, save_every=every, keep_paths=keep_paths)
    sampler.run(Fuse(), DATA)
    path.unlink()
    with pytest.raises(StepError, match="step 30: ConnectionError") as caught:
        sampler.run(Fuse(30), DATA)
    assert list(caught.value.partial.samples)[-2:] == ["x_29", "y_29"]
    assert caught.value.partial.log_weights.isfinite().all()
    before = torch.get_rng_state()
    fresh = make(keep_paths=keep_paths)
    same(fresh.resume(path, Fuse(), DATA), whole)
    assert torch.equal(before, torch.get_rng_state())
    same(make(path, save_every=every, keep_paths=keep_paths).run(Fuse(), DATA), whole)


def test_a_run_breaks_off_more_than_once_and_between_chains(tmp_path):
    options = {"num_chains": 3, "resampling": "multinomial", "keep_paths": True}
    whole = make(**options).run(Fuse(), DATA)
    path = tmp_path / "run.pt"
    sampler = make(path, save_every=4, max_plate_nesting=0, **options)
    calls = {"chain": -1}

    class SecondChain(Fuse):
        def __call__(self, t, x):
            calls["chain"] += t == 0
            if calls["chain"] == 1:
                super().__call__(t, x)

    with pytest.raises(StepError):
        sampler.run(SecondChain(13), DATA)
    # The first step of the chain is done again for comparison.
    calls["chain"] = 0
    with pytest.raises(StepError):
        sampler.resume(path, SecondChain(22), DATA)
    result = sampler.resume(path, Fuse(), DATA)
    same(result, whole)
    assert result.program is sampler.program


def test_an_unseeded_run_goes_on_with_the_random_states_of_its_own(tmp_path):
    path = tmp_path / "run.pt"
    sampler = make(path, seed=None, save_every=5)
    pyro.set_rng_seed(11)
    whole = sampler.run(Fuse(), DATA)
    after = torch.get_rng_state()
    pyro.set_rng_seed(11)
    with pytest.raises(StepError):
        sampler.run(Fuse(23), DATA)
    pyro.set_rng_seed(999)
    same(sampler.resume(path, Fuse(), DATA), whole)
    assert torch.equal(torch.get_rng_state(), after)


def test_two_scans_and_what_stands_between(tmp_path):
    def program(fuse):
        def first(x, t):
            x = pyro.sample(f"a_{t}", dist.Normal(x, 1.0))
            pyro.factor(f"f_{t}", -x.square())
            return x

        def second(carry, t):
            x, y = carry
            fuse(t, x)
            y = pyro.sample(f"b_{t}", dist.Normal(y, 1.0))
            pyro.factor(f"g_{t}", -(y - x).square())
            return x, y

        x = scan("first", first, torch.tensor(0.0), range(6))
        between = pyro.sample("between", dist.Normal(x, 1.0))
        pyro.factor("h", between)
        return scan("second", second, (x, between), range(8))[1]

    path = tmp_path / "run.pt"
    options = {"program": program, "ess_threshold": 0.9, "keep_paths": True}
    whole = make(**options).run(Fuse())
    for at, every in ((5, 4), (1, 4), (7, 6)):
        with pytest.raises(StepError):
            make(path, save_every=every, **options).run(Fuse(at))
        same(make(**options).resume(path, Fuse()), whole)


class Pair(NamedTuple):
    x: torch.Tensor
    past: list


@dataclasses.dataclass(frozen=True)
class Boxed:
    pair: Pair
    table: dict
    array: np.ndarray
    label: str = "fixed"


def boxed(fuse, data):
    def step(state, t):
        fuse(t, state.table["bias"])
        x = pyro.sample(f"x_{t}", dist.Normal(state.pair.x + state.table["bias"], 1.0))
        pyro.sample(f"obs_{t}", dist.Normal(x, 0.5), obs=data[t])
        pair = Pair(x, [*state.pair.past, x])
        return dataclasses.replace(state, pair=pair, array=state.array + x.numpy())

    bias = pyro.sample("bias", dist.Normal(torch.tensor(0.0), 1.0))
    start = Boxed(Pair(torch.zeros_like(bias), []), {"bias": bias}, np.zeros(bias.shape))
    state = scan("boxed", step, start, range(12))
    pyro.deterministic("array", torch.from_numpy(state.array))
    return pyro.deterministic("path", torch.stack(state.pair.past, -1)).sum(-1)


def test_any_nesting_of_the_carry_comes_back(tmp_path):
    path = tmp_path / "run.pt"
    options = {"program": boxed, "max_plate_nesting": 0}
    whole = make(**options).run(Fuse(), DATA)
    with pytest.raises(StepError):
        make(path, save_every=4, **options).run(Fuse(9), DATA)
    same(make(**options).resume(path, Fuse(), DATA), whole)


@pytest.mark.parametrize("kind", ["hidden", "table"])
def test_guides_and_twists_go_on_too(tmp_path, kind):
    case = two_state_hmm(length=9) if kind == "hidden" else tabular_masked_diffusion(num_steps=6)
    path = tmp_path / "run.pt"

    def watched(state, t):
        count["calls"] += 1
        if count["calls"] == count["at"]:
            raise ConnectionError
        return case.twist("half")(state, t)

    options = {"num_particles": 40, "seed": 0, "check_lineage": False, "guide": case.guide}
    count = {"calls": 0, "at": None}
    whole = SMC(case.aligned(), twist=watched, **options).run()
    count = {"calls": 0, "at": case.num_steps}
    with pytest.raises(StepError):
        SMC(case.aligned(), twist=watched, save_to=path, save_every=2, **options).run()
    same(SMC(case.aligned(), twist=watched, **options).resume(path), whole)


@pytest.fixture
def broken_off(tmp_path):
    path = tmp_path / "run.pt"
    with pytest.raises(StepError):
        make(path, save_every=5).run(Fuse(30), DATA)
    return path


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_particles": 61}, "num_particles was 60 and is 61"),
        ({"seed": 4}, "seed was 3 and is 4"),
        ({"num_chains": 2}, "num_chains was 1 and is 2"),
        ({"resampling": "residual"}, "resampling was 'systematic' and is 'residual'"),
        ({"ess_threshold": 0.6}, "ess_threshold was 0.5 and is 0.6"),
        ({"keep_paths": True}, "keep_paths"),
        ({"proposal": lambda *a: None}, "proposal was False and is True"),
    ],
)
def test_another_sampler_is_refused(broken_off, options, words):
    with pytest.raises(ResumeError, match=words):
        make(**options).resume(broken_off, Fuse(), DATA)


def test_another_program_is_refused(broken_off):
    with pytest.raises(ResumeError, match="tensors among the program's arguments"):
        make().resume(broken_off, Fuse(), DATA + 1e-6)

    def shorter(fuse, data):
        return walk(fuse, data, steps=39)

    with pytest.raises(ResumeError, match="sites"):
        make(program=shorter).resume(broken_off, Fuse(), DATA.clone())

    def moved(fuse, data):
        with pyro.condition(data={"start": torch.tensor(2.0)}):
            return walk(fuse, data)

    with pytest.raises(ResumeError, match="sites"):
        make(program=moved).resume(broken_off, Fuse(), DATA)

    def wider(fuse, data):
        with _Wider():
            return walk(fuse, data)

    with pytest.raises(ResumeError, match="site 'start'"):
        make(program=wider).resume(broken_off, Fuse(), DATA)
    same(make().resume(broken_off, Fuse(), DATA), make().run(Fuse(), DATA))


class _Wider(pyro.poutine.messenger.Messenger):
    """Another law of the first site."""

    def _pyro_sample(self, msg):
        if msg["name"] == "start":
            msg["fn"] = dist.Normal(msg["fn"].mean, 3.0)


def drifting(fuse, drift, times=range(20)):
    def step(x, t):
        fuse(t, x)
        x = pyro.sample(f"x_{t}", dist.Normal(drift * x, 1.0))
        pyro.sample(f"y_{t}", dist.Normal(x, 1.0), obs=torch.tensor(0.5))
        return x

    return scan("drift", step, pyro.sample("start", dist.Normal(torch.tensor(0.0), 1.0)), times)


def test_a_change_inside_the_steps_is_seen_at_the_first(tmp_path):
    path = tmp_path / "run.pt"
    with pytest.raises(StepError):
        make(path, program=drifting, save_every=3).run(Fuse(11), 0.9)
    with pytest.raises(ResumeError, match="first step of scan 'drift'"):
        make(program=drifting).resume(path, Fuse(), 0.8)
    with pytest.raises(ResumeError, match="what its steps go over|sites"):
        make(program=drifting, max_plate_nesting=0).resume(path, Fuse(), 0.9, range(21))
    same(make(program=drifting).resume(path, Fuse(), 0.9), make(program=drifting).run(Fuse(), 0.9))


def test_files_that_are_no_run(tmp_path):
    path = tmp_path / "run.pt"
    path.write_bytes(b"nothing")
    with pytest.raises(ResumeError, match="no saved run"):
        make().resume(path, Fuse(), DATA)
    torch.save({"x": torch.zeros(3)}, path)
    with pytest.raises(ResumeError, match="no saved run"):
        make().resume(path, Fuse(), DATA)
    torch.save({"format": Fuse()}, path)
    with pytest.raises(ResumeError, match="no saved run"):
        make().resume(path, Fuse(), DATA)
    with pytest.raises(FileNotFoundError):
        make().resume(tmp_path / "missing.pt", Fuse(), DATA)


def test_what_cannot_be_saved_is_refused_before_the_steps(tmp_path):
    calls = []

    class Cache:
        def reorder_cache(self, index):
            pass

    def cached():
        def step(carry, t):
            calls.append(t)
            return carry

        return scan("cached", step, (torch.zeros(60), Cache()), range(3))[0]

    def looped():
        x = pyro.sample("x", dist.Normal(torch.tensor(0.0), 1.0))
        return checkpoint("c", x)

    path = tmp_path / "run.pt"
    with pytest.raises(TypeError, match=r"carry\[1\]: a Cache cannot be saved"):
        make(path, program=cached, max_plate_nesting=0).run()
    assert not calls
    with pytest.raises(ValueError, match="checkpoint 'c'.*scan"):
        make(path, program=looped).run()
    with pytest.raises(ValueError, match="save_every"):
        make(path, save_every=0)
    assert not path.exists()


def test_a_failed_write_leaves_the_file_of_before(tmp_path, monkeypatch):
    path = tmp_path / "run.pt"
    sampler = make(path, save_every=5)
    with pytest.raises(StepError):
        sampler.run(Fuse(12), DATA)
    kept = path.read_bytes()

    def full(state, file):
        file.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(StepError, match="after step 14.*no space left") as caught:
        sampler.resume(path, Fuse(), DATA)
    assert len(caught.value.partial.steps["ess"]) == 15
    assert path.read_bytes() == kept
    assert [file.name for file in tmp_path.iterdir()] == ["run.pt"]
