# SPDX-License-Identifier: Apache-2.0
"""Laws of guided, shifted and blockwise choices: simulation, limits, wrong versions, bad input."""

import math
from functools import partial

import pytest
import torch
from law_cases import DRAWS, P_VALUE, chi_square, kl, random_models

from pyro_tilt.language import TabularLM, laws

DRAFTS, TARGETS, TABLE = random_models(8, 6, 11)
DRAFT, TARGET, REWARDS = DRAFTS[0], TARGETS[0], TABLE[0]
BETA, N, U = 4.0, 3, 0.55


def simulate(fallback, seed):
    """The published rule, written with draws of both models."""
    generator = torch.Generator().manual_seed(seed)

    def draws(law):
        return torch.multinomial(law, DRAWS * N, True, generator=generator).reshape(DRAWS, N)

    def choose(rows, scores):
        place = torch.multinomial(scores[rows].softmax(-1), 1, generator=generator)
        return rows.gather(-1, place).squeeze(-1)

    tilted = REWARDS + (TARGET / DRAFT).log() / BETA
    kept = choose(draws(DRAFT), BETA * tilted)
    reject = tilted[kept] < U
    other = choose(draws(TARGET), BETA * REWARDS)
    if fallback == "debiased":
        pool = torch.cat([choose(draws(TARGET), BETA * REWARDS) for _ in range(8)])
        pool = pool[tilted[pool] < U]
        assert len(pool) > int(reject.sum())
        other[reject] = pool[: int(reject.sum())]
    return torch.where(reject, other, kept), float((~reject).double().mean())


@pytest.mark.parametrize("fallback", ["published", "debiased"])
def test_gsi_law_against_simulation(fallback):
    law = laws.gsi(DRAFT, TARGET, REWARDS, BETA, N, U, fallback=fallback)
    rows, accepted = simulate(fallback, 3)
    assert chi_square(rows, law) > P_VALUE
    rate = float(laws.gsi_acceptance(DRAFT, TARGET, REWARDS, BETA, N, U))
    assert abs(accepted - rate) < 4.0 * math.sqrt(rate * (1 - rate) / DRAWS)
    other = "debiased" if fallback == "published" else "published"
    wrong = laws.gsi(DRAFT, TARGET, REWARDS, BETA, N, U, fallback=other)
    assert chi_square(rows, wrong) < 1e-20


def test_gsi_limits():
    soft = partial(laws.soft_best_of_n, beta=BETA, n=N)
    tilted = laws.tilted_rewards(DRAFT, TARGET, REWARDS, BETA)
    torch.testing.assert_close(laws.tilt(DRAFT, tilted, BETA), laws.tilt(TARGET, REWARDS, BETA))
    for fallback in ("published", "debiased"):
        gsi = partial(laws.gsi, DRAFT, TARGET, REWARDS, BETA, fallback=fallback)
        torch.testing.assert_close(gsi(N, -math.inf), soft(DRAFT, tilted))
        torch.testing.assert_close(gsi(N, math.inf), soft(TARGET, REWARDS))
        torch.testing.assert_close(gsi(1, -math.inf), DRAFT)
        same = laws.gsi(TARGET, TARGET, REWARDS, BETA, N, -math.inf, fallback)
        torch.testing.assert_close(same, soft(TARGET, REWARDS))
    target = laws.tilt(TARGET, REWARDS, BETA)
    limit = laws.gsi_limit(DRAFT, TARGET, REWARDS, BETA, U)
    published = laws.gsi(DRAFT, TARGET, REWARDS, BETA, 10**5, U)
    torch.testing.assert_close(published, limit, rtol=1e-3, atol=1e-5)
    above = float(target[tilted >= U].sum())
    bias = -above * math.log(2.0 - above) - (1.0 - above) * math.log(1.0 - above)
    assert bias > 0.01
    assert float(kl(target, limit)) == pytest.approx(bias, abs=1e-12)
    # Without the bias what is left is the soft choice among draws of the draft.
    debiased = laws.gsi(DRAFT, TARGET, REWARDS, BETA, 10**4, U, fallback="debiased")
    rate = float(laws.soft_best_of_n_kl_rate(DRAFT, tilted, BETA, 10**4))
    assert float(kl(target, debiased)) == pytest.approx(rate, rel=0.02)


