# SPDX-License-Identifier: Apache-2.0
"""TabularLM: what it scores, enumerates, values and samples agree with each other."""

import math

import pyro
import pytest
import torch
from law_cases import DRAWS, P_VALUE, chi_square

from pyro_tilt import align
from pyro_tilt.infer import SMC, BestOfN, BlockBestOfN, ImportanceSampler
from pyro_tilt.language import LanguageModel, TabularLM, laws

MODELS = {
    "full": {"vocabulary_size": 3, "length": 4},
    "markov": {"vocabulary_size": 4, "length": 4, "order": 1, "temperature": 0.6},
    "two back": {"vocabulary_size": 3, "length": 4, "order": 2, "stop_token": 1},
    "unigram": {"vocabulary_size": 2, "length": 3, "order": 0, "stop_token": 0},
}


def model(name, **options):
    return TabularLM.random(**{**MODELS[name], "seed": 4, **options})


def table_of(lm, seed=9):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(lm.enumerate()), generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("name", MODELS)
def test_enumeration_scores_and_rows_agree(name):
    lm = model(name)
    sequences = lm.enumerate()
    assert float(lm.law().sum()) == pytest.approx(1.0, abs=1e-12)
    assert torch.equal(lm.index(sequences), torch.arange(len(sequences)))
    assert torch.equal(
        lm.index(sequences.reshape(1, -1, lm.length))[0], torch.arange(len(sequences))
    )
    assert isinstance(lm, LanguageModel)
    for t in range(lm.length):
        starts = sequences[:, :t]
        nexts = lm.next_log_probs(starts)
        torch.testing.assert_close(nexts.exp().sum(-1), torch.ones(len(sequences)).double())
        step = lm.log_prob(sequences[:, : t + 1]) - lm.log_prob(starts)
        torch.testing.assert_close(step, nexts.gather(-1, sequences[:, t : t + 1]).squeeze(-1))


def test_tables_by_hand():
    start = torch.tensor([0.2, 0.8], dtype=torch.float64)
    move = torch.tensor([[0.9, 0.1], [0.3, 0.7]], dtype=torch.float64)
    lm = TabularLM([start.log(), move.log()], 4)
    sequence = torch.tensor([1, 0, 0, 1])
    assert float(lm.log_prob(sequence).exp()) == pytest.approx(0.8 * 0.3 * 0.9 * 0.1)
    cold = lm.tempered(0.5)
    squared = move.square() / move.square().sum(-1, keepdim=True)
    expected = 0.64 / 0.68 * squared[1, 0] * squared[0, 0] * squared[0, 1]
    assert float(cold.log_prob(sequence).exp()) == pytest.approx(float(expected))
    torch.testing.assert_close(cold.tempered(1.0).law(), lm.law())
    # The oldest token of a context comes first.
    both = torch.zeros(2, 2, 2, dtype=torch.float64)
    both[0, 1] = torch.tensor([0.0, -math.inf])
    lm = TabularLM([torch.zeros(2), torch.zeros(2, 2), both], 3)
    assert float(lm.log_prob(torch.tensor([0, 1, 1]))) == -math.inf
    assert float(lm.log_prob(torch.tensor([1, 0, 1])).__neg__()) == pytest.approx(3 * math.log(2))


def test_after_the_stop_token_comes_only_the_stop_token():
    lm = TabularLM([torch.tensor([0.5, 0.3, 0.2]).log()], 3, stop_token=2)
    assert len(lm.enumerate()) == 8 + 4 + 2 + 1
    assert float(lm.log_prob(torch.tensor([0, 2, 2])).exp()) == pytest.approx(0.1)
    assert float(lm.log_prob(torch.tensor([2, 0, 2]))) == -math.inf
    finished = lm.finished(torch.tensor([[0, 1, 1], [0, 2, 2]]))
    assert finished.tolist() == [False, True]
    assert bool(TabularLM.random(2, 2).finished(torch.zeros(3, 2).long()).all())
    with pytest.raises(ValueError, match="after the stop token"):
        lm.index(torch.tensor([2, 0, 2]))


