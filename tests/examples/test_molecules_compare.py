# SPDX-License-Identifier: Apache-2.0
"""Ways of aligning molecules at equal rows, on tiny budgets and beside a long run."""

import json
import math

import pytest
import torch
from torch import nn

from pyro_tilt.diagnostics import kl
from pyro_tilt.examples.molecules import (
    VOCABULARY,
    compare_kl,
    compare_values,
    drug_likeness,
    load_molecule_model,
)
from pyro_tilt.examples.molecules.__main__ import main
from pyro_tilt.examples.molecules.compare import compare, spend
from pyro_tilt.examples.molecules.compare_kl import Yardstick
from pyro_tilt.examples.molecules.compare_methods import Method
from pyro_tilt.examples.molecules.compare_outcome import Spent, describe
from pyro_tilt.infer import (
    LCB,
    SMC,
    BestOfN,
    Certificate,
    Cost,
    ImportanceSampler,
    ProgramProposal,
    WeightedSamples,
)
from pyro_tilt.language import NeuralLM, laws
from pyro_tilt.rewards import Bounded

pytest.importorskip("safetensors", reason="needs pyro-tilt[language]")
pytest.importorskip("rdkit", reason="needs pyro-tilt[language]")
TINY = {"training_paths": 40, "training_updates": 1, "yardstick": 300, "n": 4, "large_n": 8}
BUDGET = 4_000
METHODS = [
    "importance sampling",
    "best of 4",
    "best of 8",
    "soft best of 4",
    "GSI, whole, 4 of the draft",
    "GSI, blocks of 8, learned values",
    "SMC, learned twists",
    "LCB by steps, learned values",
    "AISP, final draws",
    "AISP, best seen",
]


@pytest.fixture(scope="module")
def tiny():
    return compare(budget_rows=BUDGET, beta=10.0, seed=0, progress=False, **TINY)


def test_every_method_is_there_and_spends_its_rows(tiny):
    assert [each.method for each in tiny.outcomes] == METHODS
    for each in tiny.outcomes:
        # A draw takes some thirty rows for each of the sequences that it is chosen from, and there
        # are few of them; larger budgets are kept to within 5 per cent.
        assert each.target_rows == pytest.approx(BUDGET, rel=0.25), each.method
        assert 0.0 <= each.valid <= 1.0 + 1e-9 and 0.0 < each.qed[0] < 1.0
        assert 1 <= each.distinct <= each.draws
        assert (each.draft_rows > 0) == each.method.startswith("GSI")
        learned = "learned" in each.method
        assert (each.training_rows > 80 * 20) == learned == (each.training_seconds > 0.0)
    laws = {each.method: (each.law, each.target) for each in tiny.outcomes}
    assert laws["best of 4"] == ("exact", "best-of-n law (n=4)")
    assert laws["SMC, learned twists"] == ("consistent", "joint tilt")
    assert laws["LCB by steps, learned values"] == ("consistent", "value-tilted chain")
    assert laws["AISP, best seen"][0] == laws["GSI, whole, 4 of the draft"][0] == "search"


def test_divergences_say_how_they_were_found(tiny):
    for each in tiny.outcomes:
        known = each.method not in ("GSI, blocks of 8, learned values", "AISP, best seen")
        assert (each.kl.value is not None) == known, each.method
        assert (each.kl.kind == "bound") == (each.method == "AISP, final draws")
    assert tiny["best of 4"].kl.value <= math.log(4) - 0.75
    assert tiny["best of 4"].kl.value < tiny["best of 8"].kl.value <= math.log(8) - 0.875
    labels = {point.label for point in tiny.frontier()}
    assert labels == {"tilts of the model"} | {
        each.method for each in tiny.outcomes if each.kl.value is not None
    }
    with pytest.raises(KeyError, match="best of 4"):
        tiny["nothing"]


def test_the_seed_reproduces_the_numbers(tiny):
    only = ("GSI, whole", "SMC", "AISP, final")
    again = compare(budget_rows=BUDGET, beta=10.0, seed=0, progress=False, only=only, **TINY)
    other = compare(
        budget_rows=2000, beta=10.0, seed=1, progress=False, only=("importance",), **TINY
    )
    assert len(again.outcomes) == 3
    for each in again.outcomes:
        before = tiny[each.method]
        assert (each.qed, each.valid, each.distinct) == (
            before.qed,
            before.valid,
            before.distinct,
        )
        assert each.target_rows == before.target_rows and each.kl == before.kl
    assert other.outcomes[0].qed != tiny["importance sampling"].qed


