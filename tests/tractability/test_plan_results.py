# SPDX-License-Identifier: Apache-2.0
"""Plans as tables and data, primitives of one's own, bad input, random states."""

import json
import math
from html.parser import HTMLParser

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_tilt import plan, rewards
from pyro_tilt.infer import ImportanceSampler
from pyro_tilt.tractability import Entry, applies, declines, primitives, register_primitive
from pyro_tilt.tractability import registry as registry_module

F64 = torch.float64
LINEAR = rewards.Linear(torch.tensor([1.25, -0.5], dtype=F64))
BOWL = rewards.Quadratic(torch.diag(torch.tensor([-3.0, 0.0], dtype=F64)))


@pytest.fixture
def own_primitive():
    """Registers primitives and takes them back."""
    before = dict(registry_module._PRIMITIVES)
    yield register_primitive
    registry_module._PRIMITIVES.clear()
    registry_module._PRIMITIVES.update(before)


@pytest.mark.parametrize("closeness", ["kl", "wasserstein"])
def test_every_primitive_is_listed_with_a_reason(model, closeness):
    found = plan(model, BOWL, closeness=closeness)
    assert [e.name for e in found.entries] == [p.name for p in primitives(closeness)]
    text = str(found)
    for entry in found.entries:
        assert entry.reason and entry.name in text
        assert entry.applicable == (entry.make is not None) == (entry.law is not None)
    (line,) = (line for line in text.splitlines() if line.startswith(" > "))
    assert found.choice.name in line and found.choice.law in line
    assert max(len(line) for line in text.splitlines()) < 130


def test_the_text_holds_hardness_and_advice(model):
    text = " ".join(str(plan(model, BOWL)).split())
    assert "arXiv 2602.16570, Theorem 4.1" in text and "closeness='wasserstein'" in text


def test_the_html_is_balanced_and_escaped(own_primitive):
    @own_primitive("<b>", order=1)
    def tag(problem):
        return declines("a < b & c")

    html = plan(dist.Normal(0.0, 1.0), rewards.Linear(1.0))._repr_html_()
    assert "<b>" not in html and "&lt;b&gt;" in html and "a &lt; b &amp; c" in html
    opened = []

    class Check(HTMLParser):
        def handle_starttag(self, name, attrs):
            opened.append(name)

        def handle_endtag(self, name):
            assert opened.pop() == name

    Check().feed(html)
    assert opened == []


def test_the_dictionary_is_json_and_says_the_same(model):
    found = plan(model, BOWL)
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert data["choice"] == found.choice.name and data["kind"] == "diffusion"
    assert len(data["entries"]) == len(found.entries)
    picked = next(e for e in data["entries"] if e["name"] == found.choice.name)
    assert picked["acceptance"] == found.choice.acceptance and "make" not in picked
    assert data["hardness"][0]["source"].endswith("Theorem 4.1")


def test_an_infinite_cost_becomes_null():
    entry = Entry("x", False, "why", cost=math.inf)
    assert entry.to_dict()["cost"] is None


def test_a_primitive_of_ones_own_is_asked_and_picked(own_primitive, program):
    seen = []

    @own_primitive("Mine", order=5)
    def mine(problem):
        seen.append(problem)
        return applies(
            "always",
            lambda **options: ImportanceSampler(problem.aligned(), **options),
            "consistent",
            "joint tilt",
            acceptance=0.5,
        )

    found = plan(program, lambda x: 0.1 * x, 2.0)
    assert found.choice.name == "Mine" and found.entries[0].name == "Mine"
    assert seen[0].beta == 2.0 and seen[0].kind == "program"
    assert found.run(50, seed=0).sampler == "ImportanceSampler"
    # Nothing was left to predict, so no pilot was drawn.
    assert found.entry("ImportanceSampler").acceptance is None

    @own_primitive("Mine", order=5)
    def mine_again(problem):
        return declines("not today")

    again = plan(program, lambda x: 0.1 * x)
    assert [e.name for e in again.entries].count("Mine") == 1
    assert again.choice.name == "ImportanceSampler"


def test_an_entry_that_applies_needs_a_sampler_and_a_law():
    with pytest.raises(ValueError, match="make="):
        Entry("x", True, "because")
    with pytest.raises(ValueError, match="law"):
        applies("because", lambda **_: None, "certain", "joint tilt")


def test_a_closeness_of_ones_own_is_refused():
    with pytest.raises(ValueError, match="closeness must be one of"):
        register_primitive("x", closeness="hellinger", order=1)


