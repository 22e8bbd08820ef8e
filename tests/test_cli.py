# SPDX-License-Identifier: Apache-2.0
import json
import math
import warnings
from functools import partial
from operator import truediv

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

def raises(x):
    raise KeyError("no entry")

def failing():
    with torch.no_grad():
        raise RuntimeError("no weights here")

def with_argument(n, m=1):
    return program()

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


def test_errors_of_the_users_code_name_its_line(model, tmp_path):
    where = MODEL.splitlines().index('    raise KeyError("no entry")') + 1
    outcome = run(model, tmp_path, "raises")
    assert outcome.exit_code == 1 and isinstance(outcome.exception, SystemExit)
    assert f"model.py, line {where}, in raises: KeyError: 'no entry'" in outcome.output
    outcome = invoke("plan", f"{model}:failing", "--reward", f"{model}:black_box")
    assert outcome.exit_code == 1
    # What Pyro adds about the sites seen so far is no part of the message.
    assert outcome.output.endswith("in failing: RuntimeError: no weights here\n")


def test_errors_of_this_package_keep_their_traceback(model, tmp_path, monkeypatch):
    # A builtin leaves no line of its own, as where the package divides by zero.
    monkeypatch.setattr("pyro_tilt.infer.ImportanceSampler.run", partial(truediv, 1, 0))
    outcome = run(model, tmp_path, "black_box", "--method", "importance")
    assert isinstance(outcome.exception, ZeroDivisionError)


def test_warnings_are_sentences(model, tmp_path):
    words = ["--method", "importance", "--beta", 60.0, "-n", 50]
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        outcome = run(model, tmp_path, "black_box", *words)
        plain = warnings.showwarning
    assert outcome.exit_code == 0, outcome.output
    assert "pyro-tilt: warning: importance weights are too heavy" in outcome.output
    assert "app.py" not in outcome.output and plain is warnings.showwarning


@pytest.mark.parametrize("command", ["align", "plan"])
def test_programs_with_arguments_are_refused_by_name(model, tmp_path, command):
    words = [f"{model}:with_argument", "--reward", f"{model}:black_box", "--beta", 1.0]
    outcome = invoke(command, *words)
    assert outcome.exit_code == 2
    assert "with_argument needs n, and a program runs without" in outcome.output


def test_a_folder_that_takes_no_files_is_refused_before_the_run(model, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pyro_tilt.cli.writing.TemporaryFile", full)
    outcome = run(model, tmp_path, "black_box")
    assert outcome.exit_code == 2 and "verdict" not in outcome.output
    assert "cannot be written to: No space left" in outcome.output


def test_a_file_that_cannot_be_written_ends_with_a_message(model, tmp_path):
    (tmp_path / "out" / "samples.nc").mkdir(parents=True)
    outcome = run(model, tmp_path, "black_box")
    assert outcome.exit_code == 1 and isinstance(outcome.exception, SystemExit)
    assert "samples.nc" in outcome.output
