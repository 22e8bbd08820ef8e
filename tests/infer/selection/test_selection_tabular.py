# SPDX-License-Identifier: Apache-2.0
"""Selection on the masked diffusion, whose law after any choice is a product of tables."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_tilt.infer.best_of_n import BestOfN
from pyro_tilt.infer.selection import BlockBestOfN, SoftBestOfM
from pyro_tilt.poutine import scan
from pyro_tilt.testing.gates import P_VALUE, Z_SCORE, chi_square, hotelling
from pyro_tilt.testing.tabular_diffusion import tabular_masked_diffusion

CASE = tabular_masked_diffusion()
pytestmark = pytest.mark.filterwarnings("ignore::pyro_tilt.infer.SamplerWarning")


def soft_choice(kernel, log_value, m):
    r"""
    One of ``m`` draws of each row of ``kernel``, with probability by its value.

    P(j) = m p_j E[w_j / (w_j + S)] with S the sum of the other m - 1 weights, and
    1 / (w + S) is the integral of exp(-t (w + S)) over t > 0; the integral is done in log t.
    """
    weights = (log_value - log_value.max()).exp()
    t = torch.linspace(-40.0, 25.0, 3001, dtype=torch.float64)
    decay = torch.exp(-t.exp().unsqueeze(-1) * weights)
    others = (kernel @ decay.T) ** (m - 1)
    spread = decay * (t.exp().unsqueeze(-1) * weights) * float(t[1] - t[0])
    law = m * kernel * (others @ spread)
    # Where all weights are zero, the first is kept.
    zero = weights == 0
    lost = (kernel * zero).sum(-1, keepdim=True) ** (m - 1)
    return law + kernel * zero * lost


def best_choice(kernel, value, n):
    """The best of ``n`` draws of each row of ``kernel``, class by class."""
    law = torch.zeros_like(kernel)
    for level in value.unique():
        inside, upto = value == level, kernel * (value <= level)
        mass = (kernel * inside).sum(-1, keepdim=True)
        top = upto.sum(-1, keepdim=True) ** n
        below = (kernel * (value < level)).sum(-1, keepdim=True) ** n
        share = torch.where(mass > 0, kernel * inside / mass.clamp(min=1e-300), 0.0)
        law += share * (top - below)
    return law


def chain_law(choose, value, number, block=1):
    """The law of the last state, from the all-masked first one."""
    law = torch.zeros(64, dtype=torch.float64)
    law[-1] = 1.0
    steps = list(range(CASE.num_steps - 1, -1, -1))
    while steps:
        piece, steps = steps[:block], steps[block:]
        kernel = torch.eye(64, dtype=torch.float64)
        for t in piece:
            kernel = kernel @ CASE.kernels[t]
        last = CASE.beta * CASE.reward_table
        states = torch.arange(64)
        table = value(states, piece[-1]) if steps else last
        law = law @ choose(kernel, table, number)
    return law


def distance(law):
    return float(0.5 * (law - CASE.targets[0]).abs().sum())


def test_the_reference_agrees_with_enumeration_of_pairs_and_triples():
    p = torch.tensor([[0.2, 0.5, 0.3]], dtype=torch.float64)
    value = torch.tensor([0.7, -1.0, -math.inf], dtype=torch.float64)
    w = value.exp()
    for m in (2, 3):
        law = torch.zeros(3, dtype=torch.float64)
        for drawn in torch.cartesian_prod(*[torch.arange(3)] * m):
            total = w[drawn].sum()
            share = w[drawn] / total if total > 0 else torch.eye(m, dtype=torch.float64)[0]
            law.index_add_(0, drawn, share * p[0][drawn].prod())
        torch.testing.assert_close(soft_choice(p, value, m)[0], law, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("m", "kind"), [(1, "exact"), (2, "exact"), (10, "exact"), (10, "wrong")])
def test_the_law_for_finite_m(m, kind):
    result = SoftBestOfM(
        CASE.aligned(), value=CASE.twist(kind), m=m, num_samples=200_000, seed=m, progress=False
    ).run()
    law = chain_law(soft_choice, CASE.twist(kind), m)
    assert float(law.sum()) == pytest.approx(1.0, abs=1e-9)
    assert chi_square(result.samples["x_0"], law) > P_VALUE


def test_the_bias_falls_as_one_over_m_with_exact_values():
    gaps = [distance(chain_law(soft_choice, CASE.twist(), m)) for m in (1, 2, 10, 50, 100)]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[1] > 4 * gaps[2] > 16 * gaps[3]
    assert gaps[4] == pytest.approx(gaps[3] / 2, rel=0.05)


def test_plug_in_values_reach_a_plateau():
    for kind in ("half", "wrong"):
        gaps = [distance(chain_law(soft_choice, CASE.twist(kind), m)) for m in (50, 100, 400)]
        assert gaps[2] > 0.02
        assert gaps[2] > 0.9 * gaps[1]


def test_the_largest_value_never_becomes_a_draw():
    gaps = [distance(chain_law(best_choice, CASE.twist(), n)) for n in (2, 10, 100)]
    assert gaps[2] > gaps[1] > 0.2


@pytest.mark.parametrize(("n", "block"), [(1, 1), (3, 1), (3, 2), (3, 3), (4, 7)])
def test_the_law_of_blocks(n, block):
    count = 200_000
    result = BlockBestOfN(
        CASE.program,
        reward=CASE.reward,
        value=CASE.twist(),
        n=n,
        block=block,
        num_samples=count,
        seed=n,
        progress=False,
    ).run()
    law = chain_law(best_choice, CASE.twist(), n, block)
    assert chi_square(result.samples["x_0"], law) > P_VALUE
    assert result.certificate.law == "search"
    assert result.cost.base_draws == count * n
    boundaries = math.ceil(3 / block) - 1
    assert result.cost.value_calls == count * n * boundaries


def test_a_block_of_all_steps_is_best_of_n_draw_by_draw():
    options = {"n": 5, "num_samples": 2000, "seed": 4, "progress": False}
    whole = BestOfN(CASE.program, reward=CASE.reward, **options).run()
    block = BlockBestOfN(CASE.program, reward=CASE.reward, block=3, **options).run()
    assert torch.equal(whole.samples["x_0"], block.samples["x_0"])
    assert torch.equal(whole.stats["reward"], block.stats["reward"])


def test_the_largest_value_is_the_limit_of_a_large_beta():
    options = {"num_samples": 3000, "seed": 2, "progress": False}
    block = BlockBestOfN(
        CASE.program, reward=CASE.reward, value=CASE.twist(), n=4, block=1, **options
    ).run()
    sharp = CASE.twist()
    soft = SoftBestOfM(
        CASE.program,
        reward=CASE.reward,
        beta=1e7,
        value=lambda state, t: 1e7 * sharp(state, t),
        m=4,
        **options,
    ).run()
    assert torch.equal(block.samples["x_0"], soft.samples["x_0"])
    mild = SoftBestOfM(CASE.aligned(), value=sharp, m=4, **options).run()
    assert not torch.equal(block.samples["x_0"], mild.samples["x_0"])


@pytest.mark.parametrize("kind", ["exact", "half", "wrong"])
def test_residual_weights_give_the_target_with_any_values(kind):
    rows, ratios, kept = [], [], CASE.targets[0] > 1e-3
    for seed in range(150):
        result = SoftBestOfM(
            CASE.aligned(), value=CASE.twist(kind), m=3, num_samples=300, seed=seed
        ).run()
        weights = (result.residual_log_weights - CASE.log_normalizer).exp() / 300
        mass = torch.zeros(64, dtype=torch.float64)
        rows.append(mass.index_add_(0, result.samples["x_0"], weights)[kept])
        ratios.append(float((result.log_normalizer - CASE.log_normalizer).exp()))
    # Unnormalised: the mean is the target itself, without a ratio's bias.
    hotelling(torch.stack(rows), CASE.targets[0][kept])
    ratio = torch.tensor(ratios)
    assert abs(float(ratio.mean()) - 1.0) < Z_SCORE * float(ratio.std()) / math.sqrt(150)


def test_estimated_distance_is_above_the_exact_one():
    for kind, m in (("exact", 4), ("wrong", 4)):
        result = SoftBestOfM(
            CASE.aligned(), value=CASE.twist(kind), m=m, num_samples=20_000, seed=0
        ).run()
        exact = distance(chain_law(soft_choice, CASE.twist(kind), m))
        assert result.certificate.estimated_total_variation > exact - 0.02


def test_certificates_and_costs():
    def run(**options):
        return SoftBestOfM(CASE.aligned(), m=6, num_samples=50, seed=0, **options).run()

    exact = run(value=CASE.twist(), exact_values=True)
    assert (exact.certificate.law, exact.certificate.budget) == ("consistent", "m")
    plug_in = run(value=CASE.twist("half"))
    assert (plug_in.certificate.law, plug_in.certificate.budget) == ("search", None)
    assert plug_in.cost.base_draws == plug_in.cost.reward_calls == 300
    # The reward takes the value's place in the last of three steps.
    assert plug_in.cost.value_calls == 2 * 300
    assert list(plug_in.samples) == ["x_3", "x_0"]


def test_beta_zero_is_the_base():
    case = tabular_masked_diffusion(beta=0.0)
    result = SoftBestOfM(
        case.aligned(), value=case.twist(), m=4, num_samples=200_000, seed=1, progress=False
    ).run()
    assert chi_square(result.samples["x_0"], case.marginals[0]) > P_VALUE
    assert float(result.log_normalizer) == pytest.approx(0.0, abs=1e-12)
    one = SoftBestOfM(case.aligned(), value=case.twist(), m=1, num_samples=1, seed=5).run()
    pyro.set_rng_seed(5)
    assert one.samples["x_0"][0] == case.program()


def test_the_first_state_is_chosen_with_the_first_step():
    """Kept apart, the law of a random first state would stay the base's for every m."""
    initial = torch.tensor([0.7, 0.3], dtype=torch.float64)
    value = torch.tensor([0.0, 2.0], dtype=torch.float64)

    def program():
        x = pyro.sample("first", dist.Categorical(initial))
        return scan("stay", lambda carry, t: carry + 0 * t, x, range(3))

    result = SoftBestOfM(
        program,
        reward=lambda x: value[x],
        value=lambda x, t: value[x],
        m=2,
        num_samples=50_000,
        seed=0,
        progress=False,
    ).run()
    law = soft_choice(initial.unsqueeze(0), value, 2)[0]
    share = result.samples["first"].double().mean()
    spread = math.sqrt(float(law[0] * law[1]) / 50_000)
    assert abs(float(share - law[1])) < Z_SCORE * spread
