# SPDX-License-Identifier: Apache-2.0
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

from pyro_tilt import rewards
from pyro_tilt.infer import AcceptanceTooLow, Rejection, ZeroWeights
from pyro_tilt.infer.draws import Draws
from pyro_tilt.infer.pooled import StreamMoments
from pyro_tilt.testing.exact_programs import conjugate_gaussian, two_categoricals
from pyro_tilt.testing.loop_case import LoopedSamplerTestCase
from pyro_tilt.testing.sampler_case import SamplerTestCase


class TestRejection(SamplerTestCase):
    sampler = Rejection


class TestRejectionInALoop(LoopedSamplerTestCase):
    sampler = Rejection


def _normal():
    return pyro.sample("x", dist.Normal(torch.tensor(0.0), torch.tensor(1.0)))


def test_certificate_is_exact_and_the_bound_is_reported():
    case = conjugate_gaussian()
    result = Rejection(case.aligned(), num_samples=200, seed=0).run()
    assert result.certificate.law == "exact"
    assert result.kind == "iid"
    # The sup of the reward is 0, up to the rounding of the quadratic's own maximum.
    assert result.info["log_bound"] == pytest.approx(0.0, abs=1e-5)
    assert torch.equal(result.log_weights, result.log_normalizer.expand(200))


def test_proposals_are_geometric_with_the_exact_acceptance():
    case = conjugate_gaussian()
    result = Rejection(case.aligned(), num_samples=20_000, seed=0).run()
    rate = math.exp(case.log_normalizer)
    proposals = result.stats["proposals"].double()
    spread = math.sqrt(1 - rate) / rate / math.sqrt(20_000)
    assert abs(float(proposals.mean()) - 1 / rate) < 4.5 * spread
    ones = float((proposals == 1).double().mean())
    assert abs(ones - rate) < 4.5 * math.sqrt(rate * (1 - rate) / 20_000)
    assert result.info["total_proposals"] == float(proposals.sum())


def test_unknown_bound_is_refused_before_any_work():
    with pytest.raises(ValueError, match="log_bound"):
        Rejection(_normal, reward=lambda x: x, num_samples=10).run()


def test_continuous_observation_needs_a_bound_and_is_named():
    def program():
        x = _normal()
        pyro.sample("height", dist.Normal(x, torch.tensor(1.0)), obs=torch.tensor(0.4))
        return x

    reward = rewards.Bounded(torch.sigmoid, low=0.0, high=1.0)
    with pytest.raises(ValueError, match="height"):
        Rejection(program, reward=reward, num_samples=10).run()
    bound = 1.0 - 0.5 * math.log(2 * math.pi)
    result = Rejection(program, reward=reward, num_samples=4000, log_bound=bound, seed=0).run()
    grid = torch.linspace(-9, 9, 20001, dtype=torch.float64)
    density = -0.5 * grid**2 - 0.5 * (grid - 0.4) ** 2 + torch.sigmoid(grid)
    mean = float((grid * density.softmax(0)).sum())
    spread = float(((grid - mean).square() * density.softmax(0)).sum().sqrt())
    assert abs(float(result.samples["x"].double().mean()) - mean) < 4.5 * spread / 4000**0.5


def test_wrong_bound_is_caught_while_running():
    with pytest.raises(ValueError, match="above the bound"):
        Rejection(_normal, reward=lambda x: x, log_bound=0.5, num_samples=1000, seed=0).run()


