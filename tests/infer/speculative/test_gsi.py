# SPDX-License-Identifier: Apache-2.0
"""GSI against its exact laws, whole and by blocks; limits, wrong versions, bad input."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from speculative_cases import (
    BETA,
    DRAFT,
    DRAWS,
    LEAST,
    TABLE,
    TARGET,
    p_value,
    reward,
    rows,
    two_model_blocks,
)

from pyro_tilt import align, scan
from pyro_tilt.diagnostics import kl_to_base
from pyro_tilt.infer import GSI, SamplerWarning, SoftBestOfN, ZeroWeights, counted
from pyro_tilt.infer.speculative import rules
from pyro_tilt.language import TabularLM, laws
from pyro_tilt.testing.gates import Z_SCORE

# The table excludes a sequence, so that some choices have none but it.
pytestmark = pytest.mark.filterwarnings("ignore::pyro_tilt.infer.SamplerWarning")

U, N = 0.6, 4
EVIDENCE = float((TARGET.log_law() + BETA * TABLE).logsumexp(0))
BOUND = float((TARGET.log_law() - DRAFT.log_law() + BETA * TABLE).max())


def guided(target=TARGET, draft=DRAFT, **options):
    defaults = {"reward": reward, "beta": BETA, "n": N, "num_samples": DRAWS, "seed": 0}
    return GSI(
        target.program(), draft=draft.program(), **{"progress": False, **defaults, **options}
    )


def law_of(threshold, fallback="published", n=N, draft=DRAFT, target=TARGET, beta=BETA):
    return laws.gsi(draft.law(), target.law(), TABLE, beta, n, threshold, fallback)


@pytest.mark.parametrize(
    ("threshold", "fallback", "word"),
    [
        (U, "published", "search"),
        (U, "debiased", "consistent"),
        (-math.inf, "published", "consistent"),
        (math.inf, "published", "consistent"),
    ],
)
def test_exact_law(threshold, fallback, word):
    result = guided(threshold=threshold, fallback=fallback, seed=1).run()
    assert p_value(rows(result), law_of(threshold, fallback)) > LEAST
    other = law_of(U, "debiased" if fallback == "published" else "published")
    assert p_value(rows(result), other) < 1e-10
    assert torch.equal(result.stats["reward"], TABLE[rows(result)])
    rate = float(laws.gsi_acceptance(DRAFT.law(), TARGET.law(), TABLE, BETA, N, threshold))
    rate = min(rate, 1.0)
    spread = math.sqrt(rate * (1 - rate) / DRAWS)
    assert abs(result.info["acceptance_rate"] - rate) <= Z_SCORE * spread + 1e-9
    error = float(result.log_normalizer) - EVIDENCE
    assert abs(error) < Z_SCORE * float(result.log_normalizer_error)
    certificate = result.certificate
    assert (certificate.target, certificate.law) == ("joint tilt", word)
    assert f"GSI law (n={N}, threshold {threshold:g})" in certificate.covers
    assert ("bias of the threshold" in certificate.excludes) == (word == "search")
    assert (result.residual_log_weights is not None) == (threshold == -math.inf)


def test_residual_weights_correct_to_the_tilt():
    result = guided(threshold=-math.inf).run()
    weights = result.residual_log_weights.softmax(0)
    table = torch.zeros(27).double().index_add_(0, rows(result), weights)
    tilt = laws.tilt(TARGET.law(), TABLE, BETA)
    assert 0.5 * (table - tilt).abs().sum() < 0.02
    assert p_value(rows(result), tilt) < 1e-10


@pytest.mark.parametrize("n", [1, 5])
def test_exact_accept(n):
    result = guided(accept="exact", log_bound=BOUND, n=n, seed=2).run()
    law = laws.exact_accept(DRAFT.law(), TARGET.law(), TABLE, BETA, n)
    assert p_value(rows(result), law) > LEAST
    accept = math.exp(EVIDENCE - BOUND)
    hit = 1.0 - (1.0 - accept) ** n
    spread = math.sqrt(hit * (1 - hit) / DRAWS)
    assert abs(result.info["acceptance_rate"] - hit) < Z_SCORE * spread
    # The stated bound holds, and is no better than what was seen.
    tilt = laws.tilt(TARGET.law(), TABLE, BETA)
    assert result.certificate.law == "bounded"
    assert 0.5 * float((law - tilt).abs().sum()) < result.certificate.total_variation
    assert 1.0 - result.info["acceptance_rate"] <= result.certificate.total_variation < 1.0
    # Proposals end where one is accepted, in rounds of 1, 2, 4, ...
    assert result.info["draft_rows"] <= n * DRAWS
    assert result.info["target_rows"] == result.info["draft_rows"] + n * int(
        (result.stats["accepted"] < 1).sum()
    )
    error = float(result.log_normalizer) - EVIDENCE
    assert abs(error) < Z_SCORE * float(result.log_normalizer_error)


@pytest.mark.parametrize("block", [1, 2, 3])
@pytest.mark.parametrize(
    ("threshold", "fallback"), [(U, "published"), (U, "debiased"), (-math.inf, "published")]
)
def test_blocks(block, threshold, fallback):
    soft = TARGET.soft_values(TABLE, BETA)
    options = {"threshold": threshold, "fallback": fallback, "value": TARGET.value_function(soft)}
    result = guided(block=block, exact_values=True, seed=3, **options).run()

    def rule(draft, target, values):
        return laws.gsi(draft, target, values / BETA, BETA, N, threshold, fallback)

    law = two_model_blocks(DRAFT, TARGET, soft, block, rule)
    assert p_value(rows(result), law) > LEAST
    sound = fallback == "debiased" or threshold == -math.inf
    assert result.certificate.law == ("consistent" if sound else "search")
    assert guided(block=block, num_samples=9, **options).run().certificate.law == "search"
    if threshold == -math.inf:
        error = float(result.log_normalizer) - EVIDENCE
        assert abs(error) < Z_SCORE * float(result.log_normalizer_error)
        weights = result.residual_log_weights.softmax(0)
        table = torch.zeros(27).double().index_add_(0, rows(result), weights)
        assert 0.5 * (table - laws.tilt(TARGET.law(), TABLE, BETA)).abs().sum() < 0.03
    else:
        assert math.isnan(float(result.log_normalizer))
        assert math.isnan(float(result.log_normalizer_error))


def test_runs_without_an_evidence_have_none_together():
    value = TARGET.value_function(TARGET.soft_values(TABLE, BETA))
    result = guided(block=1, value=value, threshold=U, num_samples=40, num_chains=2).run()
    assert result.log_normalizer.isnan() and result.log_normalizer_error.isnan()
    assert result.chain_log_normalizers.isnan().all()
    assert (result.log_weights == 0.0).all()
    (line,) = [line for line in str(result.summary()).splitlines() if "log evidence" in line]
    assert line.split() == ["log", "evidence", "none"]
    assert "no evidence" in repr(result)
    stronger = result.reweight(2.0 * BETA)
    assert stronger.log_normalizer.isnan() and stronger.log_normalizer_error.isnan()
    assert stronger.chain_log_normalizers.isnan().all()
    assert stronger.ess > 1.0


def test_a_block_of_everything_is_the_whole():
    soft = TARGET.soft_values(TABLE, BETA)
    options = {"threshold": U, "num_samples": 500}
    whole = guided(**options).run()
    block = guided(block=3, value=TARGET.value_function(soft), **options).run()
    assert torch.equal(whole.samples["tokens"], block.samples["tokens"])
    assert whole.samples.keys() == block.samples.keys()
    assert whole.info == pytest.approx(block.info)


def test_limits():
    few = partial(guided, num_samples=50_000)
    one = few(threshold=-math.inf, n=1, seed=4).run()
    assert p_value(rows(one), DRAFT.law()) > LEAST
    same = few(draft=TARGET, threshold=-math.inf, seed=5).run()
    assert p_value(rows(same), laws.soft_best_of_n(TARGET.law(), TABLE, BETA, N)) > LEAST
    weak = few(threshold=math.inf, beta=1e-9, seed=6)
    # At a beta of zero only the excluded sequence is told apart.
    law = laws.soft_best_of_n(TARGET.law(), TABLE, 1e-9, N)
    assert p_value(rows(weak.run()), law) > LEAST
    # A strong tilt of equal models is the best of n.
    strong = few(draft=TARGET, threshold=-math.inf, beta=1e6, seed=7).run()
    assert p_value(rows(strong), laws.best_of_n(TARGET.law(), TABLE, N)) > LEAST


def test_rows_of_both_models():
    def model(head):
        def step(carry, t):
            logits = head(torch.ones(1, 2))[0] if carry is None else head(carry)
            token = pyro.sample(f"token_{t}", dist.Categorical(logits=logits))
            return torch.stack([token, token], -1).float()

        return lambda: scan("s", step, None, range(2))[..., 0]

    target, draft = (model(counted(torch.nn.Linear(2, 3))) for _ in range(2))
    options = {"reward": lambda x: x.double(), "beta": 2.0, "n": 3, "num_samples": 40, "seed": 0}
    result = GSI(target, draft=draft, threshold=1.0, **options).run()
    rejected = int((result.stats["accepted"] == 0).sum())
    assert 0 < rejected < 40
    info = result.info
    assert (info["draft_rows"], info["target_rows"]) == (120, 120 + 3 * rejected)
    assert result.cost.base_draws == 240 + 3 * rejected
    assert result.cost.reward_calls == 120 + 3 * rejected
    assert info["draft_network_rows"] + info["target_network_rows"] == result.cost.network_rows
    # The first step of a pass reads one row that all particles share.
    assert info["draft_network_rows"] == 1 + 120
    assert info["target_network_rows"] == 2 + 120 + 3 * rejected
    options["value"] = lambda carry, t: 0.0 * carry[:, 0]
    result = GSI(target, draft=draft, threshold=-math.inf, block=1, **options).run()
    # The draft never reads the last token, and the target scores without drawing.
    assert result.info["draft_network_rows"] == result.info["target_network_rows"] == 1 + 120
    assert result.info["draft_rows"] == result.info["target_rows"] == 120
    assert result.cost.value_calls == result.cost.reward_calls == 120


def test_untempered_ratios_would_miss_the_tilt(monkeypatch):
    """Draws at one temperature scored at another: what a chi-square against the law must see."""
    plain = DRAFT.tempered(1.0)
    wrong = laws.soft_best_of_n(
        DRAFT.law(),
        TABLE + (TARGET.log_law() - plain.log_law()) / BETA,
        BETA,
        N,
    )
    result = guided(threshold=-math.inf, num_samples=20_000).run()
    assert p_value(rows(result), wrong) < 1e-10
    assert p_value(rows(result), law_of(-math.inf)) > LEAST


def test_a_ratio_of_the_wrong_sign_is_seen(monkeypatch):
    right = rules.Candidates.log_weights

    def flipped(self, beta):
        if self.log_ratio is None:
            return right(self, beta)
        return right(self, beta) - 2.0 * self.log_ratio

    monkeypatch.setattr(rules.Candidates, "log_weights", flipped)
    result = guided(threshold=-math.inf, num_samples=20_000).run()
    assert p_value(rows(result), law_of(-math.inf)) < 1e-10


def test_seeds_and_chains_and_small_batches():
    first = guided(threshold=U, num_samples=50).run()
    again = guided(threshold=U, num_samples=50).run()
    assert torch.equal(first.samples["tokens"], again.samples["tokens"])
    chains = guided(threshold=U, num_samples=50, num_chains=2).run()
    assert torch.equal(chains.samples["tokens"][:50], first.samples["tokens"])
    small = guided(threshold=U, num_samples=5000, max_batch=32 * N).run()
    assert p_value(rows(small), law_of(U)) > LEAST
    aligned = align(TARGET.program(), reward, BETA)
    direct = GSI(aligned, draft=DRAFT.program(), n=N, threshold=U, num_samples=50, seed=0).run()
    assert torch.equal(direct.samples["tokens"], first.samples["tokens"])


def test_a_fallback_with_nothing_below_is_capped():
    table = torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64)
    small = TabularLM(torch.tensor([0.5, 0.25, 0.25]).log())
    # The target gives the low reward a mass that no try will meet.
    large = TabularLM(torch.tensor([1e-30, 0.5, 0.5], dtype=torch.float64).log())
    sampler = GSI(
        large.program(),
        draft=small.program(),
        reward=lambda y: table[y[..., 0]],
        beta=1.0,
        n=2,
        threshold=0.5,
        fallback="debiased",
        max_tries=5,
        num_samples=200,
        seed=0,
    )
    with pytest.warns(SamplerWarning, match="max_tries=5"):
        result = sampler.run()
    capped = result.stats["capped"]
    assert 0 < int(capped.sum()) < 200
    assert torch.equal(capped, result.stats["accepted"] == 0)
    assert f"{int(capped.sum())} draws whose fallback" in result.certificate.excludes


def test_lost_draws():
    nothing = torch.full((27,), -math.inf, dtype=torch.float64)
    with pytest.raises(ZeroWeights) as error:
        guided(reward=lambda y: nothing[TARGET.index(y)], num_samples=5).run()
    assert len(error.value.partial) == 5
    half = torch.where(torch.arange(27) < 9, 0.0, -math.inf)
    options = {"threshold": -math.inf, "n": 1, "num_samples": 100}
    with pytest.warns(SamplerWarning, match="weight zero"):
        result = guided(reward=lambda y: half[TARGET.index(y)], **options).run()
    assert torch.equal(result.stats["lost"], rows(result) >= 9)


def test_models_that_do_not_fit():
    more = TabularLM.random(4, 3)
    with pytest.raises(ValueError, match="vocabularies differ: site 'token_0' has 3 .* and 4"):
        guided(draft=more).run()
    with pytest.raises(ValueError, match="same latent sites.*token_2"):
        guided(draft=TabularLM.random(3, 2)).run()
    logits = [table.clone() for table in DRAFT.log_probs]
    logits[1][0, 2] = -math.inf
    hole = TabularLM(logits)
    for options in ({}, {"block": 1, "value": TARGET.value_function(TARGET.mean_values(TABLE))}):
        with pytest.raises(ValueError, match="site 'token_1': the draft has no mass at 1 values"):
            guided(draft=hole, num_samples=200, **options).run()
    # A target that excludes what the draft does not is no trouble.
    result = guided(target=hole, draft=DRAFT, threshold=-math.inf, num_samples=20_000).run()
    assert p_value(rows(result), law_of(-math.inf, target=hole)) > LEAST
    by_probs = pyro.poutine.block(
        lambda: pyro.sample("x", dist.Categorical(torch.tensor([1.0, 0])))
    )
    full = lambda: pyro.sample("x", dist.Categorical(torch.tensor([0.5, 0.5])))  # noqa: E731
    with pytest.raises(ValueError, match="site"):
        GSI(full, draft=by_probs, reward=lambda x: x.double(), beta=1.0, num_samples=9).run()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, "n must be"),
        ({"n": 2.5}, "n must be"),
        ({"beta": 0.0}, "positive and finite beta"),
        ({"beta": -1.0}, "positive and finite beta"),
        ({"threshold": math.nan}, "threshold"),
        ({"threshold": None}, "threshold must be a number"),
        ({"fallback": "other"}, "fallback must be one of"),
        ({"accept": "other"}, "accept must be one of"),
        ({"accept": "exact"}, "log_bound"),
        ({"accept": "exact", "log_bound": math.inf}, "log_bound"),
        ({"log_bound": 1.0}, "log_bound"),
        ({"block": 2}, "go together"),
        ({"value": lambda c, t: c}, "go together"),
        ({"block": 0, "value": lambda c, t: c}, "block must be"),
        (
            {"accept": "exact", "log_bound": 1.0, "block": 1, "value": lambda c, t: c},
            "whole draws",
        ),
        ({"max_tries": 0}, "max_tries"),
        ({"confidence": 1.0}, "confidence"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        guided(**options)


def test_bad_input():
    with pytest.raises(ValueError, match="NaN"):
        guided(reward=lambda y: reward(y) * math.nan).run()
    with pytest.raises(ValueError, match="shape"):
        guided(reward=lambda y: y.double()).run()
    with pytest.raises(ValueError, match="give reward="):
        GSI(TARGET.program(), draft=DRAFT.program())
    with pytest.raises(ValueError, match="draft has observations, factors or a reward"):
        GSI(
            TARGET.program(), draft=align(DRAFT.program(), reward), reward=reward, num_samples=5
        ).run()
    with pytest.raises(TypeError, match="draft must be callable"):
        GSI(TARGET.program(), draft=3, reward=reward)
    with pytest.raises(ValueError, match="above the bound"):
        guided(accept="exact", log_bound=BOUND - 1.0).run()
    value = partial(lambda bad, carry, t: carry.tokens[:, 0] * bad, math.nan)
    with pytest.raises(ValueError, match="value is NaN"):
        guided(block=1, value=value).run()
    with pytest.raises(ValueError, match="value must give one number per particle"):
        guided(block=1, value=lambda carry, t: carry.tokens).run()

    def outside():
        pyro.sample("start", dist.Normal(0.0, 1.0))
        return TARGET.program()()

    with pytest.raises(ValueError, match="'start' lies outside the steps"):
        GSI(outside, draft=outside, reward=reward, block=1, value=value, num_samples=5).run()


def test_equal_models_and_soft_best_of_n_share_their_draws():
    """The draft's draws are those of the program, bit for bit."""
    options = {"reward": reward, "beta": BETA, "n": N, "num_samples": 30, "seed": 9}
    soft = SoftBestOfN(TARGET.program(), **options).run()
    same = GSI(TARGET.program(), draft=TARGET.program(), threshold=-math.inf, **options).run()
    assert torch.equal(soft.samples["tokens"], same.samples["tokens"])
    torch.testing.assert_close(soft.residual_log_weights, same.residual_log_weights)


