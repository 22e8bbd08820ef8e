# SPDX-License-Identifier: Apache-2.0
"""The command on language programs."""

import csv
import json

import pytest
from typer.testing import CliRunner

from pyro_tilt.cli import _METHODS, Method, app
from pyro_tilt.infer import WeightedSamples

MODEL = """
import torch
from pyro_tilt import rewards
from pyro_tilt.language import NeuralLM

class Coin(torch.nn.Module):
    def initial_state(self, batch):
        return torch.zeros(batch, 1)
    def forward(self, tokens, state):
        return torch.tensor([1.0, 0.5, 0.0]).expand(*tokens.shape, 3), state

lm = NeuralLM(Coin(), max_tokens=3, begin_token=0, stop_token=2,
              decode=lambda y: ["".join("ab."[i] for i in row) for row in y.tolist()])
program = lm.program()
reward = rewards.Bounded(lambda y: (y == 1).float().sum(-1), low=0.0, high=3.0, event_dim=1)
"""


def texts(tmp_path):
    return list(csv.DictReader((tmp_path / "out" / "texts.csv").read_text().splitlines()))


@pytest.fixture
def align(tmp_path):
    path = tmp_path / "model.py"
    path.write_text(MODEL)

    def run(*words):
        fixed = ["align", f"{path}:program", "--reward", f"{path}:reward", "-n", 300]
        options = [str(word) for word in (*fixed, "--out", tmp_path / "out", *words)]
        return CliRunner().invoke(app, options)

    return run


@pytest.mark.parametrize("method", list(Method))
def test_every_method_shows_text_with_reward_and_weight(align, tmp_path, method):
    words = ["--method", method.value]
    if method is not Method.best_of_n:
        words += ["--beta", 1.0]
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


@pytest.mark.parametrize(
    "words,message",
    [
        (["--method", "smc"], "needs --beta"),
        (["--method", "best-of-n", "--beta", 1], "has no --beta"),
        (["--method", "smc", "--beta", 1, "--choose-from", 4], "best-of-n or soft-best-of-n"),
        ([], "needs --beta"),
        (["--method", "gradient", "--beta", 1], "soft-best-of-n"),
    ],
)
def test_options_that_do_not_go_together_exit_with_2(align, words, message):
    outcome = align(*words)
    assert outcome.exit_code == 2
    assert message in outcome.output
