# SPDX-License-Identifier: Apache-2.0
import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_tilt import scan
from pyro_tilt.infer import LCB, ZeroWeights
from pyro_tilt.infer.stepwise import learn_baselines, load_baselines
from pyro_tilt.infer.stepwise.split import split_by_cost
from pyro_tilt.infer.stepwise.training import clipped_mass
from pyro_tilt.infer.twists import load_twist
from pyro_tilt.ops import ClippedLaw

# A | y is Gaussian with mean SLOPES[t] * 0.8 y and standard deviation SLOPES[t].
SLOPES = {1: 1.0, 0: -0.7}
EPSILON = 0.06


def walk():
    def step(x, t):
        return pyro.sample(f"x_{t}", dist.Normal(0.8 * x, 1.0))

    return scan("walk", step, pyro.sample("x_2", dist.Normal(0.5, 1.0)), [1, 0])


MODEL = {
    "reward": lambda x: SLOPES[0] * x,
    "value": lambda x, t: SLOPES[t] * x,
    "tilt_start": False,
}


def learn(seed=0, **options):
    cheap = {"num_chains": 4000, "steps": 120, "width": 16, "depth": 1, "batch_size": 256}
    options = {"epsilon": EPSILON, "progress": False, **cheap, **MODEL, **options}
    return learn_baselines(walk, seed=seed, **options)


@pytest.fixture(scope="module")
def learned():
    return learn()


def states(baselines, count=4000):
    """What the sampler comes through under these baselines, before each step."""
    result = LCB(
        walk,
        baseline=baselines,
        num_samples=count,
        seed=9,
        keep_paths=True,
        progress=False,
        **MODEL,
    ).run()
    return result, {t: result.paths[f"x_{t + 1}"] for t in SLOPES}


def normal_cdf(x):
    return 0.5 * torch.erfc(-x / math.sqrt(2.0))


def exact(y, t, b):
    """Log normaliser, clipped mass and proposals of Gaussian A at every state."""
    sd, mean = abs(SLOPES[t]), 0.8 * SLOPES[t] * y.double()
    log_z = mean + 0.5 * sd**2
    over = (b - log_z).exp() * normal_cdf((mean - b) / sd)
    kappa = normal_cdf((mean + sd**2 - b) / sd) - over
    return log_z, kappa, (b - log_z).exp() / (1.0 - kappa)


def test_heads_find_the_log_mgfs(learned):
    _, before = states(learned)
    for t, y in before.items():
        psi = learned.log_mgf(y, t)
        for k, (s, gate) in enumerate([(1, 0.1), (2, 0.25)]):
            truth = 0.8 * s * SLOPES[t] * y.double() + 0.5 * (s * SLOPES[t]) ** 2
            assert float((psi[:, k] - truth).square().mean().sqrt()) < gate
            assert learned.orders[k] == s


@pytest.mark.parametrize("rule", ["chernoff", "marginal"])
@pytest.mark.parametrize(
    "seed",
    [1, pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)],
)
def test_the_clipped_mass_on_new_states_is_the_one_asked_for(rule, seed):
    baselines = learn(seed, rule=rule)
    result, before = states(baselines)
    total, spent, sharp = 0.0, [], []
    for t, y in before.items():
        _, kappa, proposals = exact(y, t, baselines(y, t))
        total += float(kappa.mean())
        spent.append(float(proposals.mean()))
        sd, share = abs(SLOPES[t]), EPSILON / 3
        lam = torch.linspace(0.05, 12.0, 400).double()
        c = lam * lam.log() - (1.0 + lam) * (1.0 + lam).log()
        rise = 0.5 * (1.0 + lam) * lam * sd**2 + c - math.log(share)
        log_z = 0.8 * SLOPES[t] * y.double() + 0.5 * sd**2
        sharp.append(float(exact(y, t, log_z + (rise / lam).amin())[2].mean()))
    # Two steps share two thirds of epsilon, and calibration leans to the safe side.
    assert 0.3 < total / (EPSILON * 2 / 3) < 1.25
    # Calibrated, they cost less than the exact bound that they are shaped after.
    assert sum(spent) < sum(sharp)
    assert result.info["clipping"] < 1.6 * EPSILON * 2 / 3
    report = baselines.report
    assert float(report.clipped_mass.sum()) == pytest.approx(total, rel=0.6)
    assert report.proposals.tolist() == pytest.approx(spent, rel=0.25)


