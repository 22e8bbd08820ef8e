# SPDX-License-Identifier: Apache-2.0
"""The benchmark of constrained writing: its exact evidence, its automata, and what a row says."""

import importlib
import itertools
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from pyro_tilt.examples.molecules.model import CHARACTERS, GatedRecurrent, make_gpt2
from pyro_tilt.language.protocols import Decoding

ROOT = Path(__file__).parents[1]
LETTERS = "CNO="
COUNT = 64


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    return importlib.import_module("benchmarks.bench_constrained_peers")


@pytest.fixture
def short_tasks(bench):
    task = importlib.import_module("benchmarks.peers.constrained_task")
    return [task.without(LETTERS, "C", 3), task.chain(LETTERS, 5)]


def tiny_network(bench, task):
    torch.manual_seed(3)
    net = GatedRecurrent(2 + len(LETTERS), embedding=8, hidden=12, layers=1)
    for parameter in net.parameters():
        parameter.data.mul_(3.0)
    return bench.language_model(net.requires_grad_(False), task)


def accepted(task, tokens):
    """Said once more, in words: by the letters, without an automaton."""
    text = ["^$", *LETTERS]
    written = "".join(text[token - 1] if token > 0 else "?" for token in tokens)
    if not task.stops:
        return re.fullmatch("[NO=]{3}", written) is not None
    return re.fullmatch(r"C([ON]?C)*([ON]?|(\^\$)+)", written) is not None


def everything(task):
    return list(itertools.product(range(2 + len(LETTERS)), repeat=task.length))


@pytest.mark.parametrize("which", [0, 1])
def test_exact_evidence_is_the_sum_over_all_accepted_sequences(bench, short_tasks, which):
    task = short_tasks[which]
    lm = tiny_network(bench, task)
    kept = [row for row in everything(task) if accepted(task, row)]
    by_hand = lm.log_prob(torch.tensor(kept)).double().logsumexp(0)
    assert -8.0 < float(by_hand) < -0.5
    assert bench.exact_evidence(lm, task) == pytest.approx(float(by_hand), abs=1e-5)


@pytest.mark.parametrize("which", [0, 1])
def test_accepted_beginnings_are_those_of_accepted_sequences(bench, short_tasks, which):
    task = short_tasks[which]
    automaton = bench.Automaton(task)
    whole = [row for row in everything(task) if accepted(task, row)]
    for length in range(1, task.length + 1):
        beginnings = {row[:length] for row in whole}
        rows = list(itertools.product(range(2 + len(LETTERS)), repeat=length))
        expected = [row in beginnings for row in rows]
        assert automaton.accepts(torch.tensor(rows)).tolist() == expected


@pytest.mark.parametrize("which", [0, 1])
def test_our_estimates_agree_with_the_exact_evidence(bench, short_tasks, which):
    task = short_tasks[which]
    lm = tiny_network(bench, task)
    exact = bench.exact_evidence(lm, task)
    for name, run in bench.samplers(lm, task, COUNT).items():
        score = bench.clock(run, range(40))
        mean, deviation = score.relative(exact)
        # Five standard errors: a false alarm in 10^6 for a normal mean.
        assert abs(mean - 1.0) <= 5.0 * deviation
        # Steered particles are no noisier than the share of independent draws that are accepted,
        # with room for a deviation that 40 runs estimate; so the gate above can fail.
        assert deviation < 1.5 * math.sqrt((math.exp(-exact) - 1.0) / (40 * COUNT)), name


@pytest.mark.parametrize("which", [0, 1])
def test_the_proposal_holds_the_tokens_that_leave_a_way(bench, short_tasks, which):
    task = short_tasks[which]
    automaton = bench.Automaton(task)
    whole = [row for row in everything(task) if accepted(task, row)]
    for length in range(task.length):
        rows = sorted({row[:length] for row in whole})
        tokens = torch.tensor(rows) if length else None
        law = torch.distributions.Categorical(logits=torch.randn(len(rows), 2 + len(LETTERS)))
        proposed = automaton.masked("token", law, Decoding(tokens), length).probs
        longer = {row[: length + 1] for row in whole}
        for row, old, new in zip(rows, law.probs, proposed):
            allowed = torch.tensor([(*row, v) in longer for v in range(2 + len(LETTERS))])
            torch.testing.assert_close(new, old * allowed / (old * allowed).sum())


def score(bench, wall, estimate):
    return bench.Score(np.full(4, wall), np.full(4, wall), np.array(estimate))


def test_rows_say_whether_targets_are_met(bench, short_tasks):
    task = short_tasks[0]
    close = score(bench, 0.1, [-2.1, -1.9, -2.05, -1.95])
    assert bench.evidence_row(task, COUNT, bench.MASKED, close, -2.0).met
    assert not bench.evidence_row(task, COUNT, bench.MASKED, close, -2.5).met
    assert bench.evidence_row(task, COUNT, "genlm-control", close, -2.5).met
    empty = score(bench, 0.1, [-2.0, -2.1, -1.9, -math.inf])
    row = bench.evidence_row(task, COUNT, bench.PLAIN, empty, -2.0)
    assert "without 1 runs" in row.measured and "evidence / exact 0.75" in row.measured

    mine = {(task.name, COUNT, bench.MASKED): close}
    slow = {(task.name, COUNT, "slow"): score(bench, 0.4, [0.0] * 4)}
    row = bench.time_row(task, COUNT, mine, slow)
    assert row.met and row.measured.startswith(
        "0.25 [0.25, 0.25], of CPU time 0.25 (the fastest peer: slow)"
    )
    fast = slow | {(task.name, COUNT, "fast"): score(bench, 0.08, [0.0] * 4)}
    row = bench.time_row(task, COUNT, mine, fast)
    assert not row.met and row.measured.startswith("1.25")


def test_absent_peers_are_no_success(bench, monkeypatch, tmp_path):
    monkeypatch.setenv("PYRO_TILT_PEERS", str(tmp_path))
    assert bench.peers(None) == bench.ABSENT


def test_saved_network_begins_with_the_token_that_is_given(bench, tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    net = make_gpt2().eval()
    bench.save(net, str(tmp_path))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert tokenizer.encode("<begin>") == [bench.BEGIN] and tokenizer.eos_token_id == bench.STOP
    letters = [2 + CHARACTERS.index(c) for c in "C(=O)N"]
    assert tokenizer.encode("C(=O)N") == letters
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, local_files_only=True)
    tokens = torch.tensor([[0, *letters]])
    torch.testing.assert_close(again(tokens).logits, net(tokens).logits)