def test_too_low_acceptance_stops_with_what_it_has():
    reward = rewards.Bounded(lambda x: -(x.square()), low=-math.inf, high=6.0)
    with pytest.raises(AcceptanceTooLow, match="min_acceptance") as caught:
        Rejection(_normal, reward=reward, num_samples=100, min_acceptance=2e-3, seed=0).run()
    partial = caught.value.partial
    assert 0 < len(partial) < 100
    # Given up after 500 proposals, so that not many more than these were drawn.
    assert partial.cost.base_draws < 100_000
    exact = math.log(1 / math.sqrt(3))
    assert float(partial.log_normalizer) == pytest.approx(exact, abs=0.1)
    # Unlike a run cut at a number of proposals, one given up was selected by its weights.
    assert partial.certificate.law == "consistent"
    assert "given up" in partial.certificate.excludes
    case = two_categoricals()
    with pytest.raises(AcceptanceTooLow, match="partial") as caught:
        Rejection(case.aligned(), num_samples=500, max_draws=400, seed=0).run()
    partial = caught.value.partial
    assert 0 < len(partial) < 400
    assert partial.certificate.law == "exact"
    assert partial.cost.base_draws == 400
    # A stream cut at a given number of proposals counts them all.
    evidence = (case.beta * partial.base.reward.double()).logsumexp(0) - math.log(400)
    assert float(partial.log_normalizer) == pytest.approx(float(evidence), abs=1e-9)


@pytest.mark.parametrize("rate", [0.1, 0.01])
def test_wasted_proposals_are_few(rate):
    reward = rewards.Bounded(lambda x: torch.full_like(x, math.log(rate)), low=-50.0, high=0.0)
    result = Rejection(_normal, reward=reward, num_samples=100_000, seed=0).run()
    assert result.info["wasted"] <= 0.02 * result.cost.base_draws


def test_underflow_of_the_acceptance_is_not_called_a_weight_of_zero():
    reward = rewards.Bounded(torch.sigmoid, low=0.0, high=1.0)
    options = {"num_samples": 5, "seed": 0, "max_batch": 60_000}
    with pytest.raises(AcceptanceTooLow, match="0.0e"):
        Rejection(_normal, reward=reward, beta=-1e6, **options).run()
    nowhere = rewards.Constraint(lambda x: x > 50.0)
    with pytest.raises(ZeroWeights, match="-inf"):
        Rejection(_normal, reward=nowhere, **options).run()


def _observed(log_weights, *, baseline, block):
    moments = StreamMoments(baseline, min_acceptance=1e-9)
    for part in log_weights.split(block):
        # Rows behind the last slot belong to the block and not to the stream.
        wasted = torch.full((3,), 7.0).double()
        rows = torch.cat([part, wasted])
        moments.observe(Draws({}, rows, torch.zeros_like(rows), rows), len(part))
    return moments


@pytest.mark.parametrize("block", [1, 4, 100])
@pytest.mark.parametrize("last", [-300.0, 0.4, 300.0, -math.inf])
def test_evidence_leaves_out_the_last_proposal(block, last):
    generator = torch.Generator().manual_seed(0)
    log_weights = torch.randn(41, generator=generator, dtype=torch.float64)
    log_weights[::7] = -math.inf
    log_weights[-1] = last
    moments = _observed(log_weights, baseline=-2.0, block=block)
    for rows, complete in ((log_weights[:-1], True), (log_weights, False)):
        value, error = moments.evidence(complete=complete)
        weights = (rows - rows.max()).exp()
        assert value == pytest.approx(float(weights.mean().log() + rows.max()), abs=1e-12)
        spread = float(weights.std() / weights.mean()) / math.sqrt(len(rows))
        assert error == pytest.approx(spread, rel=1e-9)
    assert moments.count == 41
    accepted = (log_weights + 2.0).clamp(max=0.0).exp().mean()
    assert moments.acceptance_rate == pytest.approx(float(accepted))


def test_a_single_draw_has_evidence_but_no_error():
    # The mean over the first N - 1, and the accepted weight itself where N = 1, is unbiased.
    case, ratios = conjugate_gaussian(), []
    for seed in range(300):
        result = Rejection(case.aligned(), num_samples=1, seed=seed).run()
        assert result.log_normalizer_error.isnan()
        ratios.append(float(result.log_normalizer) - case.log_normalizer)
    values = torch.tensor(ratios).double().exp()
    assert abs(float(values.mean()) - 1.0) < 4.5 * float(values.std()) / math.sqrt(300)


