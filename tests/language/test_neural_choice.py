# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch
from neural_models import BEGIN, SIZE, TwoBack
from scipy.stats import chisquare

from pyro_tilt.language import NeuralLM, TokenChoice


def by_hand(logits, temperature=1.0, top_k=None, top_p=None, suppress=()):
    """The law of one row, token by token."""
    scores = {i: x / temperature for i, x in enumerate(logits.tolist()) if i not in suppress}
    if top_k is not None:
        least = sorted(scores.values(), reverse=True)[:top_k][-1]
        scores = {i: x for i, x in scores.items() if x >= least}
    total = sum(math.exp(x) for x in scores.values())
    law = {i: math.exp(x) / total for i, x in scores.items()}
    if top_p is not None:
        kept, mass = {}, 0.0
        for i in sorted(law, key=lambda i: (-law[i], i)):
            if mass >= top_p:
                break
            kept[i] = law[i]
            mass += law[i]
        law = {i: p / mass for i, p in kept.items()}
    return torch.tensor([law.get(i, 0.0) for i in range(len(logits))], dtype=torch.double)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.5},
        {"temperature": 2.0},
        {"top_k": 3},
        {"top_k": 1},
        {"top_k": 100},
        {"top_p": 0.8},
        {"top_p": 0.01},
        {"top_p": 1.0},
        {"temperature": 0.7, "top_k": 5, "top_p": 0.9},
        {"temperature": 1.7, "top_k": 2, "top_p": 0.6, "suppress_tokens": (1, 3)},
    ],
    ids=str,
)
def test_the_law_of_a_token(options):
    logits = 2 * torch.randn(5, 40, 8, dtype=torch.double)
    law = TokenChoice(**options).log_probs(logits).exp()
    named = {("suppress" if k == "suppress_tokens" else k): v for k, v in options.items()}
    rows = [by_hand(row, **named) for row in logits.reshape(-1, 8)]
    torch.testing.assert_close(law.reshape(-1, 8), torch.stack(rows))


def test_ties():
    logits = torch.tensor([1.0, 2.0, 1.0, 0.0]).double()
    assert (TokenChoice(top_k=2).log_probs(logits) > -math.inf).tolist() == [
        True,
        True,
        True,
        False,
    ]
    even = torch.zeros(4).double()
    assert (TokenChoice(top_p=0.5).log_probs(even) > -math.inf).tolist() == [
        True,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize("temperature,top_k,top_p", [(0.7, 5, 0.9), (1.0, 3, 0.5), (1.4, 8, 0.95)])
def test_agrees_with_the_warpers_of_transformers(temperature, top_k, top_p):
    process = pytest.importorskip("transformers.generation.logits_process")
    scores = 2 * torch.randn(200, 12, dtype=torch.double)
    law = TokenChoice(temperature, top_k, top_p).log_probs(scores).exp()
    scores = process.TemperatureLogitsWarper(temperature)(None, scores)
    scores = process.TopKLogitsWarper(top_k)(None, scores)
    theirs = process.TopPLogitsWarper(top_p)(None, scores).softmax(-1)
    torch.testing.assert_close(law, theirs)


def test_half_precision_is_weighed_in_single():
    logits = torch.randn(3, 5).bfloat16()
    assert TokenChoice().log_probs(logits).dtype == torch.float32


@pytest.mark.parametrize("options", [{"top_k": 2}, {"top_p": 0.7}, {"temperature": 0.4}], ids=str)
def test_what_is_written_follows_the_law_that_is_scored(options):
    lm = NeuralLM(TwoBack(seed=4, scale=0.5), max_tokens=2, begin_token=BEGIN, **options)
    grid = torch.cartesian_prod(*[torch.arange(SIZE)] * 2)
    law = lm.log_prob(grid).exp()
    assert law.sum().item() == pytest.approx(1.0)
    # The begin token is impossible in any case.
    assert int((law > 0).sum()) == 9 if "temperature" in options else 1 < int((law > 0).sum()) < 9
    written = lm.generate(40_000, seed=6)
    counts = torch.bincount(written.tokens @ torch.tensor([SIZE, 1]), minlength=len(grid))
    assert int(counts[law == 0].sum()) == 0
    possible = law > 0
    # The rate of false alarms is fixed beforehand.
    assert chisquare(counts[possible], law[possible] * 40_000).pvalue > 1e-5
    torch.testing.assert_close(written.log_prob, lm.log_prob(written.tokens))
