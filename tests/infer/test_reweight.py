# SPDX-License-Identifier: Apache-2.0
import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_tilt.infer import ImportanceSampler, SamplerWarning
from pyro_tilt.infer.base_draws import BaseDraws
from pyro_tilt.infer.certificate import Certificate
from pyro_tilt.infer.weighted_samples import WeightedSamples
from pyro_tilt.ops.psis import pareto_smooth

CONSISTENT = Certificate(target="joint tilt", law="consistent", budget="num_samples")
EXACT = Certificate(target="joint tilt", law="exact")
inf = math.inf

BASE = torch.tensor([0.5, 0.2, 0.2, 0.1], dtype=torch.float64)
FACTOR = torch.tensor([0.3, -1.0, 0.0, 2.0], dtype=torch.float64)
REWARD = torch.tensor([-1.0, 0.5, 2.0, 0.25], dtype=torch.float64)


def enumerated(beta, reward=REWARD, **fields):
    """One draw per state, weighted so that every estimate is the exact number."""
    tilt = torch.where(torch.isneginf(reward), -inf if beta else 0.0, beta * reward)
    return WeightedSamples(
        kind="weighted",
        samples={"x": torch.arange(4)},
        stats={"reward": reward},
        log_weights=(4 * BASE).log() + FACTOR + tilt,
        certificate=CONSISTENT,
        beta=beta,
        **fields,
    )


def iid(law, beta, total=1_000_000, reward=REWARD, **fields):
    """Draws in the exact proportions of a law, up to rounding."""
    x = torch.arange(4).repeat_interleave((law * total).round().long())
    return WeightedSamples(
        kind="iid",
        samples={"x": x},
        stats={"reward": reward[x]},
        log_weights=fields.pop("log_weights", torch.zeros(len(x))),
        certificate=fields.pop("certificate", EXACT),
        beta=beta,
        **fields,
    )


def law(beta, reward=REWARD):
    weights = BASE * (FACTOR + beta * reward).exp()
    return weights / weights.sum()


@pytest.mark.parametrize("old", [0.0, 1.5, -0.5])
@pytest.mark.parametrize("new", [-1.0, 0.0, 2.0])
def test_reweighting_is_sampling_at_the_other_beta(old, new):
    moved, direct = enumerated(old).reweight(new), enumerated(new)
    assert torch.allclose(moved.log_weights, direct.log_weights, atol=1e-12)
    assert moved.log_normalizer.item() == pytest.approx(direct.log_normalizer.item(), abs=1e-12)
    assert torch.allclose(moved.normalized_weights, law(new), atol=1e-12)
    assert (moved.kind, moved.beta) == ("weighted", new)


@pytest.mark.parametrize("new", [0.0, 1.0, 3.0])
def test_iid_draws_become_weighted_and_keep_the_evidence(new):
    log_z = torch.logsumexp(BASE.log() + FACTOR + 1.5 * REWARD, 0)
    draws = iid(law(1.5), 1.5)
    draws = iid(law(1.5), 1.5, log_weights=log_z.expand(len(draws)), log_normalizer_error=0.25)
    moved = draws.reweight(new)
    expected = torch.logsumexp(BASE.log() + FACTOR + new * REWARD, 0)
    assert moved.log_normalizer.item() == pytest.approx(expected.item(), abs=1e-4)
    assert moved.expectation(lambda s: s["x"] == 2, weights="raw").item() == pytest.approx(
        law(new)[2].item(), abs=1e-4
    )
    assert moved.certificate.law == "consistent"
    # The error of the evidence it started from stays in it.
    assert moved.log_normalizer_error.item() >= 0.25


def test_residual_weights_enter():
    clipped = BASE * torch.minimum(FACTOR + REWARD, torch.tensor(1.0)).exp()
    clipped /= clipped.sum()
    draws = iid(clipped, 1.0)
    residual = (FACTOR + REWARD - 1.0).clamp(min=0.0)[draws.samples["x"]]
    log_z = torch.logsumexp(BASE.log() + FACTOR + REWARD, 0)
    draws = iid(
        clipped,
        1.0,
        residual_log_weights=residual,
        log_weights=log_z.expand(len(residual)),
        certificate=Certificate(
            target="value-tilted chain", law="bounded", total_variation=0.2, confidence=0.9
        ),
    )
    for beta in (1.0, 2.0):
        moved = draws.reweight(beta)
        for state in range(4):
            probability = moved.expectation(lambda s, state=state: s["x"] == state, weights="raw")
            assert probability.item() == pytest.approx(law(beta)[state].item(), abs=1e-4)
        expected = torch.logsumexp(BASE.log() + FACTOR + beta * REWARD, 0).item()
        assert moved.log_normalizer.item() == pytest.approx(expected, abs=1e-4)
        assert moved.residual_log_weights is None
        assert moved.certificate.target == "value-tilted chain"


def test_certificate_is_never_stronger_than_before():
    biased = Certificate(target="t", law="bounded", total_variation=0.2, confidence=0.9)
    moved = iid(law(1.0), 1.0, total=100, certificate=biased).reweight(2.0).certificate
    assert moved.law == "consistent" and "accuracy of the run" in moved.budget
    search = Certificate(target="t", law="search")
    assert iid(law(1.0), 1.0, total=100, certificate=search).reweight(2.0).certificate.law == (
        "search"
    )