@pytest.mark.parametrize("name", MODELS)
def test_values_are_conditional_expectations(name):
    lm = model(name)
    table, beta = table_of(lm), 1.7
    table[1] = -math.inf
    soft, mean = lm.soft_values(table, beta), lm.mean_values(table)
    sequences, law = lm.enumerate(), lm.law()
    for t in range(lm.length + 1):
        assert soft[t].shape == mean[t].shape == (lm.vocabulary_size,) * t
        for start in sequences[:, :t].unique(dim=0) if t else sequences[:1, :0]:
            inside = (sequences[:, :t] == start).all(-1) & (law > 0)
            given = law[inside] / law[inside].sum()
            tilted = (given * (beta * table[inside]).exp()).sum().log()
            plain = (given * table[inside]).sum()
            place = tuple(start.tolist())
            torch.testing.assert_close(soft[t][place], tilted)
            torch.testing.assert_close(mean[t][place], plain)
    assert float(lm.soft_values(table, 0.0)[0]) == pytest.approx(0.0, abs=1e-12)
    spread = (soft[-2] - beta * mean[-2])[mean[-2] > -math.inf]
    assert bool((spread > -1e-12).all()) and bool((spread > 0.01).any())


@pytest.mark.parametrize("name", MODELS)
def test_the_program_follows_the_law(name):
    lm = model(name)
    zero = align(lm.program(), lambda y: torch.zeros(y.shape[:-1]))
    result = ImportanceSampler(zero, num_samples=DRAWS, seed=1, progress=False).run()
    sequences = result.samples["tokens"]
    assert chi_square(lm.index(sequences), lm.law()) > P_VALUE
    for t in range(lm.length):
        assert torch.equal(result.samples[f"token_{t}"], sequences[:, t])


def test_the_program_is_an_ordinary_one():
    lm = model("two back")
    pyro.set_rng_seed(0)
    trace = pyro.poutine.trace(lm.program(name="word")).get_trace()
    sequence = trace.nodes["_RETURN"]["value"]
    assert sequence.shape == (4,)
    torch.testing.assert_close(trace.log_prob_sum(), lm.log_prob(sequence))
    assert torch.equal(trace.nodes["words"]["value"], sequence)


@pytest.mark.parametrize("name", MODELS)
def test_prompts(name):
    lm = model(name)
    token = 2 if lm.vocabulary_size > 2 else 1
    rest = lm.given([token])
    whole = torch.cat([torch.full((len(rest.enumerate()), 1), token), rest.enumerate()], -1)
    expected = lm.log_prob(whole) - lm.log_prob(torch.tensor([token]))
    torch.testing.assert_close(rest.log_law(), expected)
    table = table_of(rest)
    result = BestOfN(
        lm.program([token]),
        reward=lambda y: table[rest.index(y[..., 1:])],
        n=2,
        num_samples=DRAWS,
        seed=0,
        progress=False,
    ).run()
    assert bool((result.samples["tokens"][:, 0] == token).all())
    rows = rest.index(result.samples["tokens"][:, 1:])
    assert chi_square(rows, laws.best_of_n(rest.law(), table, 2)) > P_VALUE


@pytest.mark.parametrize("name", ["full", "two back"])
def test_step_samplers_take_its_values(name):
    lm, beta = model(name), 1.2
    table = table_of(lm)
    soft = lm.soft_values(table, beta)
    aligned = align(lm.program(), lambda y: table[lm.index(y)], beta)
    result = SMC(
        aligned, num_particles=4000, twist=lm.value_function(soft), seed=0, progress=False
    ).run()
    assert float(result.log_normalizer) == pytest.approx(float(soft[0]), abs=0.03)
    mean = lm.mean_values(table)
    result = BlockBestOfN(
        lm.program(),
        reward=lambda y: table[lm.index(y)],
        value=lm.value_function(mean),
        n=3,
        block=2,
        num_samples=DRAWS,
        seed=0,
        progress=False,
    ).run()
    base = torch.zeros((lm.vocabulary_size,) * 4, dtype=torch.float64)
    cells = tuple(lm.enumerate().T)
    base[cells] = lm.law()
    law = laws.blockwise(base, mean, 2, lambda p, v: laws.best_of_n(p, v, 3))[cells]
    assert chi_square(lm.index(result.samples["tokens"]), law) > P_VALUE