def test_no_baseline_lies_below_the_normaliser_nor_far_above_all_values(learned):
    far = torch.linspace(-30.0, 30.0, 200)
    for place, t in enumerate(SLOPES):
        psi, b = learned.log_mgf(far, t), learned(far, t)
        assert bool((b >= psi[:, 0]).all())
        assert bool((b <= torch.maximum(psi[:, 0], learned.ceiling[place])).all())


def test_the_exchange_rule_finds_the_quantile():
    rate = 40.0
    baselines = learn(rule="exchange", exchange_rate=rate, steps=200, draws_per_state=8)
    _, before = states(baselines)
    for t, y in before.items():
        sd = abs(SLOPES[t])
        above = normal_cdf((0.8 * SLOPES[t] * y.double() - baselines(y, t)) / sd)
        assert 0.7 < float(above.mean()) * rate < 1.4
        # The same quantile in every state, unlike a constant baseline.
        assert float(above.std()) * rate < 0.7


def test_a_budget_costs_what_it_says(learned):
    baselines = learn(rule="budget", budget=5.0)
    result, _ = states(baselines)
    assert 4.5 < result.info["proposals_per_step"] < 6.5


def test_split_by_cost_saves_proposals():
    """Gaussian A of five widths at a total of .05: 184.2 proposals against 334.8."""
    sd = torch.tensor([0.1, 0.2, 0.5, 1.0, 1.5]).double().unsqueeze(1)
    mass = torch.logspace(-6, -1.31, 4000).double().expand(5, -1)
    cost = (0.5 * sd**2 + sd * (-2.0 * mass.log()).sqrt()).exp()
    best = split_by_cost(mass, cost, 0.05)
    total = float(cost.gather(1, best.unsqueeze(1)).sum())
    even = (0.5 * sd**2 + sd * math.sqrt(-2.0 * math.log(0.01))).exp()
    assert total == pytest.approx(184.2, abs=0.2)
    assert float(even.sum()) == pytest.approx(334.8, abs=0.05)
    assert float(mass.gather(1, best.unsqueeze(1)).sum()) <= 0.05
    with pytest.raises(ValueError, match="no split of 1e-06"):
        split_by_cost(mass, cost, 1e-6)


def test_baselines_split_by_cost():
    even, split = learn(4), learn(4, split="cost")
    assert float(split.report.proposals.sum()) < 1.02 * float(even.report.proposals.sum())
    assert float(split.report.epsilon.sum()) <= float(even.report.epsilon.sum()) * (1 + 1e-9)
    # The wide step is given more.
    assert float(split.report.epsilon[0]) > float(split.report.epsilon[1])


def test_clipped_mass_of_pairs():
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(3, 5, generator=generator).double()
    base = torch.randn(3, 5, generator=generator).double().log_softmax(-1)
    b = torch.tensor([0.2, 0.9, -0.5]).double()
    law = ClippedLaw(base, A, b)
    log_z = (base + A).logsumexp(-1)
    # Every state as often, every value as often as its kernel says: pairs with these weights.
    copies = (base.exp() * 200_000).round().long().flatten()
    rows = torch.arange(15).repeat_interleave(copies)
    pairs = A.flatten()[rows], log_z.repeat_interleave(5)[rows], b.repeat_interleave(5)[rows]
    assert clipped_mass(*pairs) == pytest.approx(float(law.clipped_mass.mean()), rel=1e-3)
    assert clipped_mass(*pairs, errors=1.0) > clipped_mass(*pairs)
    dead = torch.full((2,), -math.inf).double()
    joined = [torch.cat([a, z]) for a, z in zip(pairs, (dead, torch.zeros(2), torch.zeros(2)))]
    assert clipped_mass(*joined) == pytest.approx(clipped_mass(*pairs))