@pytest.mark.parametrize("more", ["", ", which pareto_k describes", "; a network's error"])
def test_certificate_names_the_error_of_the_draws_once(more):
    error = "the error at this number of draws"
    for before in (f"{error}{more}", more.lstrip("; ,")):
        made = Certificate(target="t", law="consistent", budget="n", excludes=before)
        moved = iid(law(1.0), 1.0, total=100, certificate=made).reweight(2.0).certificate
        assert moved.excludes.count(error) == 1 and before in moved.excludes


def test_the_judgement_of_the_weights_is_made_anew():
    """What was too heavy at a strong tilt may do at a weak one, and the other way round."""
    words = "pareto_k says that the weights are too heavy"

    def program():
        return pyro.sample("x", dist.Normal(0.0, 1.0))

    options = {"reward": lambda x: 3.0 * x, "num_samples": 2000, "seed": 0}
    with pytest.warns(SamplerWarning):
        strong = ImportanceSampler(program, beta=1.0, **options).run()
    weak = strong.reweight(0.1)
    assert words in strong.certificate.excludes and words not in weak.certificate.excludes
    assert words in weak.reweight(1.0).certificate.excludes
    mild = ImportanceSampler(program, beta=0.1, **options).run()
    assert words not in mild.certificate.excludes
    assert mild.reweight(1.0).certificate.excludes.count(words) == 1
    unjudged = ImportanceSampler(program, beta=0.1, pareto_smoothing=False, **options).run()
    assert "not judged" in unjudged.certificate.excludes
    assert "not judged" not in unjudged.reweight(0.2).certificate.excludes


def test_pareto_shape_is_estimated_anew():
    torch.manual_seed(0)
    x = torch.randn(2000, dtype=torch.float64)
    draws = WeightedSamples(
        kind="weighted",
        samples={"x": x},
        stats={"reward": x},
        log_weights=torch.zeros(2000),
        certificate=CONSISTENT,
        beta=0.0,
        pareto_k=math.nan,
        steps={"ess": torch.zeros(3)},
        info={"acceptance_rate": 0.5},
    )
    moved = draws.reweight(1.0)
    smoothed, k = pareto_smooth(x)
    assert torch.equal(moved.psis_log_weights, smoothed) and moved.pareto_k == k.item()
    assert moved.steps == {} and "acceptance_rate" not in moved.info
    assert draws.beta == 0.0 and draws.info == {"acceptance_rate": 0.5}


def test_chains_keep_their_own_evidence():
    draws = enumerated(0.0, chain_sizes=(1, 3)).reweight(1.0)
    first = (4 * BASE).log()[0] + FACTOR[0] + REWARD[0]
    assert draws.chain_log_normalizers[0].item() == pytest.approx(first.item(), abs=1e-12)
    assert draws.chain_sizes == (1, 3) and draws.log_normalizer_error.item() > 0
    runs = iid(law(1.0), 1.0, total=100, chain_sizes=(40, 60), log_normalizer_error=0.1)
    moved = runs.reweight(2.0)
    pooled = (torch.tensor([0.4, 0.6]) @ moved.chain_log_normalizers.exp().float()).log()
    assert moved.log_normalizer.item() == pytest.approx(pooled.item(), abs=1e-6)


def test_impossible_draws_stay_impossible_for_positive_betas():
    reward = torch.tensor([-1.0, -inf, 2.0, 0.25], dtype=torch.float64)
    from_base = enumerated(0.0, reward).reweight(2.0)
    assert torch.equal(from_base.log_weights, enumerated(2.0, reward).log_weights)
    back = from_base.reweight(1.0)
    assert back.log_weights[1] == -inf
    assert torch.allclose(back.log_weights, enumerated(1.0, reward).log_weights, atol=1e-12)


def test_impossible_draws_return_at_zero_where_their_base_weight_is_known():
    reward = torch.tensor([-1.0, -inf, 2.0, 0.25], dtype=torch.float64)
    base = BaseDraws(reward=reward, log_factors=(4 * BASE).log() + FACTOR)
    moved = enumerated(2.0, reward, base=base).reweight(0.0)
    assert torch.allclose(moved.normalized_weights, law(0.0), atol=1e-12)
    with pytest.raises(ValueError, match="keeps no base draws"):
        enumerated(2.0, reward).reweight(0.0)


def test_draws_that_miss_a_part_of_the_base_cannot_go_back_to_it():
    reward = torch.tensor([-1.0, -inf, 2.0, 0.25], dtype=torch.float64)
    base = BaseDraws(reward=reward, log_factors=(4 * BASE).log() + FACTOR)
    draws = iid(law(1.0, reward), 1.0, total=1000, reward=reward, base=base)
    with pytest.raises(ValueError, match="never reach"):
        draws.reweight(0.0)
    assert draws.reweight(0.5).beta == 0.5


def test_a_negative_beta_refuses_impossible_draws():
    reward = torch.tensor([-1.0, -inf, 2.0, 0.25], dtype=torch.float64)
    with pytest.raises(ValueError, match="does not exist"):
        enumerated(0.0, reward).reweight(-1.0)


def test_needs_a_reward_and_one_beta():
    draws = enumerated(1.0)
    draws.stats = {}
    with pytest.raises(ValueError, match="reward"):
        draws.reweight(2.0)
    draws = enumerated(1.0)
    draws.beta = None
    with pytest.raises(ValueError, match="beta"):
        draws.reweight(2.0)
    with pytest.raises(ValueError, match="finite"):
        enumerated(1.0).reweight(inf)


def test_huge_betas_do_not_overflow():
    moved = enumerated(0.0).reweight(1e6)
    assert moved.log_normalizer.isfinite() and moved.ess == pytest.approx(1.0)
    assert moved.expectation("x").item() == 2.0
