# SPDX-License-Identifier: Apache-2.0
"""``pyro-tilt plan``, and the command's automatic choice."""

import json

import pytest
import torch
from typer.testing import CliRunner

from pyro_tilt.cli import app
from pyro_tilt.infer import WeightedSamples

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
kink = rewards.LowDim(lambda u: u[..., 0].abs(), torch.tensor([[1., .5]]), convex=True,
    lipschitz=1.)
plane = dist.Normal(torch.zeros(2), 1.).to_event(1)
bowl = rewards.Concave(lambda x: -2.0 * x.square().sum(-1), event_dim=1)
cup = rewards.Concave(lambda x: 2.0 * x.square().sum(-1), event_dim=1)
number = 3
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


def aligned(model, tmp_path, base, reward, *words):
    command = ["align", f"{model}:{base}", "--reward", f"{model}:{reward}", "-n", 400, *words]
    return invoke(*command, "--seed", 5, "--out", tmp_path / "out")


def written(folder):
    assert (folder / "health.png").read_bytes()[:4] == b"\x89PNG"
    summary = json.loads((folder / "summary.json").read_text())
    return WeightedSamples.load(folder / "samples.nc"), summary


@pytest.mark.parametrize(("reward", "sampler"), [("theta", "LinearTilt"), ("kink", "ConvexTilt")])
def test_a_diffusion_is_tilted(model, tmp_path, reward, sampler):
    outcome = aligned(model, tmp_path, "model", reward, "--beta", 1)
    assert outcome.exit_code == 0, outcome.output
    assert f"method: {sampler}, consistent" in outcome.output
    result, summary = written(tmp_path / "out")
    assert summary["sampler"] == result.sampler == sampler
    assert result.samples["x_0"].shape == (400, 2)
    if reward == "theta":
        # A standard Gaussian tilted by theta has its mean there; six standard errors.
        off = result.samples["x_0"].mean(0) - torch.tensor([1.0, 2.0])
        assert float(off.abs().max()) < 0.3


def test_a_distribution_is_moved(model, tmp_path):
    words = ["--closeness", "wasserstein", "--penalty", 1]
    outcome = aligned(model, tmp_path, "plane", "bowl", *words)
    assert outcome.exit_code == 0, outcome.output
    assert "method: ProximalTransport (concave), bounded" in outcome.output
    result, summary = written(tmp_path / "out")
    assert summary["sampler"] == "ProximalTransport"
    # -2 |y|^2 - |y - x|^2 / 2 is largest at x / 5.
    moved, base = result.samples["x"], result.stats["base_value"]
    assert torch.allclose(moved, base / 5.0, atol=1e-4)
    ball = ["--closeness", "wasserstein", "--radius", 0.3, "--beta", 2]
    outcome = aligned(model, tmp_path, "model", "theta", *ball)
    assert outcome.exit_code == 0, outcome.output
    result, _ = written(tmp_path / "out")
    assert float(result.stats["transport_cost"].mean()) == pytest.approx(0.3, abs=1e-5)


@pytest.mark.parametrize("base", ["plane", "model"])
def test_named_methods_take_distributions_and_diffusions(model, tmp_path, base):
    words = ["--beta", 0.2, "--method", "importance"]
    outcome = aligned(model, tmp_path, base, "theta", *words)
    assert outcome.exit_code == 0, outcome.output
    assert written(tmp_path / "out")[1]["sampler"] == "ImportanceSampler"


MOVED = ["--closeness", "wasserstein"]


@pytest.mark.parametrize(
    ("base", "reward", "words", "code", "match"),
    [
        ("plane", "bowl", ["--beta", 1, "--penalty", 1], 2, "--penalty goes with --closeness w"),
        ("plane", "bowl", [*MOVED, "--penalty", 1, "--radius", 1], 2, "not both"),
        ("plane", "bowl", [*MOVED, "--radius", -1], 1, "radius must be positive"),
        ("plane", "bowl", [*MOVED, "--beta", 1, "--method", "lcb"], 2, "belongs to --method auto"),
        ("plane", "bowl", [], 2, "needs --beta"),
        ("plane", "cup", [*MOVED, "--penalty", 1], 1, "not concave, as was said: between"),
        ("model", "slope", ["--beta", 1], 1, "event shape (2,)"),
        ("number", "slope", ["--beta", 1], 2, "must be a distribution of pyro.distributions, a d"),
        (
            "number",
            "slope",
            ["--beta", 1, "--method", "lcb"],
            2,
            "a Pyro program; got builtins.int",
        ),
    ],
)
def test_align_says_what_is_wrong(model, tmp_path, base, reward, words, code, match):
    outcome = aligned(model, tmp_path, base, reward, *words)
    assert outcome.exit_code == code, outcome.output
    assert match in outcome.output
    assert not (tmp_path / "out" / "samples.nc").exists()
