# SPDX-License-Identifier: Apache-2.0
import dataclasses
import json
import math

import pytest

from pyro_tilt.infer.certificate import LAWS, Certificate, weakest

EXACT = Certificate(target="joint tilt", law="exact")
NEAR = Certificate(target="joint tilt", law="bounded", total_variation=0.05, confidence=0.95)


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"law": "perfect"}, "perfect"),
        ({"law": "exact", "target": ""}, "target"),
        ({"law": "bounded", "confidence": 0.9}, "total_variation, kl or gap"),
        ({"law": "bounded", "kl": 0.1}, "confidence"),
        ({"law": "bounded", "kl": 0.1, "confidence": 0.0}, "confidence"),
        ({"law": "bounded", "kl": -0.1, "confidence": 0.5}, "kl"),
        ({"law": "bounded", "total_variation": 1.1, "confidence": 0.5}, "total_variation"),
        ({"law": "bounded", "total_variation": math.nan, "confidence": 0.5}, "total_variation"),
        ({"law": "consistent", "estimated_total_variation": 2.0}, "estimated_total_variation"),
        ({"law": "consistent", "total_variation": 0.1}, "estimated_total_variation"),
        ({"law": "exact", "total_variation": 0.1}, "exact"),
    ],
)
def test_refuses_what_it_cannot_mean(fields, word):
    with pytest.raises(ValueError, match=word):
        Certificate(**{"target": "joint tilt", **fields})


def test_all_fields_exist_and_cannot_change():
    names = [field.name for field in dataclasses.fields(EXACT)]
    assert names == [
        "target", "law", "total_variation", "kl", "gap", "confidence", "budget",
        "estimated_total_variation", "covers", "excludes",
    ]  # fmt: skip
    with pytest.raises(dataclasses.FrozenInstanceError):
        EXACT.law = "search"


@pytest.mark.parametrize("law", LAWS)
def test_sentence_tells_the_law_and_the_target(law):
    extra = {"kl": 0.125, "confidence": 0.9} if law == "bounded" else {}
    made = Certificate(target="joint tilt", law=law, covers="bias", excludes="noise", **extra)
    words = {
        "exact": "follow the joint tilt exactly",
        "bounded": "KL divergence 0.125 of the joint tilt, with confidence 0.9",
        "consistent": "tends to the joint tilt as",
        "search": "search for the joint tilt, not from that law",
    }
    assert words[law] in str(made)
    assert "Covers: bias." in str(made) and "Excludes: noise." in str(made)


def test_sentence_tells_estimates_from_bounds():
    made = Certificate(target="t", law="consistent", estimated_total_variation=0.25, gap=0.5)
    assert "estimated, without proof, at 0.25" in str(made)
    assert "optimality gap is 0.5" in str(made)


def test_dictionary_round_trip_through_json():
    made = dataclasses.replace(NEAR, covers="value error", budget="base_draws")
    assert Certificate.from_dict(json.loads(json.dumps(made.to_dict()))) == made
    with pytest.raises(ValueError, match="strength"):
        Certificate.from_dict({"target": "t", "law": "exact", "strength": 1})


@pytest.mark.parametrize("first", range(4))
@pytest.mark.parametrize("second", range(4))
def test_weakest_word_wins(first, second):
    extra = {"bounded": {"total_variation": 0.1, "confidence": 0.9}}
    certs = [
        Certificate(target="t", law=LAWS[i], **extra.get(LAWS[i], {})) for i in (first, second)
    ]
    assert weakest(certs).law == LAWS[max(first, second)]


def test_bounds_take_the_maximum_and_confidences_the_union_bound():
    far = dataclasses.replace(NEAR, total_variation=0.2, confidence=0.9)
    pooled = weakest([NEAR, EXACT, far])
    assert pooled.total_variation == 0.2
    assert pooled.confidence == pytest.approx(1 - 0.05 - 0.1)


def test_equal_runs_still_pay_the_union_bound():
    assert weakest([NEAR] * 4).confidence == pytest.approx(0.8)


def test_a_used_up_confidence_leaves_an_estimate():
    pooled = weakest([NEAR] * 20)
    assert pooled.law == "consistent"
    assert pooled.confidence is None and pooled.total_variation is None
    assert pooled.estimated_total_variation == 0.05


def test_kl_bounds_meet_total_variation_through_pinsker():
    kl = Certificate(target="joint tilt", law="bounded", kl=0.02, confidence=1.0)
    pooled = weakest([NEAR, kl])
    assert pooled.total_variation == pytest.approx(0.1)
    assert pooled.kl is None


def test_no_common_measure_is_no_bound():
    gap = Certificate(target="joint tilt", law="bounded", gap=0.1, confidence=1.0)
    assert weakest([NEAR, gap]).law == "consistent"


def test_bounded_with_consistent_proves_nothing():
    loose = Certificate(target="joint tilt", law="consistent", budget="num_samples")
    pooled = weakest([NEAR, loose])
    assert (pooled.law, pooled.total_variation, pooled.confidence) == ("consistent", None, None)
    assert pooled.estimated_total_variation is None
    assert pooled.budget == "num_samples"


def test_gap_is_always_there_for_transport():
    parts = [Certificate(target="o", law="consistent", gap=gap) for gap in (0.1, 0.4)]
    assert weakest(parts).gap == 0.4


def test_weakest_needs_one_target():
    with pytest.raises(ValueError, match="different targets: chain, joint tilt"):
        weakest([EXACT, Certificate(target="chain", law="exact")])
    with pytest.raises(ValueError, match="at least one"):
        weakest([])


def test_exact_runs_stay_exact():
    worded = dataclasses.replace(EXACT, covers="everything")
    pooled = weakest([EXACT, worded])
    assert (pooled.law, pooled.covers) == ("exact", "everything")
