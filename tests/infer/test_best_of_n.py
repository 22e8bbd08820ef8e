# SPDX-License-Identifier: Apache-2.0
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

from pyro_tilt import rewards
from pyro_tilt.infer import SamplerWarning, ZeroWeights
from pyro_tilt.infer.best_of_n import BestOfN
from pyro_tilt.infer.selection import BlockBestOfN
from pyro_tilt.poutine import align
from pyro_tilt.testing.gates import P_VALUE, chi_square
from pyro_tilt.testing.sampler_case import SamplerTestCase
from pyro_tilt.testing.tabular_diffusion import tabular_masked_diffusion

BASE = torch.tensor([0.05, 0.3, 0.1, 0.25, 0.08, 0.22], dtype=torch.float64)
# Two classes of two and three values, and one excluded value.
TABLE = torch.tensor([1.5, -0.5, 1.5, -0.5, -math.inf, -0.5], dtype=torch.float64)


class TestBestOfN(SamplerTestCase):
    sampler = BestOfN
    options = {"n": 4}

    def make(self, program, **options):
        options.pop("beta", None)
        options.setdefault("reward", rewards.Linear(torch.tensor(1.0)))
        return super().make(program, **options)


# What is left out needs a beta, an evidence or an aligned program.
for _part in (
    "test_law_over_states",
    "test_weights_give_the_target",
    "test_evidence_is_unbiased",
    "test_evidence_error_is_calibrated",
    "test_continuous_moments",
    "test_reward_stat_is_the_reward",
    "test_beta_zero_is_the_base_bit_for_bit",
    "test_raising_beta_raises_the_reward",
    "test_seed_reproduces_and_leaves_global_state",
    "test_unseeded_runs_follow_the_global_seed",
    "test_no_bar_on_short_work",
    "test_chains_are_independent_runs",
    "test_plates",
    "test_beta_needs_a_reward",
    "test_minus_inf_somewhere_never_survives",
    "test_extreme_beta_does_not_overflow",
    "test_nested_align_adds_up",
):
    assert callable(getattr(SamplerTestCase, _part))
    setattr(TestBestOfN, _part, None)


def categories():
    return pyro.sample("x", dist.Categorical(BASE))


def normal():
    return pyro.sample("x", dist.Normal(0.0, 1.0))


def best_law(base, reward, n):
    """The law of the best of n, class by class."""
    law = torch.zeros_like(base)
    for level in reward.unique():
        inside = reward == level
        upto, below = base[reward <= level].sum(), base[reward < level].sum()
        law[inside] = base[inside] / base[inside].sum() * (upto**n - below**n)
    return law


@pytest.mark.filterwarnings("ignore::pyro_tilt.infer.SamplerWarning")
@pytest.mark.parametrize(("n", "max_batch"), [(1, None), (2, None), (7, 2**15), (7, 5), (7, 3)])
def test_the_law_by_classes_of_equal_reward(n, max_batch):
    count = 200_000 if max_batch is None or max_batch > 7 else 150
    sampler = BestOfN(
        categories,
        reward=lambda x: TABLE[x],
        n=n,
        num_samples=count,
        seed=n,
        max_batch=max_batch,
        progress=False,
    )
    result = sampler.run()
    law = best_law(BASE, TABLE, n)
    assert float(law.sum()) == pytest.approx(1.0)
    assert chi_square(result.samples["x"], law) > P_VALUE
    assert torch.equal(result.stats["reward"], TABLE[result.samples["x"]])
    assert result.cost.base_draws == result.cost.reward_calls == count * n
    # The first drawn wins: given a class, place i is the winner's if all before are lower and
    # all after at most equal.
    level, place = 1.5, torch.arange(n, dtype=torch.float64)
    below, upto = BASE[level > TABLE].sum(), BASE[level >= TABLE].sum()
    places = below**place * upto ** (n - 1 - place)
    inside = result.stats["reward"] == level
    assert chi_square(result.stats["index"][inside], places) > P_VALUE


def test_one_of_one_is_the_base_bit_for_bit():
    flat = torch.zeros_like(TABLE)
    result = BestOfN(categories, reward=lambda x: flat[x], n=1, num_samples=1, seed=3).run()
    pyro.set_rng_seed(3)
    assert result.samples["x"][0] == categories()


def test_divergence_is_within_its_bound_and_attained_without_ties():
    for n in (2, 8, 64):
        law = best_law(BASE, TABLE, n)
        ties = float((law * (law / BASE).log())[law > 0].sum())
        fine = torch.full((200_000,), 1 / 200_000, dtype=torch.float64)
        grid = torch.arange(200_001, dtype=torch.float64) / 200_000
        steps = (grid**n).diff()
        smooth = float(torch.special.xlogy(steps, steps / fine).sum())
        result = BestOfN(categories, reward=lambda x: TABLE[x].clamp(min=-9.0), n=n, num_samples=5)
        bound = result.run().info["kl_upper_bound"]
        assert ties < bound
        assert smooth == pytest.approx(bound, abs=1e-4)


