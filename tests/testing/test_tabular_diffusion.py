# SPDX-License-Identifier: Apache-2.0
"""Tables of the masked diffusion against loops over positions and over all paths.

Statistical gates have p-values of 1e-5 at fixed seeds.
"""

import itertools
import math

import pyro
import pytest
import torch
from pyro import poutine
from scipy import stats

from pyro_tilt.poutine import ParticlePlate
from pyro_tilt.testing.tabular_diffusion import tabular_masked_diffusion

MASK = 3


@pytest.fixture(scope="module")
def case():
    return tabular_masked_diffusion(beta=1.3, seed=4)


def test_kernels_against_a_loop_over_positions(case):
    sequences = list(itertools.product(range(3), repeat=3))
    law = {s: float(case.data[_code(s)]) for s in sequences}
    states = list(itertools.product(range(4), repeat=3))
    generator = torch.Generator().manual_seed(0)
    pairs = torch.randint(64, (400, 2), generator=generator).tolist()
    pairs += [[63, j] for j in range(64)] + [[i, i] for i in range(64)]
    for t, (i, j) in itertools.product(range(3), pairs):
        old, new = states[i], states[j]
        fits = [s for s in sequences if all(o in (MASK, c) for o, c in zip(old, s))]
        total = sum(law[s] for s in fits)
        expected = 1.0
        for place in range(3):
            if old[place] != MASK:
                expected *= float(new[place] == old[place])
            elif new[place] == MASK:
                expected *= t / (t + 1)
            else:
                token = sum(law[s] for s in fits if s[place] == new[place]) / total
                expected *= token / (t + 1)
        assert float(case.kernels[t, i, j]) == pytest.approx(expected, abs=1e-14)


def test_laws_against_the_program_on_every_path(case):
    paths, log_law = _path_law(case, case.program)
    law = log_law.exp()
    assert float(law.sum()) == pytest.approx(1.0, abs=1e-12)
    tilt = (case.beta * case.reward_table[paths["x_0"]]).exp()
    normalizer = float((law * tilt).sum())
    assert case.log_normalizer == pytest.approx(math.log(normalizer), abs=1e-12)
    for t in range(4):
        base, target = (
            torch.zeros(64, dtype=torch.float64).index_add(0, paths[f"x_{t}"], mass)
            for mass in (law, law * tilt / normalizer)
        )
        torch.testing.assert_close(case.marginals[t], base, rtol=0, atol=1e-13)
        torch.testing.assert_close(case.targets[t], target, rtol=0, atol=1e-13)
        soft = target * normalizer / base
        seen = base > 0
        torch.testing.assert_close(case.log_soft_values[t].exp()[seen], soft[seen])
    aligned = case.targets[0]
    rewarded = aligned > 0
    base = case.marginals[0]
    kl = (aligned * (aligned / base).log())[rewarded].sum()
    assert case.kl == pytest.approx(float(kl), abs=1e-12)
    reward_mean = (aligned * case.reward_table)[rewarded].sum()
    assert case.reward_mean == pytest.approx(float(reward_mean), abs=1e-12)


def test_guide_makes_all_weights_equal(case):
    paths, log_guide = _path_law(case, case.guide)
    _, log_base = _path_law(case, case.program)
    log_joint = log_base + case.beta * case.reward_table[paths["x_0"]]
    possible = log_joint > -math.inf
    assert torch.equal(possible, log_guide > -math.inf)
    weights = (log_joint - log_guide)[possible]
    assert float((weights - case.log_normalizer).abs().max()) < 1e-12


def test_one_state_is_excluded(case):
    excluded = case.reward_table.isneginf().nonzero().squeeze(-1)
    assert len(excluded) == 1
    assert case.marginals[0][excluded] > 0
    assert case.targets[0][excluded] == 0
    # The excluded sequence, reached before the last step, has no future mass either.
    assert case.log_soft_values[1][excluded].isneginf()


def test_plain_program_follows_the_marginals(case):
    pyro.set_rng_seed(3)
    with ParticlePlate(40_000, dim=-1):
        trace = poutine.trace(case.program).get_trace()
    for t in (2, 1, 0):
        counts = torch.bincount(trace.nodes[f"x_{t}"]["value"], minlength=64).double()
        law = case.marginals[t]
        assert counts[law == 0].sum() == 0
        kept = law > 1e-4
        expected, counts = law[kept] * 40_000, counts[kept]
        statistic = float(((counts - expected).square() / expected).sum())
        assert stats.chi2.sf(statistic, int(kept.sum()) - 1) > 1e-5
    assert torch.equal(trace.nodes["_RETURN"]["value"], trace.nodes["x_0"]["value"])


def test_chain_is_not_the_data(case):
    """Positions unmasked in parallel: a test against the data's law would be wrong."""
    distance = 0.5 * float((case.marginals[0] - case.data).abs().sum())
    assert distance > 0.01


def test_beta_zero_is_the_base():
    case = tabular_masked_diffusion(beta=0.0)
    assert case.log_normalizer == pytest.approx(0.0, abs=1e-14)
    torch.testing.assert_close(case.targets, case.marginals)
    torch.testing.assert_close(case.optimal_kernels, case.kernels)


def test_twists(case):
    state = torch.tensor([0, 21, 63])
    exact, half, wrong = (case.twist(kind) for kind in ("exact", "half", "wrong"))
    torch.testing.assert_close(exact(state, 2), case.log_soft_values[2][state])
    torch.testing.assert_close(half(state, torch.tensor(2)), exact(state, 2) / 2)
    assert float(exact(torch.tensor(63))) == pytest.approx(case.log_normalizer)
    assert torch.isfinite(wrong(torch.arange(64), 0)).all()
    with pytest.raises(ValueError, match="kind"):
        case.twist("best")


def test_other_sizes():
    case = tabular_masked_diffusion(vocabulary=2, length=4, num_steps=5)
    assert case.kernels.shape == (5, 81, 81)
    torch.testing.assert_close(case.targets.sum(-1), torch.ones(6, dtype=torch.float64))
    assert bool((case.digits[case.targets[0] > 0] < 2).all())


def _code(sequence):
    return sequence[0] * 16 + sequence[1] * 4 + sequence[2]


def _path_law(case, program):
    """All paths that can happen and their log probability under the program's own sites."""
    x_2, x_1 = torch.nonzero(case.kernels[1]).T
    last, x_0 = torch.nonzero(case.kernels[0][x_1]).T
    paths = {"x_2": x_2[last], "x_1": x_1[last], "x_0": x_0}
    paths["x_3"] = torch.full_like(x_0, 63)
    trace = poutine.trace(poutine.condition(program, data=paths)).get_trace()
    return paths, sum(
        trace.nodes[name]["fn"].log_prob(value) for name, value in sorted(paths.items())
    )
