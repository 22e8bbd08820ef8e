# SPDX-License-Identifier: Apache-2.0
"""ExpBestOfN and TruncatedRejection against their exact laws, costs and certificates."""

import math
from functools import partial

import pytest
import torch
from scipy import stats

from pyro_tilt import align, rewards
from pyro_tilt.infer import ExpBestOfN, SamplerWarning, TruncatedRejection, ZeroWeights
from pyro_tilt.infer.early_exit import miss_upper
from pyro_tilt.language import TabularLM, laws
from pyro_tilt.testing.gates import chi_square
from pyro_tilt.testing.sampler_case import SamplerTestCase

DRAWS, LEAST, BETA = 200_000, 1e-4, 1.5
LM = TabularLM.random(4, 3, seed=2)
TABLE = torch.randn(64, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
TABLE[::7] = TABLE[3]
TABLE[5] = -math.inf
HIGH = float(TABLE.max())


def reward(tokens):
    return TABLE[LM.index(tokens)]


BOUNDED = rewards.Bounded(reward, low=-math.inf, high=HIGH)


class _Case(SamplerTestCase):
    """With so many proposals that a miss does not happen."""

    options = {"n": 200}

    def test_nan_and_plus_inf_rewards_raise(self, value=math.nan):
        super().test_nan_and_plus_inf_rewards_raise(value)


class TestExpBestOfN(_Case):
    sampler = ExpBestOfN


class TestTruncatedRejection(_Case):
    sampler = TruncatedRejection

    @pytest.mark.parametrize("observed", [False])
    def test_law_over_states(self, observed):
        super().test_law_over_states(observed)


def run(sampler, n, *, law_reward=BOUNDED, seed=0, num_samples=DRAWS, **options):
    return sampler(
        LM.program(),
        reward=law_reward,
        beta=BETA,
        n=n,
        num_samples=num_samples,
        seed=seed,
        progress=False,
        **options,
    ).run()


@pytest.mark.filterwarnings("ignore::pyro_tilt.infer.SamplerWarning")
@pytest.mark.parametrize("log_bound", [None, BETA * HIGH + 1.0])
@pytest.mark.parametrize("n", [1, 3, 9])
def test_exp_law_its_hits_and_its_misses(n, log_bound):
    result = run(ExpBestOfN, n, log_bound=log_bound, seed=n)
    rows, hit = LM.index(result.samples["tokens"]), result.stats["hit"]
    parts = laws.exp_best_of_n_parts(LM.law(), TABLE, BETA, n, log_bound=log_bound)
    assert chi_square(rows, laws.exp_best_of_n(LM.law(), TABLE, BETA, n)) > LEAST
    assert chi_square(rows[hit], parts.target) > LEAST
    assert chi_square(rows[~hit], parts.miss) > LEAST
    assert chi_square(rows[~hit], LM.law()) < 1e-6 or n == 1
    rate = float(parts.hit_probability)
    spread = math.sqrt(rate * (1.0 - rate) / DRAWS)
    assert abs(result.info["hit_rate"] - rate) < 4.5 * spread


@pytest.mark.filterwarnings("ignore::pyro_tilt.infer.SamplerWarning")
@pytest.mark.parametrize("n", [1, 4])
def test_truncated_law(n):
    result = run(TruncatedRejection, n, seed=n)
    rows, hit = LM.index(result.samples["tokens"]), result.stats["hit"]
    assert chi_square(rows, laws.truncated_rejection(LM.law(), TABLE, BETA, n)) > LEAST
    assert chi_square(rows[hit], laws.tilt(LM.law(), TABLE, BETA)) > LEAST
    assert chi_square(rows[~hit], LM.law()) > LEAST
    last = laws.truncated_rejection(LM.law(), TABLE, BETA, n, fallback="last")
    assert chi_square(rows, last) < 1e-6


@pytest.mark.filterwarnings("ignore::pyro_tilt.infer.SamplerWarning")
def test_without_a_bound_all_are_drawn_and_the_law_is_the_same():
    result = run(ExpBestOfN, 4, law_reward=reward, seed=1)
    rows = LM.index(result.samples["tokens"])
    assert chi_square(rows, laws.exp_best_of_n(LM.law(), TABLE, BETA, 4)) > LEAST
    assert result.cost.base_draws == 4 * DRAWS
    assert result.certificate.law == "consistent" and result.certificate.budget == "n"
    assert not bool(result.stats["hit"].any())
    with pytest.raises(ValueError, match="needs a bound"):
        run(TruncatedRejection, 4, law_reward=reward)


@pytest.mark.filterwarnings("ignore::pyro_tilt.infer.SamplerWarning")
@pytest.mark.parametrize("max_batch", [None, 7])
def test_early_exit_costs_what_it_should(max_batch):
    count = DRAWS if max_batch is None else 400
    result = run(ExpBestOfN, 16, seed=4, num_samples=count, max_batch=max_batch)
    accept = float((LM.law() * (BETA * (TABLE - HIGH)).exp()).sum())
    expected = (1.0 - (1.0 - accept) ** 16) / accept
    looked = result.stats["proposals"].double()
    assert abs(float(looked.mean()) - expected) < 4.5 * float(looked.std()) / math.sqrt(count)
    # What is drawn beyond that lies behind hits, and is counted.
    assert result.cost.base_draws == result.info["total_proposals"] + result.info["wasted"]
    assert result.cost.base_draws < 1.3 * float(looked.sum())
    rows = LM.index(result.samples["tokens"])
    assert chi_square(rows, laws.exp_best_of_n(LM.law(), TABLE, BETA, 16)) > LEAST


@pytest.mark.filterwarnings("ignore::pyro_tilt.infer.SamplerWarning")
@pytest.mark.parametrize("sampler", [ExpBestOfN, TruncatedRejection])
def test_certificate_bounds_the_distance(sampler):
    law = laws.exp_best_of_n if sampler is ExpBestOfN else laws.truncated_rejection
    target, below = laws.tilt(LM.law(), TABLE, BETA), 0
    parts = laws.exp_best_of_n_parts(LM.law(), TABLE, BETA, 6)
    miss = 1.0 - float(parts.hit_probability)
    distance = float(0.5 * (law(LM.law(), TABLE, BETA, 6) - target).abs().sum())
    for seed in range(60):
        result = run(sampler, 6, seed=seed, num_samples=300, confidence=0.8)
        certificate = result.certificate
        assert certificate.law == "bounded" and certificate.confidence == 0.8
        assert certificate.total_variation > distance
        below += certificate.total_variation < miss
    # At 80 % confidence twelve of 60 are below the miss probability; 28 or more once in 10^5.
    assert 0 < below < 28
    nothing = run(sampler, 1, log_bound=60.0, num_samples=20)
    assert nothing.certificate.law == "consistent"


def test_a_wrong_bound_is_noticed():
    for sampler in (ExpBestOfN, TruncatedRejection):
        with pytest.raises(ValueError, match="above the bound"):
            run(sampler, 3, log_bound=0.0)
        with pytest.raises(ValueError, match="log_bound must be finite"):
            run(sampler, 3, log_bound=math.nan)
        with pytest.raises(ValueError, match="confidence"):
            run(sampler, 3, confidence=1.0)
        for n in (0, 1.5, True):
            with pytest.raises(ValueError, match="n must be"):
                run(sampler, n)
    with pytest.raises(ValueError, match="give block="):
        run(ExpBestOfN, 3, value=lambda c, t: c)


@pytest.mark.parametrize("block", [1, 2, 3])
def test_blocks(block):
    table = TABLE.clamp(min=-3.0)
    soft = LM.soft_values(table, BETA)
    result = ExpBestOfN(
        align(LM.program(), lambda y: table[LM.index(y)], BETA),
        value=LM.value_function(soft),
        n=3,
        block=block,
        exact_values=True,
        num_samples=DRAWS,
        seed=block,
        progress=False,
    ).run()
    base = LM.law().reshape(4, 4, 4)
    law = laws.blockwise(base, soft, block, partial(laws.exp_best_of_n, beta=1.0, n=3))
    assert chi_square(LM.index(result.samples["tokens"]), law.flatten()) > LEAST
    assert result.certificate.law == "consistent"
    assert math.isnan(float(result.log_normalizer))


@pytest.mark.filterwarnings("ignore::pyro_tilt.infer.SamplerWarning")
@pytest.mark.parametrize(
    ("block", "n", "log_bound"), [(1, 2, None), (1, 1, 3.5), (2, 3, None), (3, 2, None)]
)
def test_truncated_blocks(block, n, log_bound):
    soft = LM.soft_values(TABLE, BETA)
    bound = BETA * HIGH if log_bound is None else log_bound
    result = TruncatedRejection(
        align(LM.program(), BOUNDED, BETA),
        value=LM.value_function(soft),
        n=n,
        block=block,
        exact_values=True,
        log_bound=log_bound,
        num_samples=DRAWS,
        seed=block,
        progress=False,
    ).run()
    rows, base = LM.index(result.samples["tokens"]), LM.law().reshape(4, 4, 4)

    def law(**options):
        choose = partial(laws.truncated_rejection, beta=1.0, log_bound=bound, **options)
        return laws.blockwise(base, soft, block, choose).flatten()

    assert chi_square(rows, law(n=n)) > LEAST
    assert chi_square(rows, law(n=n + 1)) < 1e-6
    assert chi_square(rows, law(n=n, fallback="last")) < 1e-6
    certificate, distance = result.certificate, law(n=n) - laws.tilt(LM.law(), TABLE, BETA)
    assert certificate.law == "bounded"
    assert float(0.5 * distance.abs().sum()) < certificate.total_variation
    fallbacks = result.stats["fallbacks"]
    assert int(fallbacks.max()) == math.ceil(3 / block) and result.cost.base_draws == DRAWS * (
        n + 1
    )
    assert torch.equal(result.stats["hit"], fallbacks == 0)
    assert torch.equal(result.stats["lost"], rows == 5)
    assert math.isnan(float(result.log_normalizer))
    # Of several blocks a hit tells of the chance that the rest hits as well.
    if block == 3:
        assert chi_square(rows[result.stats["hit"]], laws.tilt(LM.law(), TABLE, BETA)) > LEAST


def test_truncated_blocks_with_many_copies_are_the_tilt():
    soft = LM.soft_values(TABLE, BETA)
    options = {"value": LM.value_function(soft), "block": 1, "num_samples": 4000, "seed": 3}
    aligned = align(LM.program(), BOUNDED, BETA)
    many = TruncatedRejection(aligned, n=100, exact_values=True, **options).run()
    assert chi_square(LM.index(many.samples["tokens"]), laws.tilt(LM.law(), TABLE, BETA)) > LEAST
    assert many.certificate.total_variation < 0.1
    plugged = TruncatedRejection(aligned, **{**options, "num_samples": 5}).run()
    assert plugged.certificate.law == "search"


def test_truncated_blocks_need_a_bound_that_holds():
    soft = LM.soft_values(TABLE, BETA)
    options = {"value": LM.value_function(soft), "block": 1, "num_samples": 500, "seed": 0}
    with pytest.raises(ValueError, match="needs a bound"):
        TruncatedRejection(align(LM.program(), reward, BETA), **options).run()
    with pytest.raises(ValueError, match="above the bound"):
        TruncatedRejection(align(LM.program(), BOUNDED, BETA), log_bound=0.0, **options).run()
    with pytest.raises(ValueError, match="give block="):
        TruncatedRejection(align(LM.program(), BOUNDED, BETA), value=LM.value_function(soft))
    for name, wrong in (("n", 0), ("block", 0), ("confidence", 1.0)):
        with pytest.raises(ValueError, match=f"{name} must"):
            TruncatedRejection(align(LM.program(), BOUNDED, BETA), **{**options, name: wrong})


def test_draws_of_weight_zero_are_told():
    nothing = rewards.Bounded(
        lambda y: torch.full(y.shape[:-1], -math.inf), low=-math.inf, high=0.0
    )
    for sampler in (ExpBestOfN, TruncatedRejection):
        with pytest.raises(ZeroWeights) as error:
            run(sampler, 2, law_reward=nothing, num_samples=5)
        assert len(error.value.partial) == 5
        with pytest.warns(SamplerWarning, match="weight zero"):
            result = run(sampler, 1, num_samples=2000)
        assert torch.equal(result.stats["lost"], LM.index(result.samples["tokens"]) == 5)
        assert not bool((result.stats["lost"] & result.stats["hit"]).any())


@pytest.mark.parametrize(("misses", "num"), [(0, 50), (3, 300), (40, 60)])
def test_upper_bound_of_the_share_of_misses(misses, num):
    """At the bound so few misses are seen with the probability left over."""
    for confidence in (0.8, 0.99):
        upper = miss_upper(misses, num, confidence)
        assert stats.binom.cdf(misses, num, upper) == pytest.approx(1.0 - confidence)
    assert miss_upper(num, num, 0.9) == 1.0