def test_debiased_fallback_without_anything_below_is_the_published_one():
    draft = torch.tensor([0.5, 0.5], dtype=torch.float64)
    target = torch.tensor([1.0, 0.0], dtype=torch.float64)
    rewards = torch.zeros(2, dtype=torch.float64)
    # Both draws of the draft miss the only outcome of the target with probability 1/4.
    for fallback in ("published", "debiased"):
        law = laws.gsi(draft, target, rewards, 1.0, 2, 0.0, fallback)
        torch.testing.assert_close(law, target)


def test_exact_accept_is_a_mixture_of_the_tilt_and_the_fallback():
    ratio = TARGET / DRAFT * (BETA * REWARDS).exp()
    accept = float((DRAFT * ratio).sum() / ratio.max())
    hit = 1.0 - (1.0 - accept) ** N
    expected = hit * laws.tilt(TARGET, REWARDS, BETA)
    expected = expected + (1 - hit) * laws.soft_best_of_n(TARGET, REWARDS, BETA, N)
    law = laws.exact_accept(DRAFT, TARGET, REWARDS, BETA, N)
    torch.testing.assert_close(law, expected)
    loose = laws.exact_accept(DRAFT, TARGET, REWARDS, BETA, N, log_bound=500.0)
    torch.testing.assert_close(loose, laws.soft_best_of_n(TARGET, REWARDS, BETA, N))
    with pytest.raises(ValueError, match="log_bound"):
        laws.exact_accept(DRAFT, TARGET, REWARDS, BETA, N, log_bound=-5.0)
    best = laws.tilt(TARGET, REWARDS, BETA)
    published = laws.gsi(DRAFT, TARGET, REWARDS, BETA, 16, U)
    assert kl(best, laws.exact_accept(DRAFT, TARGET, REWARDS, BETA, 16)) < kl(best, published)


def test_reward_guided_decoding():
    law = laws.reward_guided(DRAFT, TARGET, REWARDS, U)
    rejected = float(DRAFT[REWARDS < U].sum())
    torch.testing.assert_close(law, torch.where(REWARDS >= U, DRAFT, 0.0) + rejected * TARGET)
    # What it wins over the draft is what the target wins over the rejected part.
    gain = float(((law - DRAFT) * REWARDS).sum())
    low = DRAFT * (REWARDS < U)
    expected = rejected * float((TARGET * REWARDS).sum()) - float((low * REWARDS).sum())
    assert gain == pytest.approx(expected, abs=1e-12)
    torch.testing.assert_close(laws.reward_guided(DRAFT, TARGET, REWARDS, -math.inf), DRAFT)
    torch.testing.assert_close(laws.reward_guided(DRAFT, TARGET, REWARDS, math.inf), TARGET)


def test_ratios_need_the_tempered_probabilities():
    """Draws at temperature 0.6 scored at temperature 1 do not follow the target's tilt."""
    cold = TabularLM([DRAFT.log()], 1, temperature=0.6)
    right = laws.tilted_rewards(cold.law(), TARGET, REWARDS, BETA)
    wrong = laws.tilted_rewards(DRAFT, TARGET, REWARDS, BETA)
    target = laws.tilt(TARGET, REWARDS, BETA)
    torch.testing.assert_close(laws.tilt(cold.law(), right, BETA), target)
    assert 0.5 * (laws.tilt(cold.law(), wrong, BETA) - target).abs().sum() > 0.05


def test_shifted_speculative_sampling():
    aligned, reference, target = DRAFTS[1:5], TARGETS[1:5], DRAFTS[4:8]
    tilt = target * aligned / reference
    scale = tilt.sum(-1, keepdim=True)
    torch.testing.assert_close(laws.token_tilt(target, aligned, reference), tilt / scale)
    law = laws.shifted_speculative(target, aligned, reference)
    torch.testing.assert_close(law, tilt / scale)
    # The residual of the published rule is right only where the tilt is normalised already.
    published = torch.stack(
        [
            laws.shifted_speculative(*row, rule="published")
            for row, z in zip(zip(target, aligned, reference), scale)
            if z > 1.0
        ]
    )
    wrong = 0.5 * (published - (tilt / scale)[scale.squeeze(-1) > 1.0]).abs().sum(-1)
    assert len(wrong) >= 2 and bool((wrong > 0.02).all())
    same = laws.shifted_speculative(target, aligned, aligned)
    torch.testing.assert_close(same, target)
    accepted = laws.shifted_acceptance(target, aligned, aligned)
    torch.testing.assert_close(accepted, torch.minimum(target, aligned).sum(-1))


