# SPDX-License-Identifier: Apache-2.0
"""``pyro-tilt plan``, and the command's automatic choice."""

import json

import pytest
from typer.testing import CliRunner

from pyro_tilt.cli import app

MODEL = """
import pyro, pyro.distributions as dist, torch
from pyro_tilt import diffusion, rewards

def program():
    return pyro.sample("x", dist.Normal(torch.tensor(0.), torch.tensor(1.)))

def bits():
    return pyro.sample("x", dist.Bernoulli(torch.full((20,), 0.5)).to_event(1))

def steep(x):
    return 6.0 * x

def count(x):
    return 30.0 * x.sum(-1)

law = dist.Normal(0., 1.)
model = diffusion.MixtureDiffusion(
    dist.MultivariateNormal(torch.zeros(2), torch.eye(2)), diffusion.VP.linear(10))
theta = rewards.Linear(torch.tensor([1., 2.]))
slope = rewards.Linear(torch.tensor(1.5))
"""


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.py"
    path.write_text(MODEL)
    return str(path)


def invoke(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.mark.parametrize(
    "base,reward,words,choice",
    [
        ("program", "steep", [], "TemperedSMC"),
        ("law", "slope", [], "Tilted"),
        ("model", "theta", [], "LinearTilt"),
        (
            "model",
            "theta",
            ["--closeness", "wasserstein", "--radius", 0.2],
            "ProximalTransport (closed form)",
        ),
    ],
)
def test_prints_the_plan(model, base, reward, words, choice):
    command = ["plan", f"{model}:{base}", "--reward", f"{model}:{reward}", *words]
    outcome = invoke(*command)
    assert outcome.exit_code == 0, outcome.output
    assert f"Picked: {choice}" in outcome.output
    data = json.loads(invoke(*command, "--json").output)
    assert data["choice"] == choice and data["entries"]


def test_plan_says_what_is_wrong(model):
    outcome = invoke("plan", f"{model}:law", "--reward", f"{model}:slope", "--closeness", "tv")
    assert outcome.exit_code == 1 and "closeness must be one of" in outcome.output
    outcome = invoke("plan", f"{model}:nothing", "--reward", f"{model}:slope")
    assert outcome.exit_code == 2 and "program" in outcome.output


def test_auto_takes_what_the_plan_picks(model, tmp_path):
    words = ["--beta", 1, "-n", 300, "--out", tmp_path / "out"]
    outcome = invoke("align", f"{model}:program", "--reward", f"{model}:steep", *words)
    assert outcome.exit_code == 0, outcome.output
    assert "method: TemperedSMC, consistent" in outcome.output
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["sampler"] == "TemperedSMC"


def test_auto_refuses_rather_than_guess(model, tmp_path):
    words = ["--beta", 1, "-n", 300, "--out", tmp_path / "out"]
    outcome = invoke("align", f"{model}:bits", "--reward", f"{model}:count", *words)
    assert outcome.exit_code == 1
    assert "picks nothing" in outcome.output and "ImportanceSampler" in outcome.output
    assert not (tmp_path / "out" / "samples.nc").exists()
