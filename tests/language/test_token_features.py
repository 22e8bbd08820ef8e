# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from pyro_tilt.infer.twists import carry_features
from pyro_tilt.language import Decoding


def test_counts_then_the_last_tokens_newest_first():
    found = Decoding(torch.tensor([[2, 0, 2], [1, 1, 0]]), None, 3).features()
    counts = [[1, 0, 2], [1, 2, 0]]
    places = [[0, 0, 1, 1, 0, 0, 0, 0, 1], [1, 0, 0, 0, 1, 0, 0, 1, 0]]
    assert found.tolist() == [c + p for c, p in zip(counts, places)]


@pytest.mark.parametrize("size", [2, 64, 65, 50_000])
def test_different_sequences_have_different_features_and_long_ones_stay_narrow(size):
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(size, (200, 5), generator=generator).unique(dim=0)
    found = Decoding(tokens, None, size).features()
    assert len(found.unique(dim=0)) == len(tokens)
    long = Decoding(torch.randint(size, (3, 2000), generator=generator), None, size).features()
    assert long.shape[1] <= 512 + 64


def test_tokens_too_far_back_are_still_counted():
    tokens = torch.zeros(2, 300, dtype=torch.long)
    tokens[1, 0] = 1
    found = Decoding(tokens, None, 2).features()
    assert found[:, :2].tolist() == [[300.0, 0.0], [299.0, 1.0]]
    assert (found[0, 2:] == found[1, 2:]).all()


def test_a_carry_with_features_of_its_own_hides_its_tensors():
    state = [torch.full((2, 7), 9.0)]
    carry = {"y": Decoding(torch.tensor([[1], [0]]), state, 2), "x": torch.tensor([4.0, 5.0])}
    assert carry_features(carry).tolist() == [[0, 1, 0, 1, 4], [1, 0, 1, 0, 5]]
    # Axes of plates lie between the particles and the tokens.
    plates = Decoding(torch.tensor([[[1, 0]], [[0, 0]]]), None, 2)
    assert carry_features(plates).shape == (2, 6)


@pytest.mark.parametrize("carry", [Decoding(None, None, 3), Decoding(torch.zeros(2, 1).long())])
def test_what_is_missing_is_named(carry):
    with pytest.raises(ValueError, match=r"features: this Decoding has no .* give features="):
        carry_features(carry)
