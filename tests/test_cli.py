# SPDX-License-Identifier: Apache-2.0
import json
import math

import pytest
from typer.testing import CliRunner

from pyro_tilt.cli import app
from pyro_tilt.infer import WeightedSamples

MODEL = """
import pyro, pyro.distributions as dist, torch
from pyro_tilt import rewards

def program():
    return pyro.sample("x", dist.Normal(torch.tensor(0.), torch.tensor(1.)))

def black_box(x):
    return torch.sigmoid(x)

def broken(x):
    return x * float("nan")

bounded = rewards.Bounded(black_box, low=0., high=1.)
number = 3
"""


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.py"
    path.write_text(MODEL)
    return str(path)


def invoke(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def run(model, tmp_path, reward, *words):
    return invoke(
        "align", f"{model}:program", "--reward", f"{model}:{reward}", "--beta", 2.0,
        "-n", 400, "--seed", 3, "--out", tmp_path / "out", *words,
    )  # fmt: skip


@pytest.mark.parametrize(
    "method,reward,sampler",
    [
        ("auto", "bounded", "Rejection"),
        ("auto", "black_box", "ImportanceSampler"),
        ("lcb", "black_box", "LCB"),
        ("importance", "bounded", "ImportanceSampler"),
        ("rejection", "bounded", "Rejection"),
    ],
)
def test_writes_what_it_says(model, tmp_path, method, reward, sampler):
    outcome = run(model, tmp_path, reward, "--method", method)
    assert outcome.exit_code == 0, outcome.output
    assert sampler in outcome.output
    result = WeightedSamples.load(tmp_path / "out" / "samples.nc")
    assert len(result) == 400
    assert result.sampler == sampler
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["sampler"] == sampler
    assert (tmp_path / "out" / "health.png").read_bytes()[:4] == b"\x89PNG"


def test_samples_file_opens_in_arviz(model, tmp_path):
    import arviz

    assert run(model, tmp_path, "bounded").exit_code == 0
    posterior = arviz.from_netcdf(tmp_path / "out" / "samples.nc").posterior
    assert posterior["x"].shape == (1, 400)


def test_same_seed_same_draws(model, tmp_path):
    draws = []
    for folder in ("one", "two"):
        assert run(model, tmp_path / folder, "bounded").exit_code == 0
        draws.append(WeightedSamples.load(tmp_path / folder / "out" / "samples.nc").samples["x"])
    assert (draws[0] == draws[1]).all()


@pytest.mark.parametrize(
    "words,message",
    [
        (["align", "nowhere.py:program", "--reward", "x:y", "--beta", 1], "no such file"),
        (["align", "program", "--reward", "x:y", "--beta", 1], "FILE_OR_MODULE:NAME"),
        (["align", "no.such.module:program", "--reward", "x:y", "--beta", 1], "No module"),
    ],
)
def test_wrong_command_lines_exit_with_2(words, message):
    outcome = invoke(*words)
    assert outcome.exit_code == 2
    assert message in outcome.output


def test_wrong_names_list_the_right_ones(model, tmp_path):
    outcome = run(model, tmp_path, "bonded")
    assert outcome.exit_code == 2
    assert "bounded" in outcome.output
    outcome = run(model, tmp_path, "number")
    assert outcome.exit_code == 2
    assert "int" in outcome.output


def test_beta_must_be_finite(model, tmp_path):
    outcome = run(model, tmp_path, "bounded", "--beta", math.inf)
    assert outcome.exit_code == 2


def test_failed_runs_exit_with_1(model, tmp_path):
    outcome = run(model, tmp_path, "black_box", "--method", "rejection")
    assert outcome.exit_code == 1
    assert "bound" in outcome.output
    outcome = run(model, tmp_path, "broken")
    assert outcome.exit_code == 1
    assert "nan" in outcome.output.lower()