@pytest.mark.parametrize(
    "arguments,error,message",
    [
        ({"closeness": "tv"}, ValueError, "closeness must be one of kl, wasserstein"),
        ({"beta": math.nan}, ValueError, "beta must be finite"),
        ({"beta": "2"}, TypeError, "beta"),
        ({"num_pilot": -1}, ValueError, "num_pilot"),
        ({"num_pilot": 0.5}, TypeError, "num_pilot"),
        ({"min_acceptance": 1.5}, ValueError, "min_acceptance"),
        ({"of": ["x", "z"]}, TypeError, "of must name one site"),
        ({"reward": 3.0}, TypeError, "callable"),
        ({"base_or_program": 3.0}, TypeError, "the base must be"),
        (
            {"base_or_program": torch.distributions.Normal(0.0, 1.0)},
            TypeError,
            "pyro.distributions",
        ),
        ({"base_or_program": dist.Normal(torch.zeros(2), 1.0)}, ValueError, "to_event"),
        ({"base_or_program": dist.Normal(0.0, 1.0), "args": (1,)}, TypeError, "for programs"),
        ({"reward": lambda x: x * math.nan}, ValueError, "(?i)nan"),
        ({"of": "y"}, ValueError, "'y'"),
    ],
)
def test_bad_input(program, arguments, error, message):
    given = {"base_or_program": program, "reward": lambda x: -x.abs(), **arguments}
    with pytest.raises(error, match=message):
        plan(**given)


def test_a_tilt_that_does_not_exist_is_an_error(model):
    with pytest.raises(ValueError, match="(?i)not integrable|does not exist|domain"):
        plan(dist.Exponential(1.0), rewards.Linear(2.0))
    steep = rewards.Quadratic(5.0 * torch.eye(2, dtype=F64))
    with pytest.raises(ValueError, match="not integrable"):
        plan(model, steep)


def test_a_theta_of_another_shape_is_an_error(model):
    with pytest.raises(ValueError, match="event shape"):
        plan(model, rewards.Linear(torch.ones(3, dtype=F64)))


def test_unknown_methods_and_methods_that_do_not_apply(model):
    found = plan(model, LINEAR)
    with pytest.raises(ValueError, match="LinearTilt"):
        found.run(10, method="Magic")
    with pytest.raises(ValueError, match="does not apply"):
        found.run(10, method="Tilted")


def test_options_reach_the_sampler(model):
    sampler = plan(model, LINEAR).sampler(sampler="heun", num_samples=7, seed=3)
    assert sampler.diffusion_sampler == "heun" and sampler.num_samples == 7 and sampler.seed == 3


def test_plans_leave_the_random_state_and_reproduce(program):
    def reward(x):
        return -x.abs()

    pyro.set_rng_seed(11)
    expected = torch.rand(3)
    pyro.set_rng_seed(11)
    first = plan(program, reward, seed=4)
    assert torch.equal(torch.rand(3), expected)
    again, other = plan(program, reward, seed=4), plan(program, reward, seed=5)
    assert first.choice.acceptance == again.choice.acceptance != other.choice.acceptance


@pytest.mark.parametrize("size,said", [(None, True), (0, False), (64, True)])
def test_the_size_of_the_pilot(program, size, said):
    entry = plan(program, lambda x: -x.abs(), num_pilot=size).entry("ImportanceSampler")
    assert (entry.acceptance is not None) == said
    assert (f"pilot of {size or 512} base draws" in entry.reason) == said


def test_no_pilot_where_structure_decides():
    calls = []

    class Spy(dist.Normal):
        def rsample(self, sample_shape=torch.Size()):  # noqa: B008
            calls.append(torch.Size(sample_shape).numel() * self.batch_shape.numel())
            return super().rsample(sample_shape)

        def expand(self, batch_shape, _instance=None):
            return Spy(self.loc.expand(batch_shape), self.scale.expand(batch_shape))

    plan(Spy(0.0, 1.0), rewards.Linear(1.0))
    assert max(calls, default=0) <= 1
    plan(Spy(0.0, 1.0), rewards.Linear(1.0), num_pilot=100)
    assert max(calls) == 100


def test_arguments_go_to_the_program():
    def shifted(shift, scale=1.0):
        return pyro.sample("x", dist.Normal(shift, scale))

    found = plan(
        shifted,
        rewards.Bounded(lambda x: -x.square(), low=-math.inf, high=0.0),
        args=(torch.tensor(3.0),),
        kwargs={"scale": 0.1},
    )
    # At 3 the weight is about e^-9.
    assert found.entry("Rejection").acceptance == pytest.approx(math.exp(-9.0), rel=0.5)
    mean = found.run(200, seed=0, method="ImportanceSampler").expectation("x")
    assert float(mean) == pytest.approx(3.0 / 1.02, abs=0.05)


def test_the_reward_may_read_another_site(program):
    found = plan(program, rewards.Bounded(lambda z: -z.square(), -math.inf, 0.0), 3.0, of="z")
    draws = found.run(4000, seed=0).samples
    # z ~ N(.3, 1) times e^{-3 z^2} is N(.3 / 7, 1 / 7); x follows z.
    assert float(draws["z"].mean()) == pytest.approx(0.3 / 7, abs=4.5 * (1 / 7 / 4000) ** 0.5)
    assert float(draws["x"].var()) == pytest.approx(1 / 7 + 0.25, rel=0.1)
