# SPDX-License-Identifier: Apache-2.0
"""The command on language programs."""

import csv
import json

import pytest
import torch
from typer.testing import CliRunner

from pyro_tilt.cli import app
from pyro_tilt.cli.methods import METHODS, Method
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
tuned = NeuralLM(Coin(), temperature=0.5, **options).program()
def score(carry, t):
    return (carry.tokens == 1).double().sum(-1)
def value(carry, t):
    return 0.5 * score(carry, t)
def judged(carry, t):
    return score(carry, t)
reward = rewards.Bounded(lambda y: (y == 1).float().sum(-1), low=0.0, high=3.0, event_dim=1)
"""


NEEDED = {
    Method.gsi: ["--draft", ":draft"],
    Method.aisp: ["--module", ":lm.model.head", "--choose-from", 2],
    Method.reward_guided: ["--draft", ":draft", "--threshold", 1],
    Method.reward_shifted: ["--aligned", ":draft", "--reference", ":tuned"],
    Method.speculative_rejection: ["--score", ":score", "--choose-from", 8],
}


GUIDED = ["--method", "gsi", "--beta", 1, "--draft", ":draft"]


def texts(tmp_path):
    return list(csv.DictReader((tmp_path / "out" / "texts.csv").read_text().splitlines()))


@pytest.fixture
def align(tmp_path):
    path = tmp_path / "model.py"
    path.write_text(MODEL)

    def run(*words, n=300):
        fixed = ["align", f"{path}:program"]
        fixed += [] if "reward-shifted" in words else ["--reward", f"{path}:reward"]
        fixed += [] if n is None else ["-n", n]
        words = [f"{path}:{word[1:]}" if str(word)[0] == ":" else word for word in words]
        options = [str(word) for word in (*fixed, "--out", tmp_path / "out", *words)]
        return CliRunner().invoke(app, options)

    return run


@pytest.mark.parametrize("method", list(Method))
def test_every_method_shows_text_with_reward_and_weight(align, tmp_path, method):
    words = ["--method", method.value]
    if method is Method.auto or not METHODS[method].no_beta:
        words += ["--beta", 1.0]
    words += NEEDED.get(method, [])
    outcome = align(*words, "--show", 3)
    assert outcome.exit_code == 0, outcome.output
    sampler = "Rejection" if method is Method.auto else METHODS[method].sampler
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["sampler"] == sampler
    rows = texts(tmp_path)
    result = WeightedSamples.load(tmp_path / "out" / "samples.nc")
    assert len(rows) == len(result) == 300
    assert sum(float(row["weight"]) for row in rows) == pytest.approx(1.0)
    if method is Method.reward_shifted:
        assert all(row["reward"] == "" for row in rows)
    else:
        assert all(float(row["reward"]) == row["text"].count("b") for row in rows)
    shown = outcome.output[outcome.output.index("different ones") :].splitlines()
    best = dict.fromkeys((row["text"] for row in rows), 0.0)
    for row in rows:
        best[row["text"]] += float(row["weight"])
    assert best[shown[1].split()[-1]] == pytest.approx(max(best.values()))
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


def sampled(outcome, tmp_path):
    assert outcome.exit_code == 0, outcome.output
    return WeightedSamples.load(tmp_path / "out" / "samples.nc")


@pytest.mark.parametrize(
    "method,sampler",
    [
        ("best-of-n", "BlockBestOfN"),
        ("soft-best-of-n", "SoftBlockBestOfN"),
        ("exp-best-of-n", "ExpBestOfN"),
        ("truncated-rejection", "TruncatedRejection"),
    ],
)
def test_blocks_and_values(align, tmp_path, method, sampler):
    words = ["--method", method, "--choose-from", 3, "--block", 2, "--value", ":value"]
    words += [] if method == "best-of-n" else ["--beta", 0.5]
    found = sampled(align(*words), tmp_path)
    assert (found.sampler, found.certificate.law) == (sampler, "search")
    # The choice after the first block of two is made by the value, that after the second by reward.
    width = 4 if method == "truncated-rejection" else 3
    assert found.cost.value_calls == 300 * width
    if method == "best-of-n":
        return
    exact = sampled(align(*words, "--exact-values"), tmp_path)
    assert exact.certificate.law in ("consistent", "bounded")
    assert "which the user states" in exact.certificate.excludes


def test_log_bound_is_that_of_the_samplers_that_reject(align, tmp_path):
    rates = []
    for bound in (3.0, 5.0):
        words = ["--beta", 1, "--method", "exp-best-of-n", "--choose-from", 2]
        found = sampled(align(*words, "--log-bound", bound, n=4000), tmp_path)
        assert found.info["log_bound"] == bound
        rates.append(found.info["hit_rate"])
    assert rates[0] > 4 * rates[1]
    outcome = align("--beta", 1, "--method", "truncated-rejection", "--log-bound", 0.5)
    assert outcome.exit_code == 1 and "above the bound" in outcome.output


def test_gsi_debiased_exact_and_by_blocks(align, tmp_path):
    words = ["--method", "gsi", "--draft", ":draft", "--beta", 1.5, "--choose-from", 3]
    debiased = sampled(align(*words, "--fallback", "debiased"), tmp_path)
    assert debiased.certificate.law == "consistent"
    assert "the debiased GSI law (n=3, threshold 0.5)" in debiased.certificate.covers
    exact = sampled(align(*words, "--accept", "exact", "--log-bound", 12), tmp_path)
    assert exact.certificate.confidence == 0.95 or exact.certificate.law == "consistent"
    assert "accepted exactly" in exact.certificate.covers
    blocks = sampled(align(*words, "--block", 1, "--value", ":value"), tmp_path)
    assert "by blocks of 1 steps" in blocks.certificate.covers


def test_speculative_methods_are_run_with_their_options(align, tmp_path):
    words = ["--method", "speculative-rejection", "--score", ":score", "--choose-from", 8]
    found = sampled(align(*words, "--alpha", 0.75, "--checks", 2), tmp_path)
    assert found.info["survivors"] == 2.0 and found.info["n"] == 8.0
    all_of_them = ["--method", "speculative-rejection", "--alpha", 0, "--choose-from", 8]
    assert sampled(align(*all_of_them), tmp_path).info["survivors"] == 8.0
    words = ["--method", "reward-guided", "--draft", ":draft", "--threshold", 2]
    assert "threshold 2" in sampled(align(*words), tmp_path).certificate.target
    blocks = sampled(align(*words, "--block", 1, "--value", ":judged"), tmp_path)
    assert "blocks of 1 steps" in blocks.certificate.target
    words = ["--method", "reward-shifted", "--aligned", ":draft", "--reference", ":tuned"]
    assert "token tilt" in sampled(align(*words), tmp_path).certificate.target
    published = sampled(align(*words, "--rule", "published"), tmp_path)
    assert "published law" in published.certificate.target


def test_aisp_takes_its_options(align, tmp_path):
    words = ["--method", "aisp", "--module", ":lm.model.head", "--choose-from", 4, "--beta", 2]
    words += ["--iterations", 3, "--alpha", 0.5, "--tau", 1]
    found = {}
    for sigma in (0.5, 5.0):
        found[sigma] = sampled(align(*words, "--sigma", sigma, n=1), tmp_path)
        assert texts(tmp_path)[0]["text"].endswith("aa")
    assert found[0.5].cost.base_draws == 4 * 3 + 4
    assert found[0.5].info["effective_lam"] == 0.25
    assert found[0.5].info["kl_bound"] != found[5.0].info["kl_bound"]


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
        (["--method", "smc", "--beta", 1, "--block", 2], "--block belongs to --method best-of-n"),
        (["--method", "best-of-n", "--value", ":value"], "--value goes with --block"),
        (["--method", "best-of-n", "--exact-values"], "--exact-values belongs to --method soft"),
        (["--method", "soft-best-of-n", "--beta", 1, "--exact-values"], "goes with --block"),
        (["--method", "soft-best-of-n", "--beta", 1, "--block", 0], "--block"),
        ([*GUIDED, "--block", 1], "needs --value"),
        ([*GUIDED, "--accept", "exact"], "--log-bound"),
        ([*GUIDED, "--log-bound", 1], "--accept exact"),
        (
            [*GUIDED, "--accept", "exact", "--log-bound", 9, "--threshold", 1],
            "--accept exact has no --threshold",
        ),
        ([*GUIDED, "--fallback", "no"], "debiased"),
        (["--method", "aisp", "--beta", 1, "--module", ":lm", "--fallback", "debiased"], "gsi"),
        (["--method", "speculative-rejection"], "needs --score"),
        (["--method", "speculative-rejection", "--beta", 1], "order of rewards"),
        (["--method", "speculative-rejection", "--score", ":scores"], "--score: "),
        (["--method", "reward-guided"], "needs --draft"),
        (["--method", "reward-guided", "--draft", ":draft", "--beta", 1], "threshold decides"),
        (["--method", "reward-shifted", "--aligned", ":draft"], "needs --reference"),
        (["--method", "reward-shifted", "--reward", ":reward"], "carries it"),
        (["--method", "best-of-n", "--iterations", 2], "--iterations belongs to --method aisp"),
    ],
)
def test_options_that_do_not_go_together_exit_with_2(align, words, message):
    outcome = align(*words)
    assert outcome.exit_code == 2
    assert message in outcome.output


def test_a_method_with_a_reward_asks_for_it(tmp_path):
    path = tmp_path / "model.py"
    path.write_text(MODEL)
    outcome = CliRunner().invoke(app, ["align", f"{path}:program", "--beta", "1"])
    assert outcome.exit_code == 2 and "needs --reward" in outcome.output


def test_a_bound_that_is_not_known_names_what_to_do(tmp_path):
    path = tmp_path / "model.py"
    path.write_text(MODEL + "\ndef box(y):\n    return (y == 1).float().sum(-1)\n")
    words = ["align", f"{path}:program", "--reward", f"{path}:box", "--beta", "1"]
    words += ["--method", "truncated-rejection", "--out", str(tmp_path / "out")]
    outcome = CliRunner().invoke(app, words)
    assert outcome.exit_code == 1 and "log_bound=" in outcome.output
    assert CliRunner().invoke(app, [*words, "--log-bound", "3"]).exit_code == 0


def test_tables_are_shown_as_text_too(tmp_path):
    path = tmp_path / "prog.py"
    path.write_text(
        "from pyro_tilt.language import TabularLM\n"
        "words = ['a', 'b', '.']\n"
        "tprog = TabularLM.random(3, 3, stop_token=2, vocabulary=words).program()\n"
        "def reward(y):\n    return (y == 1).double().sum(-1)\n"
    )
    words = ["align", f"{path}:tprog", "--reward", f"{path}:reward", "--method", "best-of-n"]
    outcome = CliRunner().invoke(app, [*words, "-n", "50", "--out", str(tmp_path / "out")])
    assert outcome.exit_code == 0, outcome.output
    rows = texts(tmp_path)
    assert len(rows) == 50
    assert all(float(row["reward"]) == row["text"].split().count("b") for row in rows)
    assert "different ones" in outcome.output
    assert "of 50 sequences were cut at the limit" in outcome.output
