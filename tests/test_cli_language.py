# SPDX-License-Identifier: Apache-2.0
"""The command on language programs."""

import csv
import json

import pytest
import torch
from typer.testing import CliRunner

from pyro_tilt.cli import _METHODS, Method, app
from pyro_tilt.infer import WeightedSamples
from pyro_tilt.language import TabularLM, laws

MODEL = """
import torch
from pyro_tilt import rewards
from pyro_tilt.language import NeuralLM

class Coin(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(2, 3)
        self.head.weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
        self.head.bias.data = torch.tensor([1.0, 0.5, 0.0])
    def initial_state(self, batch):
        return torch.zeros(batch, 1)
    def forward(self, tokens, state):
        return self.head(torch.zeros(*tokens.shape, 2)), state

options = dict(max_tokens=3, begin_token=0, stop_token=2,
               decode=lambda y: ["".join("ab."[i] for i in row) for row in y.tolist()])
lm = NeuralLM(Coin(), **options)
program = lm.program()
draft = NeuralLM(Coin(), temperature=0.25, **options).program()
reward = rewards.Bounded(lambda y: (y == 1).float().sum(-1), low=0.0, high=3.0, event_dim=1)
"""


NEEDED = {
    Method.gsi: ["--draft", ":draft"],
    Method.aisp: ["--module", ":lm.model.head", "--choose-from", 2],
}


def texts(tmp_path):
    return list(csv.DictReader((tmp_path / "out" / "texts.csv").read_text().splitlines()))


@pytest.fixture
def align(tmp_path):
    path = tmp_path / "model.py"
    path.write_text(MODEL)

    def run(*words, n=300):
        fixed = ["align", f"{path}:program", "--reward", f"{path}:reward"]
        fixed += [] if n is None else ["-n", n]
        words = [f"{path}:{word[1:]}" if str(word)[0] == ":" else word for word in words]
        options = [str(word) for word in (*fixed, "--out", tmp_path / "out", *words)]
        return CliRunner().invoke(app, options)

    return run


@pytest.mark.parametrize("method", list(Method))
def test_every_method_shows_text_with_reward_and_weight(align, tmp_path, method):
    words = ["--method", method.value]
    if method is not Method.best_of_n:
        words += ["--beta", 1.0]
    words += NEEDED.get(method, [])
    outcome = align(*words, "--show", 3)
    assert outcome.exit_code == 0, outcome.output
    sampler = "Rejection" if method is Method.auto else _METHODS[method].sampler
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["sampler"] == sampler
    rows = texts(tmp_path)
    result = WeightedSamples.load(tmp_path / "out" / "samples.nc")
    assert len(rows) == len(result) == 300
    assert sum(float(row["weight"]) for row in rows) == pytest.approx(1.0)
    assert all(float(row["reward"]) == row["text"].count("b") for row in rows)
    shown = outcome.output[outcome.output.index("different ones") :].splitlines()
    best = dict.fromkeys((row["text"] for row in rows), 0.0)
    for row in rows:
        best[row["text"]] += float(row["weight"])
    assert best[shown[1].split()[2]] == pytest.approx(max(best.values()))
    assert "of 300 sequences were cut at the limit" in outcome.output


def test_choose_from_is_the_n_of_best_of_n(align, tmp_path):
    found = {}
    for n in (1, 64):
        assert align("--method", "best-of-n", "--choose-from", n).exit_code == 0
        found[n] = sum(float(row["reward"]) for row in texts(tmp_path)) / 300
    assert found[64] > found[1] + 0.5
    assert align("--method", "soft-best-of-n", "--choose-from", 4, "--beta", 2).exit_code == 0
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["cost"]["base_draws"] == 1200


@pytest.mark.parametrize("threshold", ["-inf", "1.5", None])
def test_gsi_is_run_with_the_draft_the_threshold_and_n(align, tmp_path, threshold):
    words = ["--method", "gsi", "--draft", ":draft", "--beta", 1.5, "--choose-from", 3]
    words += [] if threshold is None else [f"--threshold={threshold}"]
    outcome = align(*words, n=4000)
    assert outcome.exit_code == 0, outcome.output
    result = WeightedSamples.load(tmp_path / "out" / "samples.nc")
    target = TabularLM(torch.tensor([1.0, 0.5, 0.0]), 3, stop_token=2)
    reward = (target.enumerate() == 1).sum(-1).double()
    u = 0.5 if threshold is None else float(threshold)
    models = target.tempered(0.25).law().double(), target.law().double(), reward, 1.5, 3, u
    law, kept = laws.gsi(*models), float(laws.gsi_acceptance(*models))
    mean = float((law * reward).sum())
    error = float((law * (reward - mean).square()).sum() / len(result)) ** 0.5
    # Five standard errors: a false alarm in a million.
    assert float(result.stats["reward"].mean()) == pytest.approx(mean, abs=5 * error)
    error = (kept * max(1.0 - kept, 0.0) / len(result)) ** 0.5
    accepted = float((result.stats["accepted"] > 0).double().mean())
    assert accepted == pytest.approx(kept, abs=5 * error + 1e-9)
    assert result.info["draft_rows"] == 4000 * 3


def test_aisp_perturbs_the_module_and_searches_once_by_default(align, tmp_path):
    words = ["--method", "aisp", "--module", ":lm.model.head", "--choose-from", 8, "--beta", 4]
    assert align(*words, n=None).exit_code == 0
    assert len(texts(tmp_path)) == 1
    outcome = align(*words, n=3)
    assert outcome.exit_code == 0, outcome.output
    result = WeightedSamples.load(tmp_path / "out" / "samples.nc")
    assert result.info["n"] == 8.0 and result.info["lam"] == 0.25
    # Greedy decoding alone writes "aaa", of reward 0; the search finds the largest reward.
    assert [row["text"] for row in texts(tmp_path)] == ["bbb"] * 3
    assert result.certificate.law == "search"


@pytest.mark.parametrize(
    "words,message",
    [
        (["--method", "smc"], "needs --beta"),
        (["--method", "best-of-n", "--beta", 1], "has no --beta"),
        (["--method", "smc", "--beta", 1, "--choose-from", 4], "best-of-n or soft-best-of-n"),
        ([], "needs --beta"),
        (["--method", "gsi", "--beta", 1], "needs --draft"),
        (["--method", "aisp", "--beta", 1], "needs --module"),
        (["--method", "gsi", "--beta", 1, "--draft", ":small"], "--draft: "),
        (["--method", "smc", "--beta", 1, "--draft", ":draft"], "--draft belongs to --method gsi"),
        (["--method", "smc", "--beta", 1, "--threshold", 1], "--threshold belongs to --method gsi"),
        (["--method", "gsi", "--beta", 1, "--module", ":lm", "--draft", ":draft"], "--method aisp"),
        (["--method", "gradient", "--beta", 1], "soft-best-of-n"),
    ],
)
def test_options_that_do_not_go_together_exit_with_2(align, words, message):
    outcome = align(*words)
    assert outcome.exit_code == 2
    assert message in outcome.output