def test_certificate_and_absence_of_an_evidence():
    reward = rewards.Linear(torch.tensor(1.0))
    result = BestOfN(normal, reward=reward, seed=0, num_samples=50).run()
    assert result.certificate.law == "exact"
    assert result.certificate.target == "best-of-n law (n=16)"
    assert result.beta is None
    with pytest.raises(ValueError, match="beta"):
        result.reweight(2.0)
    assert "best-of-n law" in str(result.summary())


def pair():
    x = pyro.sample("x", dist.Categorical(BASE))
    y = pyro.sample("y", dist.Normal(0.0, 1.0))
    return x, y


@pytest.mark.parametrize("of", ["x", ["x"]])
def test_the_reward_may_read_a_site(of):
    def reward(value):
        return TABLE[value["x"] if isinstance(value, dict) else value].clamp(min=-9.0)

    result = BestOfN(pair, reward=reward, of=of, n=3, num_samples=50_000, seed=2).run()
    law = best_law(BASE, TABLE.clamp(min=-9.0), 3)
    assert chi_square(result.samples["x"], law) > P_VALUE
    # What the reward does not read keeps its law.
    assert stats.kstest(result.samples["y"].numpy(), "norm").pvalue > P_VALUE
    with pytest.raises(ValueError, match="'z'"):
        BestOfN(pair, reward=lambda z: z, of="z").run()


def test_one_class_of_ties_keeps_the_law_of_the_program():
    flat = BestOfN(pair, reward=lambda v: 0.0 * v[1], n=8, num_samples=50_000, seed=4).run()
    assert chi_square(flat.samples["x"], BASE) > P_VALUE
    assert bool((flat.stats["index"] == 0).all())


def test_rewards_of_a_wrong_shape_or_infinite_are_named():
    for reward, match in (
        (lambda v: v[1].unsqueeze(-1), "shape"),
        (lambda v: torch.zeros(()), "shape"),
        (lambda v: v[1] + math.inf, "inf"),
    ):
        with pytest.raises(ValueError, match=match):
            BestOfN(pair, reward=reward).run()


def test_chains_are_independent_and_reproduce():
    options = {"reward": rewards.Linear(torch.tensor(1.0)), "n": 3, "num_samples": 30, "seed": 1}
    pyro.set_rng_seed(5)
    before = torch.get_rng_state()
    result = BestOfN(normal, num_chains=3, **options).run()
    assert torch.equal(before, torch.get_rng_state())
    single = BestOfN(normal, **options).run()
    assert torch.equal(result.samples["x"][:30], single.samples["x"])
    assert len(result.samples["x"].unique()) == 90
    assert result.chain_sizes == (30, 30, 30)
    assert result.log_normalizer.isnan() and result.log_normalizer_error.isnan()
    assert result.certificate.law == "exact"


def test_excluded_draws_are_told():
    with pytest.warns(SamplerWarning, match="reward -inf"):
        BestOfN(categories, reward=lambda x: TABLE[x], n=1, num_samples=500, seed=0).run()
    with pytest.raises(ZeroWeights) as error:
        nothing = torch.full((6,), -math.inf)
        BestOfN(categories, reward=lambda x: nothing[x], n=2, num_samples=5, seed=0).run()
    assert error.value.partial is not None and len(error.value.partial) == 5


def test_observations_are_refused_by_name():
    def observed():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("seen", dist.Normal(x, 1.0), obs=torch.tensor(0.3))
        return x

    with pytest.raises(ValueError, match="'seen'"):
        BestOfN(observed, reward=lambda x: x).run()


def test_blocks_are_those_of_block_best_of_n():
    case = tabular_masked_diffusion()
    options = {"reward": case.reward, "value": case.twist(), "block": 2, "num_samples": 50}
    blocks = BestOfN(case.program, seed=1, **options)
    assert isinstance(blocks, BlockBestOfN) and (blocks.n, blocks.steps) == (16, 2)
    direct = BlockBestOfN(case.program, seed=1, n=16, **options)
    assert torch.equal(blocks.run().samples["x_0"], direct.run().samples["x_0"])
    with pytest.raises(ValueError, match="give block="):
        BestOfN(case.program, reward=case.reward, value=case.twist())


def test_bad_input():
    reward = rewards.Linear(torch.tensor(1.0))
    for n in (0, -1, 2.5, True):
        with pytest.raises(ValueError, match="n must be"):
            BestOfN(categories, reward=reward, n=n)
    with pytest.raises(TypeError, match="no beta"):
        BestOfN(categories, reward=reward, beta=2.0)
    with pytest.raises(ValueError, match="reward="):
        BestOfN(categories, reward=None)
    table = TABLE.clamp(min=-9.0)
    with pytest.raises(ValueError, match="2 tilts"):
        BestOfN(align(categories, lambda x: table[x]), reward=lambda x: table[x]).run()
    with pytest.raises(ValueError, match="NaN"):
        BestOfN(categories, reward=lambda x: TABLE[x] * math.nan).run()