def test_the_command_writes_table_numbers_and_page(tmp_path, capsys, monkeypatch, tiny):
    from pyro_tilt.examples.molecules import __main__ as report

    asked = {}

    def short(**options):
        asked.update(options)
        return tiny

    monkeypatch.setattr(report, "compare", short)
    main(["--compare", "--budget-rows", "500", "--beta", "5", "--out", str(tmp_path / "new")])
    assert (asked["budget_rows"], asked["beta"]) == (500, 5.0)
    assert "| SMC, learned twists | " in capsys.readouterr().out
    facts = json.loads((tmp_path / "new" / "compare.json").read_text())
    assert len(facts["outcomes"]) == len(METHODS)
    assert (tmp_path / "new" / "compare.png").stat().st_size > 50_000
    assert (tmp_path / "new" / "compare.md").read_text().startswith("# Molecules to order")


def test_the_foreseeing_program_is_the_model():
    lm = load_molecule_model("draft")
    plain, foreseeing = lm.program(), compare_values.ForeseeingProgram(lm)
    draws = ProgramProposal(plain).draw(2)
    assert list(draws.samples) == list(ProgramProposal(foreseeing).draw(2).samples)
    # Each scores what the other draws, and the ratio of the two is one.
    for program, guide in ((foreseeing, plain), (plain, foreseeing)):
        ratio = ProgramProposal(program, guide=guide).draw(40).log_factors
        torch.testing.assert_close(ratio, torch.zeros_like(ratio), rtol=0, atol=1e-3)
    # The lineage check raises where the carry forgets something.
    options = {"reward": drug_likeness(), "beta": 3.0, "num_particles": 40, "seed": 0}
    rows = [
        SMC(program, check_lineage=True, ess_threshold=0.0, progress=False, **options)
        .run()
        .cost.network_rows
        for program in (plain, foreseeing)
    ]
    assert abs(rows[0] - rows[1]) <= 1


@pytest.fixture(scope="module")
def small():
    """A model of three characters at most, whose sequences can all be listed."""
    few = load_molecule_model("draft").model
    kept = [1, *VOCABULARY.encode(["CNO"])[0, :3].tolist()]
    others = [token for token in range(len(VOCABULARY)) if token not in kept]
    lm = NeuralLM(few, max_tokens=3, stop_token=1, begin_token=0, suppress_tokens=others)
    table = torch.rand(len(VOCABULARY) ** 3, generator=torch.Generator().manual_seed(0))
    code = torch.tensor([len(VOCABULARY) ** 2, len(VOCABULARY), 1])

    def reward(tokens):
        padded = nn.functional.pad(tokens, (0, 3 - tokens.shape[-1]), value=1)
        return table[(padded * code).sum(-1)] * (tokens == 1).any(-1)

    value = compare_values.learn_value(
        lm, rewards_of(reward), 4.0, num_paths=60, updates=4, seed=0, progress=False
    )
    texts = torch.cartesian_prod(*[torch.tensor(kept)] * 3)
    ended = (texts == 1).cumsum(-1)
    fits = ((ended == 0) | (texts == 1)).all(-1)
    return lm, value, texts[fits], reward


def rewards_of(reward):
    return Bounded(reward, low=0.0, high=1.0, event_dim=1)


@pytest.mark.parametrize("exact", [True, False])
def test_the_log_ratio_is_that_of_a_law(small, monkeypatch, exact):
    """Over all sequences the chain sums to one, and its kernels sum up what log_mgf says."""
    monkeypatch.setattr(compare_values, "_NEGLIGIBLE", -math.inf)
    lm, learned, texts, reward = small
    value = compare_values.MoleculeValue(learned.learned, rewards_of(reward), 4.0, exact=exact)
    ratio, log_prob = value.log_ratio(lm, texts), lm.log_prob(texts).double()
    assert float((ratio + log_prob).logsumexp(0)) == pytest.approx(0.0, abs=1e-5)
    seen = []

    def watch(carry, x, orders):
        found = value.log_mgf(carry, x, orders)
        seen.append((carry, x, orders, found))
        return found

    result = LCB(
        compare_values.ForeseeingProgram(lm),
        reward=rewards_of(reward),
        beta=4.0,
        value=value,
        log_mgf=watch,
        tilt_start=False,
        check_lineage=False,
        num_samples=4000,
        seed=0,
        progress=False,
    ).run()
    code = torch.tensor([10_000, 100, 1])
    counts = torch.stack([(result.samples["tokens"] @ code == text @ code).sum() for text in texts])
    law = (ratio + log_prob).exp()
    assert int(counts.sum()) == 4000
    total_variation = 0.5 * float((counts / 4000 - law).abs().sum())
    # Clipping gives up at most epsilon; twenty outcomes of 4000 draws differ by some 0.03.
    assert total_variation < 0.05 + 0.05
    assert [each[1] for each in seen] == [0, 1, 2]
    assert all(found.shape == (4000, len(orders)) for _, _, orders, found in seen)


