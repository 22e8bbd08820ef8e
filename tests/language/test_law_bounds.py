# SPDX-License-Identifier: Apache-2.0
"""Every inequality on 500 random models, and inequalities that are not true."""

import math
from functools import partial

import pytest
import torch
from law_cases import kl, random_models

from pyro_tilt.diagnostics import kl as accounting
from pyro_tilt.language import TabularLM, laws

MODELS, SIZE, SLACK = 500, 7, 1e-9
DRAFTS, TARGETS, REWARDS = random_models(MODELS, SIZE, 21)
TIED = random_models(MODELS, SIZE, 22, ties=True)[2]
NS = (1, 2, 5, 40)


def below(values, bounds):
    assert bool((values <= bounds + SLACK).all())


@pytest.mark.parametrize("n", NS)
@pytest.mark.parametrize("rewards", [REWARDS, TIED], ids=["distinct", "ties"])
def test_best_of_n(rewards, n):
    law = laws.best_of_n(DRAFTS, rewards, n)
    spent = kl(law, DRAFTS)
    bound = accounting.best_of_n_bound(n)
    below(spent, torch.full_like(spent, bound))
    gaps = torch.stack([accounting.best_of_n_gap_bound(p, r, n) for p, r in zip(DRAFTS, rewards)])
    below(bound - spent, gaps)
    wins = torch.stack([accounting.win_rate(q, p, r) for q, p, r in zip(law, DRAFTS, rewards)])
    below(wins, torch.full_like(wins, accounting.win_rate_bound(n)))
    # The conjecture that the estimator lies above, by class mass.
    masses = (rewards.unsqueeze(-1) == rewards.unsqueeze(-2)).double() @ DRAFTS.unsqueeze(-1)
    estimate = (law * accounting.best_of_n_estimate(masses.squeeze(-1), n)).sum(-1)
    below(spent, estimate)
    below(estimate, torch.full_like(estimate, bound))


@pytest.mark.parametrize("beta", [0.001, 1.0, 8.0])
@pytest.mark.parametrize("n", NS)
def test_soft_best_of_n(n, beta):
    law = laws.soft_best_of_n(DRAFTS, REWARDS, beta, n)
    short = kl(laws.tilt(DRAFTS, REWARDS, beta), law)
    bound = laws.soft_best_of_n_kl_bound(DRAFTS, REWARDS, beta, n)
    below(short, bound)
    below(bound, laws.relative_variance(DRAFTS, REWARDS, beta) / n)
    span = REWARDS.amax(-1) - REWARDS.amin(-1)
    ranges = torch.stack(
        [torch.tensor(laws.soft_best_of_n_range_bound(beta, n, range=float(r))) for r in span]
    )
    below(bound, ranges.double())
    lens = torch.full_like(short, laws.smoothing_lens_bound(beta, n))
    below(kl(law, DRAFTS), lens)
    below(lens, torch.full_like(lens, math.log(n)))


@pytest.mark.parametrize("beta", [0.001, 1.0, 8.0])
@pytest.mark.parametrize("n", NS)
def test_exp_best_of_n_and_rejection(n, beta):
    target = laws.tilt(DRAFTS, REWARDS, beta)
    parts = laws.exp_best_of_n_parts(DRAFTS, REWARDS, beta, n)
    miss = 1.0 - parts.hit_probability
    for law in (
        laws.exp_best_of_n(DRAFTS, REWARDS, beta, n),
        laws.truncated_rejection(DRAFTS, REWARDS, beta, n),
    ):
        below(kl(target, law), -parts.hit_probability.log())
        below(0.5 * (law - target).abs().sum(-1), miss)


@pytest.mark.parametrize("beta", [0.001, 1.0, 8.0])
@pytest.mark.parametrize("n", NS)
def test_guided_choice_without_threshold(n, beta):
    law = laws.gsi(DRAFTS, TARGETS, REWARDS, beta, n, -math.inf)
    short = kl(laws.tilt(TARGETS, REWARDS, beta), law)
    bound = laws.gsi_kl_bound(DRAFTS, TARGETS, REWARDS, beta, n)
    below(short, bound)
    chi = (TARGETS.square() / DRAFTS).sum(-1) - 1.0
    span = REWARDS.amax(-1) - REWARDS.amin(-1)
    below(bound, torch.log1p(((chi + 1.0) * (2.0 * beta * span).exp() - 1.0) / n))


def test_a_bound_without_the_divergence_of_the_models_is_false():
    """With the parenthesis misplaced, (chi^2 + 1)(e^{2 beta} - 1) vanishes with beta."""
    beta, n = 0.001, 1
    short = kl(
        laws.tilt(TARGETS, REWARDS, beta), laws.gsi(DRAFTS, TARGETS, REWARDS, beta, n, -math.inf)
    )
    chi = (TARGETS.square() / DRAFTS).sum(-1) - 1.0
    false = torch.log1p((chi + 1.0) * math.expm1(2.0 * beta) / n)
    assert (short > false).double().mean() > 0.5
    below(short, laws.gsi_kl_bound(DRAFTS, TARGETS, REWARDS, beta, n))


def test_blockwise_choice_by_the_chain_rule():
    for seed in range(25):
        lm = TabularLM.random(3, 4, seed=seed, scale=2.0)
        generator = torch.Generator().manual_seed(100 + seed)
        table = torch.rand(len(lm.enumerate()), generator=generator, dtype=torch.float64)
        base, values = lm.law().reshape((3,) * 4), lm.mean_values(table)
        for n in (2, 6):
            for block in (1, 2, 3, 4):
                law = laws.blockwise(base, values, block, partial(laws.best_of_n, n=n))
                spent = float(kl(law.flatten(), base.flatten()))
                assert spent <= accounting.blockwise_bound(n, math.ceil(4 / block)) + SLACK


def test_relative_variance_of_wild_weights():
    base = torch.tensor([1.0 - 1e-300, 1e-300], dtype=torch.float64)
    rewards = torch.tensor([0.0, 1.0], dtype=torch.float64)
    # Weights 1 and e^700: the rare one carries e^{1400 - 690.8} of the second moment.
    value = laws.relative_variance(base, rewards, 700.0)
    assert float(value.log()) == pytest.approx(300 * math.log(10.0), rel=1e-3)
    assert laws.relative_variance(base, rewards, 1e-9) >= 0.0
    with pytest.raises(ValueError, match="-inf"):
        laws.relative_variance(base, rewards - math.inf, 1.0)
    assert laws.soft_best_of_n_range_bound(1e6, 3) == math.inf
    with pytest.raises(ValueError, match="n must"):
        laws.smoothing_lens_bound(1.0, 0)