@pytest.mark.parametrize("options", [{"threshold": 0.4}, {"accept": "exact", "log_bound": 6.0}])
def test_base_draws_are_weighted_draws_of_the_draft(options):
    result = GSI(
        TARGET.program(), draft=DRAFT.program(), reward=reward, beta=BETA, n=3,
        num_samples=3000, seed=2, progress=False, **options,
    ).run()  # fmt: skip
    base = result.base
    # Of accept="exact" the first draw of each chain alone comes before any choice.
    assert len(base.reward) == (9000 if "threshold" in options else 3000)
    ratio = (TARGET.law() / DRAFT.law()).double()
    weights = base.log_factors.exp()
    for level in TABLE.unique():
        inside = level == TABLE
        hits = (base.reward == level).double()
        share, law = hits.mean(), DRAFT.law()[inside].sum()
        # 22 levels, two statistics, two cases: 5.5 standard errors make false alarms at 4e-6.
        assert abs(share - law) < 5.5 * (law * (1.0 - law) / len(hits)).sqrt() + 1e-12
        mass, spread = (weights * hits).mean(), (weights * hits).std() / len(hits) ** 0.5
        assert abs(mass - TARGET.law()[inside].sum()) < 5.5 * spread + 1e-12
        gaps = (weights[hits.bool()].unsqueeze(-1) - ratio[inside]).abs().amin(-1)
        assert bool((gaps < 1e-6 * weights[hits.bool()]).all())


def test_blocks_and_searches_claim_nothing_of_the_base():
    soft = TARGET.soft_values(TABLE.clamp(min=0.0), BETA)
    pair = {"draft": DRAFT.program(), "reward": lambda y: reward(y).clamp(min=0.0), "seed": 0}
    options = {"beta": BETA, "n": 3, "num_samples": 50, **pair}
    blocks = GSI(TARGET.program(), block=1, value=TARGET.value_function(soft), **options).run()
    assert blocks.base is None
    whole = GSI(TARGET.program(), **options).run()
    assert whole.base is not None and math.isnan(kl_to_base(whole).value)
