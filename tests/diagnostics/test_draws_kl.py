# SPDX-License-Identifier: Apache-2.0
"""Divergences of the laws that draws follow, against those laws by enumeration."""

import math
from functools import partial

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_tilt import align, rewards
from pyro_tilt.diagnostics import kl, kl_to_base, plot_reward, reward_kl_frontier, summary
from pyro_tilt.diagnostics.draws_kl import kl_of_draws
from pyro_tilt.infer import (
    GSI,
    LCB,
    BestOfN,
    ExpBestOfN,
    ImportanceSampler,
    RewardGuided,
    RewardShifted,
    SoftBestOfN,
    SpeculativeRejection,
    TruncatedRejection,
)
from pyro_tilt.language import TabularLM, laws

BETA = 3.0
LM = TabularLM.random(3, 3, seed=4, temperature=0.7)
TABLE = torch.randn(27, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
# Ties at the top, so that the mass of a class and that of an outcome differ.
TABLE[LM.law().sort().indices[[8, 13, 16]]] = 1.2 * TABLE.max()
BASE = LM.law()
DRAFT = LM.tempered(2.0)
HIGH = BETA * float(TABLE.max())
REWARD = rewards.Bounded(lambda y: TABLE[LM.index(y)], low=-9.0, high=float(TABLE.max()))
OUTCOMES = (BASE, TABLE)
pytestmark = pytest.mark.filterwarnings("ignore::pyro_tilt.infer.SamplerWarning")

RULES = {
    BestOfN: lambda n: laws.best_of_n(BASE, TABLE, n),
    SoftBestOfN: lambda n: laws.soft_best_of_n(BASE, TABLE, BETA, n),
    ExpBestOfN: lambda n: laws.exp_best_of_n(BASE, TABLE, BETA, n),
    TruncatedRejection: lambda n: laws.truncated_rejection(BASE, TABLE, BETA, n),
}


def run(sampler, n, **options):
    options = {"num_samples": 5000, "seed": n, "progress": False, **options}
    if sampler not in (BestOfN, SpeculativeRejection):
        options["beta"] = BETA
    return sampler(LM.program(), reward=REWARD, n=n, **options).run()


@pytest.mark.parametrize("n", [2, 4, 16])
@pytest.mark.parametrize("sampler", RULES)
def test_a_rule_has_the_divergence_of_its_own_law(sampler, n):
    result = run(sampler, n)
    law = RULES[sampler](n)
    exact = float(kl.exact(law, BASE))
    (known,) = reward_kl_frontier(result, outcomes=OUTCOMES)
    assert known.kl_kind == "exact" and known.kl.value == pytest.approx(exact, abs=1e-12)
    (point,) = reward_kl_frontier(result)
    assert point.kl_kind == "estimate" and 0.0 < point.kl.error < 0.05
    # A test of t with 9 degrees of freedom at 9: a false alarm at 1e-5.
    assert abs(point.kl.value - exact) < 9.0 * point.kl.error
    assert abs(point.reward.value - float(law @ TABLE)) < 4.9 * point.reward.error
    if n == 2 and sampler is not BestOfN:
        target = float(kl.exact(laws.tilt(BASE, TABLE, BETA), BASE))
        assert abs(target - exact) > 20.0 * point.kl.error


def test_stated_errors_are_those_over_seeds():
    found = [kl_of_draws(run(SoftBestOfN, 4, seed=s, num_samples=400))[0] for s in range(150)]
    values, errors = torch.tensor(found).double().T
    exact = float(kl.exact(RULES[SoftBestOfN](4), BASE))
    # The standard deviation of the ratio is .06, of which 4.6 make .27: false alarms at 1e-5.
    assert 0.73 < float(values.std() / errors.square().mean().sqrt()) < 1.27
    assert abs(float(values.mean()) - exact) < 4.5 * float(values.std()) / math.sqrt(150)


@pytest.mark.parametrize("sampler", RULES)
def test_one_draw_costs_nothing(sampler):
    found, kind = kl_of_draws(run(sampler, 1, num_samples=50))
    if sampler is TruncatedRejection:
        # It proposes once and falls back: another law than the base.
        assert kind == "estimate" and found.value > 0.0
    else:
        assert (found.value, kind) == (0.0, "exact")


def test_best_of_n_without_ties_is_at_its_bound():
    program = partial(pyro.sample, "x", dist.Normal(0.0, 1.0))
    result = BestOfN(program, reward=lambda x: x, n=4, num_samples=200, seed=0).run()
    found, kind = kl_of_draws(result)
    assert kind == "bound" and found.value == kl.best_of_n_bound(4)


def test_observations_belong_to_the_base():
    """The base given its observations, of which the draws of a choice know by their weights."""
    prior = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    seen = torch.tensor([0.2, 0.9, 0.5], dtype=torch.float64)
    table = torch.tensor([0.0, -1.0, 1.5], dtype=torch.float64)

    def program():
        x = pyro.sample("x", dist.Categorical(prior))
        pyro.sample("y", dist.Bernoulli(seen[x]), obs=torch.tensor(1.0, dtype=torch.float64))
        return x

    result = SoftBestOfN(
        program, reward=lambda x: table[x], n=3, num_samples=5000, seed=0, progress=False
    ).run()
    law = laws.soft_best_of_n(prior, table + seen.log(), 1.0, 3)
    exact = float(kl.exact(law, prior * seen / (prior @ seen)))
    found, kind = kl_of_draws(result)
    assert kind == "estimate" and abs(found.value - exact) < 9.0 * found.error < 0.1


@pytest.mark.parametrize("seed", [0, 1])
def test_lcb_has_the_divergence_of_the_clipped_tilt(seed):
    result = LCB(
        LM.program(), reward=REWARD, beta=BETA, epsilon=0.4, num_samples=20_000, seed=seed,
        progress=False,
    ).run()  # fmt: skip
    law = (BASE.log() + (BETA * TABLE).clamp(max=result.info["baseline"])).softmax(-1)
    exact = float(kl.exact(law, BASE))
    found, kind = kl_of_draws(result)
    assert kind == "estimate" and abs(found.value - exact) < 4.9 * found.error < 0.1
    assert abs(kl_to_base(result).value - exact) > 4.9 * found.error


def test_summary_and_plot_speak_of_the_law_of_the_draws():
    clipped = LCB(
        LM.program(),
        reward=REWARD,
        beta=BETA,
        epsilon=0.4,
        num_samples=2000,
        seed=0,
        progress=False,
    ).run()
    soft = LM.soft_values(TABLE, BETA)
    blocks = run(next(iter(RULES)), 4, block=1, value=LM.value_function(soft), num_samples=20)
    for result, words in ((clipped, "KL spent {0:.2f}"), (blocks, "KL spent at most {0:.3g} nats")):
        found, kind = kl_of_draws(result)
        stated = summary(result).to_dict()["kl"]
        assert stated == {"value": found.value, "error": found.error, "kind": kind}
        row = " ".join(str(summary(result)).split())
        assert words.format(found.value) in row
        title = plot_reward(result).get_title(loc="left")
        assert words.format(found.value) in title
        plt.close("all")
    assert abs(kl_to_base(clipped).value - kl_of_draws(clipped)[0].value) > 0.01


@pytest.mark.parametrize("block", [1, 2])
@pytest.mark.parametrize("sampler", RULES)
def test_choices_by_blocks_state_a_bound(sampler, block):
    soft = LM.soft_values(TABLE, BETA)
    options = {"block": block, "value": LM.value_function(soft), "num_samples": 20}
    for n in (1, 2, 16):
        found, kind = kl_of_draws(run(sampler, n, **options))
        assert kind == "bound"
        choose = {
            BestOfN: partial(laws.best_of_n, n=n),
            SoftBestOfN: partial(laws.soft_best_of_n, beta=1.0, n=n),
            ExpBestOfN: partial(laws.exp_best_of_n, beta=1.0, n=n),
            TruncatedRejection: partial(laws.truncated_rejection, beta=1.0, n=n, log_bound=HIGH),
        }[sampler]
        law = laws.blockwise(BASE.reshape(3, 3, 3), soft, block, choose).flatten()
        exact = float(kl.exact(law, BASE))
        assert exact - 1e-12 <= found.value <= max(12.0 * exact, 3.0 * math.log(n + 1.0))


@pytest.mark.parametrize("sampler", [SoftBestOfN, ExpBestOfN])
def test_rewards_without_ties_are_gathered_in_levels(sampler):
    """Normal base and linear reward: the law of the choice by quadrature on a fine grid."""
    grid = torch.linspace(-6.0, 6.0, 4001, dtype=torch.float64)
    masses = (-0.5 * grid.square()).softmax(-1)
    rule = laws.soft_best_of_n if sampler is SoftBestOfN else laws.exp_best_of_n
    exact = float(kl.exact(rule(masses, grid, 2.0, 8), masses))
    program = partial(pyro.sample, "x", dist.Normal(0.0, 1.0))
    result = sampler(program, reward=lambda x: x, beta=2.0, n=8, num_samples=2000, seed=1).run()
    assert len(result.base.reward.unique()) > 1000
    found, kind = kl_of_draws(result)
    assert kind == "estimate" and abs(found.value - exact) < 9.0 * found.error < 0.3


def test_what_is_not_known_is_not_made_up():
    rejected = run(SpeculativeRejection, 8, alpha=0.0, num_samples=20)
    found, kind = kl_of_draws(rejected)
    assert (found.value, kind) == (math.log(8), "bound")
    pair = {"draft": DRAFT.program(), "reward": REWARD, "num_samples": 50, "seed": 0}
    value = LM.value_function(LM.soft_values(TABLE, BETA))
    for result in (
        GSI(LM.program(), beta=BETA, n=4, block=1, value=value, **pair).run(),
        # Fifty draws of the draft are too few to stand for the target.
        GSI(LM.program(), beta=BETA, n=1, threshold=-math.inf, **pair).run(),
        RewardGuided(LM.program(), **pair).run(),
        RewardGuided(LM.program(), block=1, value=value, **pair).run(),
    ):
        for outcomes in (None, OUTCOMES):
            found, kind = kl_of_draws(result, outcomes)
            assert math.isnan(found.value) and math.isnan(found.error) and kind == "unknown"
        (point,) = reward_kl_frontier(result)
        assert point.kl_kind == "unknown"


def check_estimate(result, law, reward=TABLE):
    exact = float(kl.exact(law, BASE))
    (point,) = reward_kl_frontier(result, outcomes=OUTCOMES)
    # A test of t with 9 degrees of freedom at 9: a false alarm at 1e-5.
    assert point.kl_kind == "estimate" and abs(point.kl.value - exact) < 9.0 * point.kl.error
    assert point.kl.error < 0.05
    assert abs(point.reward.value - float(law @ reward)) < 4.9 * point.reward.error
    return exact, point.kl.error


GUIDED = {
    "published": {"threshold": 0.4},
    "debiased": {"threshold": 0.4, "fallback": "debiased"},
    "never": {"threshold": -math.inf},
    "always": {"threshold": math.inf},
    "exact": {"accept": "exact", "log_bound": HIGH + 3.0},
}


@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize("name", GUIDED)
def test_guided_speculation_has_the_divergence_of_its_own_law(name, n):
    options = GUIDED[name]
    small = DRAFT.law()
    if name == "exact":
        bound = options["log_bound"]
        law = laws.exact_accept(small, BASE, TABLE, BETA, n, log_bound=bound)
    else:
        fallback = options.get("fallback", "published")
        law = laws.gsi(small, BASE, TABLE, BETA, n, options["threshold"], fallback)
    result = GSI(
        LM.program(),
        draft=DRAFT.program(),
        reward=REWARD,
        beta=BETA,
        n=n,
        num_samples=5000,
        seed=n,
        progress=False,
        **options,
    ).run()
    exact, error = check_estimate(result, law)
    target = float(kl.exact(laws.tilt(BASE, TABLE, BETA), BASE))
    assert abs(exact - target) > 20.0 * error


def test_reward_guided_draws_have_the_divergence_of_their_law_where_they_were_scored():
    options = {"draft": DRAFT.program(), "reward": REWARD, "num_samples": 5000, "seed": 0}
    every = RewardGuided(LM.program(), threshold=math.inf, score_drafts=True, **options).run()
    assert kl_of_draws(every) == ((0.0, 0.0), "exact")
    for threshold in (0.3, -math.inf):
        result = RewardGuided(LM.program(), threshold=threshold, score_drafts=True, **options).run()
        check_estimate(result, laws.reward_guided(DRAFT.law(), BASE, TABLE, threshold))
        plain = RewardGuided(LM.program(), threshold=threshold, **options).run()
        assert torch.equal(plain.samples["tokens"], result.samples["tokens"])
        assert result.info["target_rows"] == plain.info["target_rows"] + 5000


def test_errors_of_guided_speculation_are_those_over_seeds():
    options = {"draft": DRAFT.program(), "reward": REWARD, "beta": BETA, "n": 2, "threshold": 0.4}
    found = [
        kl_of_draws(GSI(LM.program(), num_samples=600, seed=s, progress=False, **options).run())[0]
        for s in range(100)
    ]
    values, errors = torch.tensor(found).double().T
    exact = float(kl.exact(laws.gsi(DRAFT.law(), BASE, TABLE, BETA, 2, 0.4), BASE))
    # The standard deviation of the ratio is .075, of which 4.5 make .34: false alarms at 1e-5.
    assert 0.66 < float(values.std() / errors.square().mean().sqrt()) < 1.34
    assert abs(float(values.mean()) - exact) < 4.5 * float(values.std()) / math.sqrt(100)


@pytest.mark.parametrize("rule", ["normalised", "published"])
def test_shifted_draws_know_the_divergence_of_their_law(rule):
    aligned, before = (TabularLM.random(3, 3, seed=s, scale=0.7) for s in (7, 8))
    law = torch.ones(1, dtype=torch.float64)
    for t in range(3):
        start = LM.enumerate()[:, :t].unique(dim=0) if t else torch.zeros(1, 0).long()
        given = [model.next_log_probs(start).exp() for model in (LM, aligned, before)]
        law = (law[:, None] * laws.shifted_speculative(*given, rule=rule)).flatten()
    result = RewardShifted(
        LM.program(),
        aligned=aligned.program(),
        reference=before.program(),
        rule=rule,
        reward=REWARD,
        num_samples=20_000,
        max_batch=7000,
        seed=0,
        progress=False,
    ).run()
    assert torch.equal(result.stats["reward"], TABLE[LM.index(result.samples["tokens"])])
    assert result.beta is None and result.cost.reward_calls == 20_000
    check_estimate(result, law)
    each = (law.log() - BASE.log())[LM.index(result.samples["tokens"])]
    torch.testing.assert_close(result.stats["log_ratio"], each, atol=1e-6, rtol=0.0)


def test_weighted_draws_have_the_divergence_of_the_tilt():
    result = ImportanceSampler(
        align(LM.program(), REWARD, BETA), num_samples=20_000, seed=0, progress=False
    ).run()
    exact = float(kl.exact(laws.tilt(BASE, TABLE, BETA), BASE))
    found, kind = kl_of_draws(result)
    assert kind == "estimate" and abs(found.value - exact) < 4.9 * found.error
    found, kind = kl_of_draws(result, OUTCOMES)
    assert kind == "exact" and found.value == pytest.approx(exact, abs=1e-12)