@pytest.mark.parametrize("rule", ["chernoff", "exchange"])
def test_saved_and_loaded_baselines_agree(rule, tmp_path):
    def features(x):
        return torch.stack([x, x.square()], -1)

    made = learn(rule=rule, steps=20, num_chains=400, features=features)
    made.save(tmp_path / "baselines.pt")
    with pytest.raises(ValueError, match="give it as features="):
        load_baselines(tmp_path / "baselines.pt")
    found = load_baselines(tmp_path / "baselines.pt", features=features)
    x = torch.linspace(-3.0, 3.0, 7)
    assert all(torch.equal(made(x, t), found(x, t)) for t in SLOPES)
    assert torch.equal(found.report.clipped_mass, made.report.clipped_mass)
    assert (found.rule, found.orders, found.epsilon) == (rule, [1.0, 2.0, 3.0], EPSILON)
    with pytest.raises(ValueError, match="holds no learned twist"):
        load_twist(tmp_path / "baselines.pt")
    torch.save({"a": 1}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="holds no learned baselines"):
        load_baselines(tmp_path / "other.pt")
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_sampler_can_learn_by_itself():
    def sampler(baseline="learned"):
        options = {"num_training": 500, "num_samples": 300, "progress": False, **MODEL}
        return LCB(walk, baseline=baseline, seed=5, **options)

    one = sampler()
    state = torch.random.get_rng_state()
    first = one.run()
    assert torch.equal(state, torch.random.get_rng_state())
    kept = one.learned
    again, other = one.run(), sampler().run()
    assert one.learned is kept
    assert first.samples["x_0"].equal(again.samples["x_0"])
    assert first.samples["x_0"].equal(other.samples["x_0"])
    assert kept.report.chains == 500
    # Handed over as they are, the baselines give the very same run.
    given = sampler(kept).run()
    assert first.samples["x_0"].equal(given.samples["x_0"])
    assert first.stats["proposals"].equal(given.stats["proposals"])


def test_the_training_leaves_the_random_state_alone_and_reproduces():
    state = torch.random.get_rng_state()
    one, two = (learn(7, steps=10, num_chains=200) for _ in range(2))
    assert torch.equal(state, torch.random.get_rng_state())
    x = torch.linspace(-2.0, 2.0, 5)
    assert torch.equal(one(x, 1), two(x, 1))
    assert not torch.equal(one(x, 1), learn(8, steps=10, num_chains=200)(x, 1))


def test_far_orders_are_left_out():
    """Few pairs cannot tell the log-MGF of order 30, which is no reason to trust its head."""
    baselines = learn(orders=(1, 2, 30), num_chains=1000, steps=30)
    assert baselines.trusted.tolist()[2] == [False, False]
    assert bool((baselines.report.effective_sample_size[2] < 50).all())
    assert bool(baselines.trusted[1].all())


def test_bad_options_are_refused():
    for options, match in [
        ({"rule": "best"}, "rule must be one of"),
        ({"split": "odd"}, "split must be"),
        ({"split": "cost", "rule": "budget"}, "does not use"),
        ({"orders": (2, 3)}, "orders must be 1 and"),
        ({"held_out": 1.0}, "held_out must lie"),
    ]:
        with pytest.raises(ValueError, match=match):
            learn(**options)
    with pytest.raises(ZeroWeights, match="scan 'walk', step 0"):
        learn(value=lambda x, t: torch.full_like(x, -math.inf), num_chains=100)
    with pytest.raises(ValueError, match="needs draws"):
        LCB(walk, baseline="learned", log_mgf=lambda c, x, s: s, **MODEL)