def test_values_of_finished_molecules_are_exact(small):
    lm, value, texts, reward = small
    carry = compare_values.Foreseen(
        torch.tensor([[2, 1], [2, 3]]), torch.zeros(2, 46), torch.zeros(2, 1, 96), None
    )
    found = value(carry, 1)
    assert float(found[0]) == pytest.approx(4.0 * float(reward(torch.tensor([[2, 1]]))), rel=1e-6)
    assert 0.0 <= float(found[1]) <= 4.0


def test_ratio_of_soft_best_of_n_is_that_of_its_law():

    generator = torch.Generator().manual_seed(0)
    rewards = torch.rand(50, generator=generator, dtype=torch.float64)
    law = laws.soft_best_of_n(torch.full((50,), 0.02, dtype=torch.float64), rewards, 3.0, 5)
    found = compare_kl.log_ratio_of_soft(rewards, rewards[:7], 3.0, 5)
    torch.testing.assert_close(found, (50 * law[:7]).log(), rtol=1e-6, atol=1e-6)


def test_divergence_of_gsi_at_the_extremes(monkeypatch):
    """Without a threshold and with equal models GSI is soft best-of-n."""
    generator = torch.Generator().manual_seed(1)
    rewards = torch.rand(4000, generator=generator, dtype=torch.float64)
    yardstick = Yardstick(rewards, rewards)
    soft = compare_kl.of_soft_best_of_n(yardstick, 3.0, 4).value

    law = laws.soft_best_of_n(torch.full_like(rewards, 1 / 4000), rewards, 3.0, 4)
    chosen = rewards[torch.multinomial(law, 20_000, True, generator=generator)]

    class Model:
        def log_prob(self, tokens):
            return torch.zeros(len(tokens))

    result = WeightedSamples(
        kind="iid",
        samples={"tokens": torch.zeros(20_000, 1)},
        log_weights=torch.zeros(20_000),
        certificate=Certificate(target="joint tilt", law="search"),
        stats={"reward": chosen},
        beta=3.0,
    )
    for threshold in (-math.inf, math.inf):
        found = compare_kl.of_gsi(result, Model(), Model(), yardstick, n=4, threshold=threshold)
        assert found.value == pytest.approx(soft, abs=5 * found.error + 1e-3)
    # Values above the threshold come from both branches, so that the law is another.
    mixed = compare_kl.of_gsi(result, Model(), Model(), yardstick, n=4, threshold=0.5)
    assert abs(mixed.value - soft) > 5 * mixed.error


def test_divergence_of_gsi_is_that_of_its_law():
    """Two models of thirty outcomes, whose law is known; draws stand for both."""

    generator = torch.Generator().manual_seed(2)
    rewards = torch.rand(30, generator=generator, dtype=torch.float64)
    logits = torch.randn(2, 30, generator=generator, dtype=torch.float64)
    small, large = logits.softmax(-1)
    law = laws.gsi(small, large, rewards, 4.0, 6, 0.5, fallback="published")
    guided = rewards + (large / small).log() / 4.0

    def draw(probs):
        return torch.multinomial(probs, 40_000, True, generator=generator)

    class Model:
        def __init__(self, probs):
            self.probs = probs

        def log_prob(self, tokens):
            return self.probs.log()[tokens[:, 0]]

    chosen = draw(law)
    result = WeightedSamples(
        kind="iid",
        samples={"tokens": chosen[:, None]},
        log_weights=torch.zeros(40_000),
        certificate=Certificate(target="joint tilt", law="search"),
        stats={"reward": rewards[chosen]},
        beta=4.0,
    )
    yardstick = Yardstick(rewards[draw(large)], guided[draw(small)])
    models = Model(large), Model(small)
    found = compare_kl.of_gsi(result, *models, yardstick, n=6, threshold=0.5)
    assert found.value == pytest.approx(float(kl.exact(law, large)), abs=5 * found.error + 0.01)