def test_dtype_is_that_of_the_tables():
    for dtype in (torch.float32, torch.float64):
        lm = TabularLM.random(3, 3, dtype=dtype)
        assert lm.law().dtype == dtype
        assert lm.next_log_probs(None).dtype == dtype


def test_bad_tables():
    with pytest.raises(ValueError, match="logits\\[1\\] must have shape"):
        TabularLM([torch.zeros(3), torch.zeros(3, 2)])
    with pytest.raises(ValueError, match="k at most 0"):
        TabularLM([torch.zeros(3, 3)])
    with pytest.raises(ValueError, match="at least one"):
        TabularLM([])
    with pytest.raises(ValueError, match="floating"):
        TabularLM([torch.zeros(3).long()])
    for bad in (torch.tensor([0.0, math.nan]), torch.tensor([0.0, math.inf])):
        with pytest.raises(ValueError, match="NaN or"):
            TabularLM([bad])
    with pytest.raises(ValueError, match="no token is possible"):
        TabularLM([torch.full((2,), -math.inf)])
    for temperature in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="temperature"):
            TabularLM([torch.zeros(2)], temperature=temperature)
    with pytest.raises(ValueError, match="stop_token"):
        TabularLM([torch.zeros(2)], stop_token=2)
    with pytest.raises(ValueError, match="length"):
        TabularLM([torch.zeros(2), torch.zeros(2)], 1)
    with pytest.raises(ValueError, match="length must be a whole number"):
        TabularLM([torch.zeros(2), torch.zeros(2)], 2.5)
    with pytest.raises(ValueError, match="stop_token must be a whole number"):
        TabularLM(torch.zeros(3), 2, stop_token=1.5)
    with pytest.raises(ValueError, match="vocabulary has 2 words for 3 tokens"):
        TabularLM(torch.zeros(3), 2, vocabulary=["a", "b"])
    with pytest.raises(ValueError, match="too many"):
        TabularLM.random(10, 10, order=0).enumerate()


def test_bad_sequences_and_rewards():
    lm = TabularLM.random(3, 3, stop_token=0)
    with pytest.raises(ValueError, match="vocabularies"):
        lm.log_prob(torch.tensor([0, 3, 0]))
    with pytest.raises(ValueError, match="longer"):
        lm.log_prob(torch.zeros(4).long())
    with pytest.raises(ValueError, match="integers"):
        lm.log_prob(torch.zeros(3))
    with pytest.raises(ValueError, match="3 tokens"):
        lm.index(torch.zeros(2).long())
    with pytest.raises(ValueError, match="no next"):
        lm.next_log_probs(torch.zeros(3).long())
    for prompt, words in (
        ([0], "stop token"), ([1, 1, 1], "fewer"), ([[1]], "programs"),
        ([1.7], "prompt must be integers"), ([4], "prompt must lie in"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            lm.program(prompt)
    with pytest.raises(ValueError, match="NaN"):
        lm.reward_table(torch.full((len(lm.enumerate()),), math.nan))
    with pytest.raises(ValueError, match="shape"):
        lm.soft_values(torch.zeros(5), 1.0)
    with pytest.raises(ValueError, match="values\\[1\\]"):
        lm.value_function([torch.tensor(0.0), torch.zeros(2)])


def test_programs_decode():
    plain = TabularLM.random(12, 3, order=0).program([11])
    tokens = torch.tensor([[11, 0, 3]])
    assert plain.decode(tokens) == ["11 0 3"] and plain.site == "tokens"
    words = TabularLM.random(3, 3, stop_token=2, vocabulary=["yes", "no", "."])
    for lm in (words, words.tempered(2.0)):
        assert lm.program().decode(torch.tensor([[0, 2, 2], [1, 1, 0]])) == ["yes .", "no no yes"]
    assert words.given([0]).decode(torch.tensor([[1, 2]])) == ["no ."]