def test_evidence_of_a_run_cut_short_is_unbiased():
    # Stopping at 9 draws or at 20 proposals, whichever comes first: the second counts them all.
    case, ratios, cut = two_categoricals(beta=0.8), [], 0
    for seed in range(400):
        sampler = Rejection(case.aligned(), num_samples=9, max_draws=20, seed=seed)
        try:
            result = sampler.run()
        except AcceptanceTooLow as error:
            result, cut = error.partial, cut + 1
        ratios.append(float(result.log_normalizer) - case.log_normalizer)
    assert 100 < cut < 300
    values = torch.tensor(ratios).double().exp()
    assert abs(float(values.mean()) - 1.0) < 4.5 * float(values.std()) / math.sqrt(400)


def test_chains_that_finished_are_kept_when_one_fails():
    case = two_categoricals()
    options = {"num_samples": 50, "num_chains": 2, "max_batch": 1}
    for seed in range(10):
        result = Rejection(case.aligned(), seed=seed, **options).run()
        first, second = result.stats["proposals"].reshape(2, 50).sum(1).tolist()
        if first + 2 < second:
            break
    limit = (first + second) // 2
    with pytest.raises(AcceptanceTooLow) as caught:
        Rejection(case.aligned(), max_draws=limit, seed=seed, **options).run()
    partial = caught.value.partial
    assert partial.chain_sizes[0] == 50 and 0 < partial.chain_sizes[1] < 50


def test_minibatches_shared_by_a_block_are_refused():
    def program():
        x = _normal()
        with pyro.plate("rows", 4, subsample_size=2) as rows:
            outcome = torch.tensor([1.0, 0.0, 1.0, 1.0])[rows]
            pyro.sample("y", dist.Bernoulli(logits=x.expand(2)), obs=outcome)
        return x

    reward = rewards.Bounded(torch.sigmoid, low=0.0, high=1.0)
    with pytest.raises(ValueError, match="'rows'.*vectorized=False"):
        Rejection(program, reward=reward, num_samples=20, seed=0).run()


def test_each_draw_of_the_loop_takes_its_own_minibatch():
    # Of two rows one is observed, scaled by two: the target tilts the choice of the row as well.
    log_odds = torch.tensor([0.0, 2.0])

    def program():
        x = pyro.sample("x", dist.Bernoulli(torch.tensor(0.3)))
        with pyro.plate("rows", 2, subsample_size=1) as rows:
            pyro.deterministic("row", rows)
            pyro.sample("y", dist.Bernoulli(logits=log_odds[rows] * x), obs=torch.ones(1))
        return x

    reward = rewards.Bounded(lambda x: x, low=0.0, high=1.0)
    result = Rejection(program, reward=reward, num_samples=1500, seed=0, vectorized=False).run()
    x = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    weights = torch.sigmoid(log_odds * x).square() * torch.tensor([[0.7], [0.3]]) * x.exp()
    law = (weights / weights.sum()).flatten().double()
    state = (2 * result.samples["x"] + result.samples["row"].squeeze(-1)).long()
    counts = torch.bincount(state, minlength=4)
    statistic = float(((counts - 1500 * law).square() / (1500 * law)).sum())
    assert stats.chi2.sf(statistic, 3) > 1e-5


def test_unseeded_runs_accept_anew_and_draw_the_programs_own_stream():
    coin = rewards.Bounded(lambda x: torch.full_like(x, math.log(0.5)), low=-1.0, high=0.0)
    pyro.set_rng_seed(4)
    runs = [Rejection(_normal, reward=coin, num_samples=60).run() for _ in range(2)]
    assert not torch.equal(runs[0].stats["proposals"], runs[1].stats["proposals"])
    pyro.set_rng_seed(4)
    result = Rejection(_normal, num_samples=60).run()
    pyro.set_rng_seed(4)
    assert torch.equal(result.samples["x"], torch.randn(60))
