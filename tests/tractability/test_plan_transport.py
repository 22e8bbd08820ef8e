# SPDX-License-Identifier: Apache-2.0
"""Which proximal map is found under Wasserstein closeness."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_tilt import plan, rewards
from pyro_tilt.infer import MaxOf, TokenScores
from pyro_tilt.language import TabularLM
from pyro_tilt.tractability import primitives

F64 = torch.float64
BASE = dist.Normal(torch.tensor([0.5, -0.2], dtype=F64), 1.0).to_event(1)
FEATURE = torch.tensor([[1.0, -0.5]], dtype=F64)

LINEAR = rewards.Linear(torch.tensor([1.0, -2.0], dtype=F64))
BOWL = rewards.Quadratic(torch.diag(torch.tensor([-9.0, 0.0], dtype=F64)))
PIECES = rewards.MaxAffine(torch.eye(2, dtype=F64), torch.zeros(2, dtype=F64))
CONE = rewards.Concave(lambda x: -(1.0 + x.square().sum(-1)).sqrt(), event_dim=1)
WAVE = rewards.LowDim(lambda u: u.sin().sum(-1), FEATURE, lipschitz=1.0)
BLACK = rewards.BlackBox(lambda x: x.sin().sum(-1), event_dim=1)
CAPPED = rewards.Bounded(BLACK, low=-2.0, high=2.0, event_dim=1)


def prox(word):
    return f"ProximalTransport ({word})"


CASES = [
    (LINEAR, {}, "closed form", "exact"),
    (BOWL, {}, "closed form", "exact"),
    (PIECES, {}, "closed form", "exact"),
    (MaxOf(LINEAR, BOWL), {}, "closed form", "exact"),
    (LINEAR, {"radius": 0.1}, "closed form", "bounded"),
    (BLACK, {"support": torch.zeros(1, 2, dtype=F64)}, "finite support", "exact"),
    (CONE, {}, "concave", "bounded"),
    (WAVE, {}, "few features", "bounded"),
    (BLACK, {"curvature": 1.0, "penalty": 1.5}, "one-sided smooth", "bounded"),
    (BLACK, {"curvature": 1.0, "penalty": 0.5}, "local ascent", "search"),
    (BLACK, {}, "local ascent", "search"),
    (CAPPED, {}, "local ascent", "bounded"),
]


@pytest.mark.parametrize("reward,options,word,law", CASES)
@pytest.mark.filterwarnings("ignore::pyro_tilt.infer.SamplerWarning")
def test_one_map_applies_and_its_certificate_is_foretold(reward, options, word, law):
    found = plan(BASE, reward, closeness="wasserstein", **options)
    assert [entry.name for entry in found.applicable] == [prox(word)]
    assert found.choice is found.applicable[0]
    assert found.choice.law == law
    certificate = found.run(40, seed=0).certificate
    assert certificate.law == law and certificate.target == found.choice.target


def test_the_order_is_that_of_the_certificates():
    names = [primitive.name for primitive in primitives("wasserstein")]
    assert names[0] == prox("closed form") and names[-1] == prox("local ascent")


def test_reasons_say_what_is_missing():
    found = plan(BASE, BLACK, closeness="wasserstein", curvature=1.0, penalty=0.5)
    assert "does not exceed the curvature" in found.entry(prox("one-sided smooth")).reason
    assert "support=" in found.entry(prox("finite support")).reason
    assert "lipschitz" in found.entry(prox("few features")).reason
    found = plan(BASE, BOWL, closeness="wasserstein")
    assert "not needed" in found.entry(prox("concave")).reason


def test_beta_is_folded_into_the_curvature():
    smooth = {"closeness": "wasserstein", "curvature": 1.0, "penalty": 1.5}
    assert plan(BASE, BLACK, 1.4, **smooth).choice.name == prox("one-sided smooth")
    assert plan(BASE, BLACK, 1.6, **smooth).choice.name == prox("local ascent")


def test_hardness_only_where_nothing_is_certified():
    assert plan(BASE, BOWL, closeness="wasserstein").hardness == ()
    (hard,) = plan(BASE, BLACK, closeness="wasserstein").hardness
    assert "derived here" in hard.source
    assert plan(BASE, CONE, closeness="wasserstein").hardness == ()


def test_the_reward_that_is_hard_to_tilt_moves_by_one_line(cube):
    """-kappa <a, x>^2 goes to x - 2 kappa <a, x> a / (lambda + 2 kappa |a|^2), whatever kappa."""
    signs, numbers = cube
    kappa, price = 1e6, 0.7
    reward = rewards.Quadratic(-kappa * torch.outer(numbers, numbers))
    found = plan(signs, reward, closeness="wasserstein", penalty=price)
    assert (found.choice.name, found.choice.law) == (prox("closed form"), "exact")
    result = found.run(200, seed=1)
    start, end = result.stats["base_value"], result.samples["signs"]
    size = 2.0 * kappa
    pull = size * (start @ numbers) / (price + size * numbers.square().sum())
    assert torch.allclose(end, start - pull[:, None] * numbers, atol=1e-9)
    assert float((end @ numbers).abs().max()) < 1e-5


def test_autoregressive_bases_move_token_by_token():
    scores = TokenScores(torch.tensor([[0.0, 2.0, 0.5], [1.0, 0.0, 0.2]], dtype=F64))
    found = plan(TabularLM.random(3, 2), scores, closeness="wasserstein", penalty=1.5)
    assert found.choice.law == "exact"
    result = found.run(300, seed=0)
    before, after = result.stats["base_value"], result.samples["tokens"]
    gain = scores.scores.amax(-1) - scores.scores.gather(-1, before.T).T
    expected = torch.where(gain > 1.5, scores.scores.argmax(-1), before)
    assert bool((gain > 1.5).any()) and not bool((gain > 1.5).all())
    assert torch.equal(after, expected)


def test_diffusions_are_moved_too(model):
    found = plan(model, BOWL, closeness="wasserstein")
    assert (found.choice.cost, found.choice.cost_unit) == (40.0, "denoiser rows")
    result = found.run(50, seed=0)
    start = result.stats["base_value"]
    assert torch.allclose(result.samples["x_0"], start / torch.tensor([19.0, 1.0]).double())


def test_the_cost_of_an_ascent_is_measured_by_a_pilot():
    few = plan(BASE, CONE, closeness="wasserstein", num_pilot=8)
    assert "pilot of 8 draws" in few.choice.reason and few.choice.cost > 1.0
    none = plan(BASE, CONE, closeness="wasserstein", num_pilot=0)
    assert none.choice.name == few.choice.name and none.choice.cost is None
    result = few.run(400, seed=3)
    assert few.choice.cost == pytest.approx(result.cost.reward_calls / 400, rel=0.5)


def test_observations_are_refused_with_their_names():
    def noisy():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("datum", dist.Normal(x, 1.0), obs=torch.tensor(0.4))
        return x

    found = plan(noisy, rewards.Linear(1.0), closeness="wasserstein")
    assert found.choice is None and not found.applicable
    assert all("datum" in entry.reason for entry in found.entries)
    with pytest.raises(ValueError, match="none applies"):
        found.run(10)


@pytest.mark.parametrize(
    "options,message",
    [
        ({"penalty": 1.0, "radius": 1.0}, "not both"),
        ({"penalty": 0.0}, "penalty must be positive"),
        ({"radius": math.inf}, "radius must be positive and finite"),
        ({"curvature": math.nan}, "curvature"),
        ({"cost": "miles"}, "cost"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        plan(BASE, BLACK, closeness="wasserstein", **options)


def test_a_price_below_the_growth_is_an_error():
    cup = rewards.Quadratic(torch.diag(torch.tensor([2.0, 0.0], dtype=F64)))
    with pytest.raises(ValueError, match="run to infinity"):
        plan(BASE, cup, closeness="wasserstein", penalty=4.0)
    assert plan(BASE, cup, closeness="wasserstein", penalty=4.1).choice.law == "exact"


def test_transport_options_belong_to_transport():
    with pytest.raises(ValueError, match="penalty: for closeness='wasserstein' only"):
        plan(BASE, BLACK, penalty=1.0)


def test_a_program_without_a_tensor_has_nothing_to_move():
    def silent():
        pyro.sample("x", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="of="):
        plan(silent, rewards.Linear(1.0), closeness="wasserstein")
    found = plan(silent, rewards.Linear(1.0), closeness="wasserstein", of="x")
    assert found.run(10, seed=0).samples["x"].shape == (10,)
