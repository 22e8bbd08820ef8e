# SPDX-License-Identifier: Apache-2.0
"""Reward-shifted speculative sampling against the law of each of its rules."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from speculative_cases import DRAWS, LEAST, p_value

from pyro_tilt.infer import RewardShifted
from pyro_tilt.infer.speculative import token_rules
from pyro_tilt.language import TabularLM, laws
from pyro_tilt.testing.gates import Z_SCORE

TARGET, ALIGNED, REFERENCE = (TabularLM.random(3, 3, seed=s, scale=0.7) for s in (1, 2, 3))
MODELS = (TARGET, ALIGNED, REFERENCE)
TILT = TARGET.log_law() + ALIGNED.log_law() - REFERENCE.log_law()


def shifted(models=MODELS, **options):
    target, aligned, reference = (model.program() for model in models)
    defaults = {"num_samples": DRAWS, "seed": 0, "progress": False}
    return RewardShifted(target, aligned=aligned, reference=reference, **{**defaults, **options})


def token_by_token(rule):
    """Laws of sequences and the mean share of tokens accepted."""
    law, accepted = torch.ones(1, dtype=torch.float64), 0.0
    for t in range(3):
        before = TARGET.enumerate()[:, :t].unique(dim=0) if t else torch.zeros(1, 0).long()
        given = [model.next_log_probs(before).exp() for model in MODELS]
        accepted += float(law @ laws.shifted_acceptance(*given, rule=rule)) / 3
        law = (law[:, None] * laws.shifted_speculative(*given, rule=rule)).flatten()
    return law, accepted


@pytest.mark.parametrize("rule", ["normalised", "published"])
def test_exact_law(rule):
    result = shifted(rule=rule).run()
    found = TARGET.index(result.samples["tokens"])
    law, accepted = token_by_token(rule)
    assert p_value(found, law) > LEAST
    other, _ = token_by_token("published" if rule == "normalised" else "normalised")
    assert p_value(found, other) < 1e-10
    # Neither is the tilt of whole sequences.
    tilt = TILT.softmax(0)
    assert p_value(found, tilt) < 1e-10
    # Shares of three tokens in [0, 1] have a standard deviation of at most 1/2.
    assert abs(result.info["acceptance_rate"] - accepted) < Z_SCORE * 0.5 / math.sqrt(DRAWS)
    assert result.certificate.law == "exact"
    assert "tilt of whole sequences" in result.certificate.excludes
    replaced = DRAWS * 3 * (1.0 - result.info["acceptance_rate"])
    for name in ("target", "aligned", "reference"):
        assert result.info[f"{name}_rows"] == pytest.approx(DRAWS + replaced / 3)
    if rule == "published":
        assert result.residual_log_weights is None
        assert "only where its normaliser is 1" in result.certificate.excludes
        return
    weights = result.residual_log_weights.softmax(0)
    table = torch.zeros(27).double().index_add_(0, found, weights)
    assert 0.5 * (table - tilt).abs().sum() < 0.02
    error = float(result.log_normalizer) - float(TILT.logsumexp(0))
    assert abs(error) < Z_SCORE * float(result.log_normalizer_error)


def test_aligned_equal_to_reference_is_speculative_sampling_of_the_target():
    result = shifted((TARGET, ALIGNED, ALIGNED)).run()
    assert p_value(TARGET.index(result.samples["tokens"]), TARGET.law()) > LEAST
    assert float(result.residual_log_weights.abs().max()) < 1e-9
    same = shifted((TARGET, TARGET, TARGET), num_samples=100).run()
    assert same.info["acceptance_rate"] == 1.0


def test_the_residual_that_is_not_normalised_is_seen(monkeypatch):
    """The published residual beside the normalised acceptance."""
    right = token_rules._residual

    def wrong(scaled, small, rule, site):
        return right(scaled + 0.5, small, rule, site)

    monkeypatch.setattr(token_rules, "_residual", wrong)
    result = shifted().run()
    law, _ = token_by_token("normalised")
    assert p_value(TARGET.index(result.samples["tokens"]), law) < 1e-10


def test_batches_and_seeds():
    small = shifted(num_samples=5000, max_batch=700).run()
    law, _ = token_by_token("normalised")
    assert p_value(TARGET.index(small.samples["tokens"]), law) > LEAST
    first, again = (shifted(num_samples=50).run().samples["tokens"] for _ in range(2))
    assert torch.equal(first, again)


def test_bad_input():
    with pytest.raises(TypeError, match="takes no beta"):
        shifted(reward=lambda y: y, beta=2.0)
    with pytest.raises(ValueError, match="rule must be one of"):
        shifted(rule="other")
    with pytest.raises(ValueError, match="vocabularies differ"):
        shifted((TARGET, ALIGNED, TabularLM.random(4, 3))).run()
    with pytest.raises(ValueError, match="same latent sites"):
        shifted((TARGET, ALIGNED, TabularLM.random(3, 2))).run()
    holes = TabularLM([torch.tensor([0.0, 0.0, -math.inf])], 3)
    with pytest.raises(ValueError, match="reference has no mass"):
        shifted((TARGET, ALIGNED, holes), num_samples=50).run()
    low, high = (TabularLM(torch.tensor(p).log(), 1) for p in ([0.5, 0.5], [0.9, 0.1]))
    with pytest.raises(ValueError, match="leaves no residual"):
        # The draft is almost always where the target is below the reference.
        only = TabularLM(torch.tensor([0.0, -math.inf]), 1)
        shifted((low, only, high), rule="published", num_samples=100).run()

    def normal():
        from pyro_tilt import scan

        def step(carry, t):
            return pyro.sample(f"x_{t}", dist.Normal(torch.tensor(0.0), 1.0))

        return scan("s", step, None, range(2))

    with pytest.raises(ValueError, match="one categorical site"):
        RewardShifted(normal, aligned=normal, reference=normal, num_samples=5).run()
