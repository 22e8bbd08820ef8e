# SPDX-License-Identifier: Apache-2.0
"""Reward-guided decoding against its law, whole and by blocks."""

import math

import pytest
import torch
from speculative_cases import DRAFT, DRAWS, LEAST, TABLE, TARGET, p_value, rows, two_model_blocks

from pyro_tilt.infer import RewardGuided
from pyro_tilt.language import TabularLM, laws

REWARDS = TABLE.clamp(min=0.0)


def reward(tokens):
    return REWARDS[TARGET.index(tokens)]


def guided(draft=DRAFT, **options):
    defaults = {"reward": reward, "threshold": 0.55, "num_samples": DRAWS, "seed": 0}
    return RewardGuided(
        TARGET.program(), draft=draft.program(), **{"progress": False, **defaults, **options}
    )


@pytest.mark.parametrize("threshold", [0.55, -math.inf, math.inf])
def test_exact_law(threshold):
    result = guided(threshold=threshold).run()
    law = laws.reward_guided(DRAFT.law(), TARGET.law(), REWARDS, threshold)
    assert p_value(rows(result), law) > LEAST
    assert result.certificate.law == "exact"
    assert result.certificate.target == f"reward-guided law (threshold {threshold:g})"
    assert result.beta is None and result.log_normalizer.isnan()
    assert result.log_normalizer_error.isnan()
    rejected = int((result.stats["accepted"] == 0).sum())
    assert (result.info["draft_rows"], result.info["target_rows"]) == (DRAWS, rejected)
    assert result.cost.base_draws == DRAWS + rejected
    if math.isfinite(threshold):
        for beta in (0.5, 2.0, 8.0):
            assert p_value(rows(result), laws.tilt(TARGET.law(), REWARDS, beta)) < 1e-10


@pytest.mark.parametrize("block", [1, 2])
def test_blocks(block):
    values = TARGET.mean_values(REWARDS)
    options = {"value": TARGET.value_function(values), "num_samples": DRAWS}
    result = guided(block=block, **options).run()

    def rule(draft, target, value):
        return laws.reward_guided(draft, target, value, 0.55)

    law = two_model_blocks(DRAFT, TARGET, values, block, rule)
    assert p_value(rows(result), law) > LEAST
    assert p_value(rows(result), two_model_blocks(DRAFT, TARGET, values, 3, rule)) < 1e-10
    assert result.certificate.law == "exact"
    assert f"blocks of {block} steps" in result.certificate.target


def test_the_draft_may_exclude_what_the_target_does_not():
    logits = [table.clone() for table in DRAFT.log_probs]
    logits[0][1] = -math.inf
    hole = TabularLM(logits)
    result = guided(draft=hole, num_samples=50_000).run()
    law = laws.reward_guided(hole.law(), TARGET.law(), REWARDS, 0.55)
    assert p_value(rows(result), law) > LEAST


def test_bad_input():
    with pytest.raises(TypeError, match="no beta"):
        guided(beta=2.0)
    with pytest.raises(ValueError, match="threshold"):
        guided(threshold=math.nan)
    with pytest.raises(ValueError, match="give reward="):
        guided(reward=None)
    with pytest.raises(ValueError, match="vocabularies differ"):
        guided(draft=TabularLM.random(2, 3)).run()
    with pytest.raises(ValueError, match="NaN"):
        guided(reward=lambda y: torch.full(y.shape[:-1], math.nan)).run()