def test_published_shift_is_exact_where_the_tilt_is_normalised():
    reference = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    aligned = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    # A target for which sum target * aligned / reference is one.
    ratio = aligned / reference
    low = (1.0 - ratio[1]) / (ratio[0] - ratio[1])
    target = torch.stack([low, 1.0 - low, torch.zeros(())]).double() * 0.5 + 0.5 * reference
    assert float((target * ratio).sum()) == pytest.approx(1.0)
    published = laws.shifted_speculative(target, aligned, reference, rule="published")
    torch.testing.assert_close(published, target * ratio)


def test_published_shift_by_simulation():
    aligned, reference, target = DRAFTS[1], TARGETS[1], DRAFTS[5]
    if float((target * aligned / reference).sum()) < 1.0:
        aligned, reference = reference, aligned
    generator = torch.Generator().manual_seed(0)
    rows = torch.multinomial(aligned, DRAWS, True, generator=generator)
    uniform = torch.rand(DRAWS, generator=generator, dtype=torch.float64)
    accepted = uniform < (target / reference)[rows]
    residual = (aligned * (target / reference - 1.0)).clamp(min=0.0)
    other = torch.multinomial(residual, DRAWS, True, generator=generator)
    law = laws.shifted_speculative(target, aligned, reference, rule="published")
    assert chi_square(torch.where(accepted, rows, other), law) > P_VALUE
    rate = float(laws.shifted_acceptance(target, aligned, reference, rule="published"))
    assert abs(float(accepted.double().mean()) - rate) < 4.0 / math.sqrt(4.0 * DRAWS)


def test_the_token_tilt_is_not_the_sequence_tilt():
    target = TabularLM.random(3, 2, seed=1)
    aligned, reference = TabularLM.random(3, 2, seed=2), TabularLM.random(3, 2, seed=3)
    sequences = target.enumerate()
    shift = aligned.log_law() - reference.log_law()
    whole = laws.tilt(target.law(), shift, 1.0)
    tokens = torch.zeros_like(whole)
    for row, sequence in enumerate(sequences):
        law = 1.0
        for t in range(2):
            conditionals = [
                model.next_log_probs(sequence[:t]).exp() for model in (target, aligned, reference)
            ]
            law *= float(laws.token_tilt(*conditionals)[sequence[t]])
        tokens[row] = law
    assert float(tokens.sum()) == pytest.approx(1.0)
    assert 0.5 * (tokens - whole).abs().sum() > 0.05


@pytest.mark.parametrize("stop_token", [None, 1])
def test_blockwise_laws(stop_token):
    lm = TabularLM.random(3, 4, seed=5, stop_token=stop_token)
    generator = torch.Generator().manual_seed(6)
    table = torch.rand(len(lm.enumerate()), generator=generator, dtype=torch.float64)
    base = torch.zeros((3,) * 4, dtype=torch.float64)
    cells = tuple(lm.enumerate().T)
    base[cells] = lm.law()
    mean, soft = lm.mean_values(table), lm.soft_values(table, 3.0)
    best = partial(laws.best_of_n, n=4)
    whole = laws.blockwise(base, mean, 4, best)
    torch.testing.assert_close(whole[cells], laws.best_of_n(lm.law(), table, 4))
    for block in (1, 2, 3):
        law = laws.blockwise(base, mean, block, best)
        assert float(law[cells].sum()) == pytest.approx(1.0)
        one = laws.blockwise(base, mean, block, partial(laws.best_of_n, n=1))
        torch.testing.assert_close(one, base)
        # Token by token or block by block, soft values tilt to the tilt of whole sequences.
        tilted = laws.blockwise(base, soft, block, partial(laws.tilt, beta=1.0))
        torch.testing.assert_close(tilted[cells], laws.tilt(lm.law(), table, 3.0))
        wrong = laws.blockwise(base, mean, block, partial(laws.tilt, beta=3.0))
        gap = 0.5 * (wrong[cells] - laws.tilt(lm.law(), table, 3.0)).abs().sum()
        assert gap > 0.003
    many = laws.blockwise(base, soft, 2, partial(laws.soft_best_of_n, beta=1.0, n=10**4))
    torch.testing.assert_close(many[cells], laws.tilt(lm.law(), table, 3.0), rtol=2e-3, atol=1e-6)
    logs = laws.blockwise(base.log(), mean, 2, partial(best, log=True), log=True)
    torch.testing.assert_close(logs.exp(), laws.blockwise(base, mean, 2, best))


