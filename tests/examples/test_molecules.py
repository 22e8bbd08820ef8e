# SPDX-License-Identifier: Apache-2.0
import json
import sys

import pytest
import torch

from pyro_tilt.examples.molecules import (
    VOCABULARY,
    Vocabulary,
    data,
    load_molecule_model,
    model,
    programs,
    reward,
    train,
)
from pyro_tilt.examples.molecules import __main__ as report
from pyro_tilt.infer import SMC, ImportanceSampler

pytest.importorskip("safetensors", reason="needs pyro-tilt[language]")
pytest.importorskip("rdkit", reason="needs pyro-tilt[language]")
ASPIRIN = "CC(=O)Oc1ccccc1C(=O)O"
SHIPPED = [name for name in model.MAKERS if (model.WEIGHTS / f"{name}.safetensors").exists()]
PARAMETERS = {"gru": 656_814, "draft": 43_374, "gpt2": 609_408}
NATS = {"gru": (0.68, 0.70), "draft": (0.78, 0.80), "gpt2": (0.70, 0.95)}


@pytest.fixture(scope="module")
def held_out():
    return VOCABULARY.encode(data.split_molecules().held_out[:300])


def test_the_molecules_are_real_and_apart():
    split = data.split_molecules()
    assert len(data.load_molecules()) == len(split.train) + len(split.held_out) > 14_000
    assert not set(split.train) & set(split.held_out)
    assert Vocabulary("".join(sorted(set("".join(data.load_molecules()))))) == VOCABULARY


def test_strings_survive_their_tokens():
    strings = data.split_molecules().held_out[:50]
    assert VOCABULARY.decode(VOCABULARY.encode(strings)) == strings
    with pytest.raises(ValueError, match="not in the vocabulary"):
        VOCABULARY.encode(["C~C"])


def test_drug_likeness():
    assert reward.qed(ASPIRIN) == pytest.approx(0.550, abs=1e-3)
    assert reward.qed("C1CC") == 0.0 == reward.qed("")
    tokens = VOCABULARY.encode([ASPIRIN, "C1CC"])
    found = reward.drug_likeness()(tokens)
    assert found.tolist() == [pytest.approx(0.550, abs=1e-3), 0.0]
    assert reward.drug_likeness()(tokens[None]).shape == (1, 2)
    unfinished = tokens[:1, : len(ASPIRIN)]
    assert reward.drug_likeness()(unfinished).tolist() == [0.0]
    bounds = reward.drug_likeness()
    assert (bounds.lower_bound, bounds.upper_bound) == (0.0, 1.0)


@pytest.mark.parametrize("name", SHIPPED)
def test_weights_are_small_and_score_real_molecules(name, held_out):
    assert (model.WEIGHTS / f"{name}.safetensors").stat().st_size < 4_000_000
    facts = model.load_facts(name)
    assert facts["parameters"] == PARAMETERS[name]
    assert NATS[name][0] < facts["held_out_nats"] < NATS[name][1]
    network = model.load_network(name)
    assert train.held_out_loss(network, held_out) == pytest.approx(facts["held_out_nats"], abs=0.03)


@pytest.mark.parametrize("name", SHIPPED)
def test_language_model_scores_as_the_network(name, held_out):
    lm = load_molecule_model(name, suppress_tokens=())
    tokens = held_out[:20]
    each = model.log_probs(lm.model, tokens)
    stopped = (tokens == VOCABULARY.stop).long().cumsum(-1)
    torch.testing.assert_close(lm.log_prob(tokens), each.masked_fill(stopped > 1, 0.0).sum(-1))


@pytest.mark.parametrize("name", SHIPPED)
def test_models_write_molecules(name):
    lm = load_molecule_model(name)
    written = lm.generate(60, seed=0)
    found = report.quality(lm, written.tokens)
    assert found["finished"] > 0.9
    assert found["valid"] > 0.25
    assert found["novel"] > 0.5
    assert (written.tokens != VOCABULARY.begin).all()
    torch.testing.assert_close(written.log_prob, lm.log_prob(written.tokens), rtol=1e-4, atol=1e-4)


def test_the_tilt_makes_better_molecules():
    options = {"reward": programs.drug_likeness, "beta": 3.0, "num_particles": 100, "seed": 0}
    tilted = ImportanceSampler(programs.draft, **options).run()
    reward_of = tilted.stats["reward"].double()
    assert float(tilted.get_normalized_weights() @ reward_of) > float(reward_of.mean()) + 0.1
    smc = SMC(programs.draft, check_lineage=True, **options).run()
    lengths = (smc.samples["tokens"] != VOCABULARY.stop).sum(-1)
    assert smc.cost.network_rows == 1 + int(lengths.clamp(max=model.MAX_TOKENS - 1).sum())


def test_unknown_names_list_the_known_ones():
    with pytest.raises(AttributeError, match="gru, draft, gpt2"):
        _ = programs.nothing
    with pytest.raises(ValueError, match="gru, draft, gpt2"):
        load_molecule_model("nothing")


def test_report(tmp_path, capsys):
    out = tmp_path / "report.json"
    report.main(["--models", "draft", "--draws", "30", "-n", "4", "--out", str(out)])
    found = json.loads(out.read_text())
    assert set(found) == {"draft", "draft, SMC, beta 10", "draft, best of 4"}
    assert all(0.0 <= share <= 1.0 for row in found.values() for share in row.values())
    assert "qed" in capsys.readouterr().out
    assert found["draft, best of 4"]["qed"] > found["draft"]["qed"]


def test_quality_counts(monkeypatch):
    lm = load_molecule_model("draft")
    tokens = VOCABULARY.encode(["CCO", "OCC", "C1CC", ""])
    cut = torch.cat([tokens, tokens[:1, :1].expand(1, tokens.shape[1])])
    monkeypatch.setattr(report, "load_molecules", lambda: ("CCO",))
    found = report.quality(lm, cut)
    assert found["finished"] == pytest.approx(0.8)
    assert found["valid"] == pytest.approx(0.4)
    assert (found["unique"], found["novel"]) == (0.5, 0.0)


def test_training_learns_and_reproduces():
    tokens = VOCABULARY.encode(data.split_molecules().train[:200])
    settings = train.Settings(model.make_draft, steps=12, batch=16, warm_up=2)
    first, again = (train.train(tokens, settings, name="smoke") for _ in range(2))
    assert train.held_out_loss(first, tokens) == train.held_out_loss(again, tokens) < 3.6
    assert not any(p.requires_grad for p in first.parameters())


def test_without_rdkit_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "rdkit", None)
    monkeypatch.setitem(sys.modules, "rdkit.Chem", None)
    with pytest.raises(ImportError, match=r"pyro-tilt\[language\]"):
        reward.is_valid("C")