def test_a_run_in_two_parts_spends_what_the_first_left():
    asked = []

    class Sampler:
        def __init__(self, n):
            self.n = n

        def run(self):
            return result_of(self.n, rows=7 * self.n + 3 * (self.n % 2))

    def make(n, seed):
        asked.append((n, seed))
        return Sampler(n)

    found = spend(Method("some", make, lambda result: Spent(None)), 700, 5)
    assert found.cost.network_rows == pytest.approx(700, abs=10)
    assert len({seed for _, seed in asked}) == len(asked) == 4
    assert [n for n, _ in asked][:2] == [1, 7]
    whole = spend(Method("some", make, lambda r: Spent(None), unit=8, parts=False), 700, 5)
    assert len(whole) % 8 == 0 and asked[-1][1] == 5


def result_of(n, rows=0, **options):
    tokens = VOCABULARY.encode((["CCO", "OCC", "C1CC", "CCC"] * n)[:n])
    return WeightedSamples(
        kind=options.pop("kind", "iid"),
        samples={"tokens": tokens},
        log_weights=options.pop("log_weights", torch.zeros(n)),
        certificate=Certificate(target="joint tilt", law="consistent"),
        cost=Cost(network_rows=rows),
        stats={"reward": options.pop("reward", torch.full((n,), 0.5))},
        **options,
    )


def test_a_row_agrees_with_arithmetic():
    row = describe("some", result_of(4), Spent(None))
    # Two ways to write ethanol, propane, and a ring that does not close.
    assert (row.valid, row.distinct, row.draws) == (0.75, 2, 4)
    assert row.molecules[0][0] == "CCO"
    weights = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    reward = torch.tensor([0.2, 0.4, 0.0, 0.8], dtype=torch.float64)
    weighted = result_of(4, kind="weighted", log_weights=weights.log(), reward=reward)
    row = describe("some", weighted, Spent(None))
    mean = float(weights @ reward)
    assert row.qed[0] == pytest.approx(mean)
    error = (weights * (reward - mean)).square().sum().sqrt()
    assert row.qed[1] == pytest.approx(float(error))
    assert row.valid == pytest.approx(0.7)
    row = describe("some", result_of(4, reward=reward), Spent(None), correction=weights.log())
    assert row.corrected[0] == pytest.approx(mean)
    assert row.ess == pytest.approx(1 / 0.3)


def test_a_tilt_knows_its_divergence():
    generator = torch.Generator().manual_seed(0)
    reward = torch.rand(400, generator=generator, dtype=torch.float64)
    result = result_of(400, kind="weighted", log_weights=3.0 * reward, reward=reward, beta=3.0)
    value, error = compare_kl.kl_of_tilt(result)
    share = (3.0 * reward).softmax(0)
    assert value == pytest.approx(float((share * (share * 400).log()).sum()))
    # Against the spread over fresh sets of draws.
    others = []
    for _ in range(200):
        fresh = torch.rand(400, generator=generator, dtype=torch.float64)
        share = (3.0 * fresh).softmax(0)
        others.append(float((share * (share * 400).log()).sum()))
    assert error == pytest.approx(float(torch.tensor(others).std()), rel=0.3)


@pytest.mark.slow
def test_methods_agree_with_a_long_run():
    """Weighted and corrected means of the tilt, gated at 5 standard errors of both together."""
    found = compare(budget_rows=60_000, beta=10.0, seed=3, progress=False)
    lm = load_molecule_model("gru")
    long = ImportanceSampler(
        lm.program(), reward=drug_likeness(), beta=10.0, num_samples=20_000, seed=9, progress=False
    ).run()
    exact = describe("long", long, compare_kl.of_the_tilt(long))
    near = {
        "importance sampling": found["importance sampling"].qed,
        "SMC, learned twists": found["SMC, learned twists"].qed,
        "LCB by steps, learned values": found["LCB by steps, learned values"].corrected,
        "soft best of 16": found["soft best of 16"].corrected,
    }
    for name, (mean, error) in near.items():
        assert mean == pytest.approx(exact.qed[0], abs=5 * math.hypot(error, exact.qed[1])), name
    spent = found["SMC, learned twists"].kl
    assert spent.value == pytest.approx(
        exact.kl.value, abs=5 * math.hypot(spent.error, exact.kl.error)
    )
    for n in (16, 64):
        row = found[f"best of {n}"]
        long = BestOfN(lm.program(), reward=drug_likeness(), n=n, num_samples=100, seed=4).run()
        mean = float(long.stats["reward"].mean())
        error = float(long.stats["reward"].std()) / 10
        assert row.qed[0] == pytest.approx(mean, abs=5 * math.hypot(error, row.qed[1]))
    assert all(each.target_rows == pytest.approx(60_000, rel=0.05) for each in found.outcomes)