def test_blockwise_by_hand():
    """Two tokens, the best of two at each: the chance of the first times that of the second."""
    lm = TabularLM.random(2, 2, seed=7)
    table = torch.tensor([0.1, 0.9, 0.3, 0.5], dtype=torch.float64)
    base, mean = lm.law().reshape(2, 2), lm.mean_values(table)
    law = laws.blockwise(base, mean, 1, partial(laws.best_of_n, n=2))
    first = base.sum(-1)
    top = int(mean[1].argmax())
    kept = torch.stack([1 - (1 - first[top]) ** 2 if i == top else first[i] ** 2 for i in (0, 1)])
    for i in (0, 1):
        given = base[i] / first[i]
        expected = kept[i] * torch.stack([given[0] ** 2, 1 - given[0] ** 2])
        torch.testing.assert_close(law[i], expected)


def test_bad_input_of_two_models():
    calls = [
        partial(laws.gsi, beta=BETA, n=N, threshold=U),
        partial(laws.gsi_acceptance, beta=BETA, n=N, threshold=U),
        partial(laws.gsi_limit, beta=BETA, threshold=U),
        partial(laws.exact_accept, beta=BETA, n=N),
        partial(laws.tilted_rewards, beta=BETA),
        partial(laws.gsi_kl_bound, beta=BETA, n=N),
    ]
    hole = DRAFT.clone()
    hole[2] = 0.0
    hole = hole / hole.sum()
    for call in calls:
        with pytest.raises(ValueError, match="no mass at 1 outcomes"):
            call(hole, TARGET, REWARDS)
        with pytest.raises(ValueError, match="vocabularies must agree"):
            call(torch.full((5,), 0.2), TARGET, REWARDS)
        with pytest.raises(ValueError, match="outcomes"):
            call(DRAFT, TARGET, REWARDS[:3])
        with pytest.raises(ValueError, match="NaN"):
            call(DRAFT, TARGET, REWARDS * math.nan)
        with pytest.raises(ValueError, match="beta must be positive"):
            call(DRAFT, TARGET, REWARDS, beta=0.0)
    for call in (calls[0], calls[1], calls[3], calls[5]):
        with pytest.raises(ValueError, match="n must be"):
            call(DRAFT, TARGET, REWARDS, n=0)
    with pytest.raises(ValueError, match="threshold"):
        calls[0](DRAFT, TARGET, REWARDS, threshold=math.nan)
    with pytest.raises(ValueError, match="fallback"):
        calls[0](DRAFT, TARGET, REWARDS, fallback="fresh")
    # Where the draft alone has mass nothing is wrong, and rejection needs no cover at all.
    assert float(laws.gsi(TARGET, hole, REWARDS, BETA, N, U).sum()) == pytest.approx(1.0)
    assert float(laws.reward_guided(hole, TARGET, REWARDS, U).sum()) == pytest.approx(1.0)


def test_bad_input_of_tokens_and_blocks():
    half, third = torch.full((2,), 0.5), torch.full((3,), 1.0 / 3.0)
    with pytest.raises(ValueError, match="vocabularies differ"):
        laws.shifted_speculative(half, third, half)
    with pytest.raises(ValueError, match="no mass at tokens"):
        laws.token_tilt(half, half, torch.tensor([1.0, 0.0]))
    with pytest.raises(ValueError, match="no token in common"):
        laws.token_tilt(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), half)
    with pytest.raises(ValueError, match="rule"):
        laws.shifted_speculative(half, half, half, rule="paper")
    with pytest.raises(ValueError, match="no residual"):
        laws.shifted_speculative(
            torch.tensor([0.2, 0.8]), torch.tensor([1.0, 0.0]), half, rule="published"
        )
    values = [torch.tensor(0.5), torch.zeros(2), torch.zeros(2, 2)]
    base = torch.full((2, 2), 0.25)
    choose = partial(laws.best_of_n, n=2)
    with pytest.raises(ValueError, match="block"):
        laws.blockwise(base, values, 0, choose)
    with pytest.raises(ValueError, match="values"):
        laws.blockwise(base, values[1:], 1, choose)
    with pytest.raises(ValueError, match="one dimension"):
        laws.blockwise(torch.full((2, 3), 1.0 / 6.0), values, 1, choose)
    with pytest.raises(ValueError, match="choose must return"):
        laws.blockwise(base, values, 1, lambda p, v: p.sum(-1))
