# SPDX-License-Identifier: Apache-2.0
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Predictive

from pyro_tilt.infer.base_draws import BaseDraws
from pyro_tilt.infer.certificate import Certificate
from pyro_tilt.infer.cost import Cost
from pyro_tilt.infer.weighted_samples import WeightedSamples
from pyro_tilt.poutine import align

CONSISTENT = Certificate(target="joint tilt", law="consistent", budget="num_samples")
EXACT = Certificate(target="joint tilt", law="exact")
inf = math.inf


def make(log_weights, kind="weighted", **fields):
    log_weights = torch.as_tensor(log_weights)
    fields.setdefault("samples", {"x": torch.arange(float(len(log_weights)))})
    fields.setdefault("certificate", CONSISTENT)
    return WeightedSamples(kind=kind, log_weights=log_weights, **fields)


# Construction and evidence


def test_defaults_follow_from_the_weights():
    weights = torch.tensor([1.0, 2.0, 6.0], dtype=torch.float64)
    result = make(weights.log())
    assert result.log_normalizer.dtype == torch.float64
    assert result.log_normalizer.item() == pytest.approx(math.log(3), abs=1e-14)
    # sd of (1, 2, 6) is sqrt(7), so the relative error of the mean is sqrt(7 / 3) / 3.
    assert result.log_normalizer_error.item() == pytest.approx(math.sqrt(7 / 3) / 3, abs=1e-14)
    assert result.chain_sizes == (3,) and result.num_chains == 1 and len(result) == 3
    assert result.chain_log_normalizers.tolist() == [result.log_normalizer.item()]
    assert result.cost == Cost()


def test_pyro_tooling_reads_it_in_float64():
    weights = torch.tensor([1.0, 2.0, 6.0], dtype=torch.float64)
    result = make(weights.log())
    assert abs(result.get_log_normalizer().item() - math.log(3)) < 1e-15
    assert torch.allclose(result.get_normalized_weights(), weights / 9, atol=1e-16)
    assert torch.allclose(result.get_normalized_weights(log_scale=True).exp(), weights / 9)
    assert result.get_ESS().dtype == torch.float64
    assert result.get_ESS().item() == pytest.approx(81 / 41, abs=1e-14)
    assert result.ess == pytest.approx(81 / 41, abs=1e-14)


def test_float32_weights_are_promoted_and_detached():
    result = make(torch.zeros(3, requires_grad=True))
    assert result.log_weights.dtype == torch.float64
    assert not result.log_weights.requires_grad


def test_error_across_chains_is_their_spread():
    weights = torch.tensor([1.0, 3.0, 6.0, 6.0]).log()
    result = make(weights, chain_sizes=(2, 2))
    assert result.chain_log_normalizers.exp().tolist() == pytest.approx([2.0, 6.0])
    # Chain means 2 and 6 around 4: the standard error of the mean is 2, half of it relatively.
    assert result.log_normalizer_error.item() == pytest.approx(0.5)


def test_equal_weights_tell_no_error():
    assert make(torch.zeros(4), kind="iid").log_normalizer_error.isnan()
    given = make(torch.zeros(4), kind="iid", log_normalizer_error=0.125)
    assert given.log_normalizer_error.item() == 0.125


def test_a_number_given_as_evidence_keeps_its_digits():
    assert make(torch.zeros(2), log_normalizer=0.1).log_normalizer.item() == 0.1


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"kind": "exact"}, "kind"),
        ({"log_weights": torch.zeros(3, 1)}, "log_weights"),
        ({"log_weights": torch.tensor([0.0, math.nan, inf])}, "2 values"),
        ({"samples": {"site": torch.zeros(2, 3)}}, "site"),
        ({"samples": {"site": torch.tensor(0.0)}}, "site"),
        ({"stats": {"reward": torch.zeros(4)}}, "reward"),
        ({"psis_log_weights": torch.zeros(2)}, "psis_log_weights"),
        ({"residual_log_weights": torch.zeros(3, 1)}, "residual_log_weights"),
        ({"chain_sizes": (1, 1)}, "chain_sizes"),
        ({"chain_log_normalizers": torch.zeros(2)}, "chain_log_normalizers"),
        ({"log_normalizer": torch.zeros(1)}, "log_normalizer"),
    ],
)
def test_refuses_shapes_that_do_not_fit(fields, word):
    with pytest.raises(ValueError, match=word):
        make(**{"log_weights": torch.zeros(3), "samples": {}, **fields})


def test_base_draws_need_one_shape():
    with pytest.raises(ValueError, match=r"\(3,\) and \(2,\)"):
        BaseDraws(reward=torch.zeros(3), log_factors=torch.zeros(2))


def test_construction_is_by_keyword():
    with pytest.raises(TypeError):
        WeightedSamples("iid", {}, torch.zeros(2), EXACT)


def test_repr_is_one_line():
    result = make(torch.zeros(3), sampler="Importance", chain_sizes=(1, 2))
    assert repr(result).startswith("WeightedSamples(Importance: 3 weighted in 2 chains, ess 3.0")
    assert "\n" not in repr(result) and "consistent" in repr(result)
    assert "ess 0.0" in repr(make(torch.full((3,), -inf)))


def test_to_copies_every_tensor():
    result = make(
        torch.zeros(2), base=BaseDraws(reward=torch.ones(3), log_factors=torch.zeros(3)), beta=1.0
    )
    moved = result.to("meta") if torch.cuda.is_available() else result.to("cpu")
    assert moved is not result and moved.beta == 1.0
    assert moved.base.reward.shape == (3,)


# Expectations


def test_expectation_is_self_normalised():
    x = torch.tensor([[1.0, 0.0], [2.0, 10.0]])
    result = make(torch.tensor([1.0, 3.0]).double().log() + 500.0, samples={"x": x})
    assert result.expectation("x").tolist() == pytest.approx([1.75, 7.5])
    assert result.expectation("x").dtype == torch.float32
    assert result.expectation(lambda s: s["x"][:, 0] > 1.5).item() == pytest.approx(0.75)
    assert result.expectation("x", weights="equal").tolist() == pytest.approx([1.5, 5.0])


def test_draws_without_weights_take_a_plain_mean():
    result = make(torch.tensor([-3.0, -3.0]), kind="iid", samples={"x": torch.tensor([1, 2])})
    assert result.expectation("x").item() == 1.5


def test_zero_weights_hide_what_the_function_says():
    result = make([0.0, -inf, 0.0], samples={"x": torch.tensor([1.0, -inf, 3.0])})
    assert result.expectation("x").item() == 2.0
    assert result.expectation(lambda s: s["x"] * 0).item() == 0.0


def test_smoothed_weights_come_first_and_raw_ones_on_request():
    result = make([0.0, 0.0], psis_log_weights=torch.tensor([1.0, 3.0]).log())
    assert result.expectation("x").item() == pytest.approx(0.75)
    assert result.expectation("x", weights="raw").item() == pytest.approx(0.5)
    assert result.expectation("x", weights="psis").item() == pytest.approx(0.75)


def test_residual_weights_correct_to_the_target():
    # Base (.5, .3, .2), A = (0, 1, 3), clipped at b = 1: draws in the proportions of the law
    # p exp(min(A, b)), then residual weights exp((A - b)+).
    base = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    tilt = torch.tensor([0.0, 1.0, 3.0], dtype=torch.float64)
    clipped = base * tilt.clamp(max=1.0).exp()
    counts = (clipped / clipped.sum() * 1_000_000).round().long()
    x = torch.arange(3).repeat_interleave(counts)
    result = make(
        torch.zeros(len(x)),
        kind="iid",
        samples={"x": x},
        residual_log_weights=(tilt - 1.0).clamp(min=0.0)[x],
    )
    target = base * tilt.exp() / (base * tilt.exp()).sum()
    assert result.expectation("x", corrected=True).item() == pytest.approx(
        float(target[1] + 2 * target[2]), abs=1e-5
    )
    plain = clipped / clipped.sum()
    assert result.expectation("x").item() == pytest.approx(float(plain[1] + 2 * plain[2]), abs=1e-5)
    redrawn = result.get_samples(weights="residual", seed=0)["x"]
    freq = redrawn.bincount(minlength=3) / len(redrawn)
    assert torch.allclose(freq.double(), target, atol=1e-5)


def test_expectation_errors_name_what_is_wrong():
    result = make(torch.zeros(3))
    with pytest.raises(KeyError, match=r"no site 'y'; the sites are x"):
        result.expectation("y")
    with pytest.raises(ValueError, match=r"got shape \(\)"):
        result.expectation(lambda s: s["x"].sum())
    with pytest.raises(ValueError, match="residual"):
        result.expectation("x", corrected=True)
    with pytest.raises(ValueError, match="weights must be"):
        result.expectation("x", weights="smooth")
    with pytest.raises(ValueError, match="every weight is zero"):
        make([-inf, -inf]).expectation("x")
    with pytest.raises(ValueError, match="every weight is zero"):
        make([-inf, -inf]).get_normalized_weights()
    with pytest.raises(ValueError, match="no draws"):
        make(torch.zeros(0)).get_samples()


# Equally weighted draws


def test_resampling_is_systematic_in_the_weights():
    weights = torch.tensor([0.13, 0.0, 0.29, 0.58])
    result = make(weights.log(), samples={"x": torch.arange(4)})
    counts = result.get_samples(1000, seed=1)["x"].bincount(minlength=4)
    assert counts.sum() == 1000 and counts[1] == 0
    assert ((counts - 1000 * weights).abs() < 1).all()


def test_resampling_moves_all_sites_together():
    result = make([0.0, 2.0, 1.0], samples={"x": torch.arange(3), "y": torch.arange(3) * 10})
    draws = result.get_samples(50, seed=3)
    assert (draws["y"] == 10 * draws["x"]).all() and draws["x"].unique().numel() == 3


def test_chains_pool_by_evidence_and_group_by_number():
    # The second chain has nine times the evidence of the first.
    log_weights = torch.tensor([1.0, 1.0, 9.0, 9.0]).log()
    result = make(log_weights, samples={"x": torch.tensor([0, 0, 1, 1])}, chain_sizes=(2, 2))
    pooled = result.get_samples(1000, seed=0)["x"].float().mean()
    assert pooled.item() == pytest.approx(0.9, abs=1e-3)
    grouped = result.get_samples(500, group_by_chain=True, seed=0)["x"]
    assert grouped.shape == (2, 500)
    assert (grouped[0] == 0).all() and (grouped[1] == 1).all()


def test_weights_hold_within_each_chain():
    weights = torch.tensor([0.25, 0.75, 7.0, 3.0])
    result = make(weights.log(), chain_sizes=(2, 2))
    grouped = result.get_samples(100, group_by_chain=True, seed=5)["x"]
    assert (grouped[0] == 1).sum() == 75 and (grouped[1] == 2).sum() == 70


def test_iid_draws_come_back_themselves():
    result = make(torch.zeros(6), kind="iid", chain_sizes=(3, 3))
    assert result.get_samples()["x"] is result.samples["x"]
    assert result.get_samples(2)["x"].tolist() == [0, 1]
    assert result.get_samples(group_by_chain=True)["x"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert result.get_samples(2, group_by_chain=True)["x"].tolist() == [[0, 1], [3, 4]]
    more = result.get_samples(600, seed=0)["x"]
    # Each of six draws is expected 100 times; 40 is beyond six standard deviations.
    assert (more.long().bincount(minlength=6) - 100).abs().max() < 55


def test_markov_chains_are_thinned_evenly():
    result = make(torch.zeros(10), kind="chain")
    assert result.get_samples(5)["x"].tolist() == [0, 2, 4, 6, 8]


def test_unequal_chains_group_by_the_smallest():
    result = make(torch.zeros(5), kind="iid", chain_sizes=(2, 3))
    assert result.get_samples(group_by_chain=True)["x"].tolist() == [[0, 1], [2, 3]]


def test_seeds_reproduce_without_touching_the_global_state():
    result = make(torch.linspace(0, 5, 100))
    before = torch.get_rng_state()
    first, second = (result.get_samples(20, seed=7)["x"] for _ in range(2))
    assert torch.equal(first, second) and torch.equal(before, torch.get_rng_state())
    other = result.get_samples(20, seed=8)["x"]
    assert not torch.equal(first, other)
    with pytest.raises(ValueError, match="num_samples"):
        result.get_samples(-1)


# Diagnostics


def test_site_diagnostics_of_weighted_draws():
    x = torch.tensor([[1.0, 0.0], [2.0, 1.0], [4.0, 1.0]], dtype=torch.float64)
    probs = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    found = make(probs.log(), samples={"x": x}).diagnostics()
    mean = probs @ x
    expected = (probs @ (x - mean) ** 2) / (probs**2 @ (x - mean) ** 2)
    assert torch.allclose(found["x"]["n_eff"], expected)
    assert found["x"]["r_hat"].isnan().all()
    assert found["divergences"] == {"chain 0": []}


def test_r_hat_tells_chains_apart():
    torch.manual_seed(0)
    x = torch.randn(4000, 2)
    x[2000:, 1] += 2.0
    found = make(torch.zeros(4000), samples={"x": x}, chain_sizes=(2000, 2000)).diagnostics()
    r_hat = found["x"]["r_hat"]
    assert abs(r_hat[0] - 1) < 0.01 and r_hat[1] > 1.5
    # Means 0 and 2 apart by sd 1: R-hat^2 = 1 + var(means) = 3.
    assert r_hat[1].item() == pytest.approx(math.sqrt(3), abs=0.1)


def test_markov_chains_lose_draws_to_autocorrelation():
    torch.manual_seed(0)
    noise = torch.randn(4000)
    x = [noise[0]]
    for value in noise[1:]:
        x.append(0.9 * x[-1] + math.sqrt(1 - 0.81) * value)
    found = make(torch.zeros(4000), kind="chain", samples={"x": torch.stack(x)}).diagnostics()
    # An AR(1) chain of rho .9 keeps (1 - rho) / (1 + rho) of its draws, here 210.
    assert 100 < found["x"]["n_eff"].item() < 400
    short = make(torch.zeros(2), kind="chain").diagnostics()
    assert short["x"]["n_eff"].isnan()


def test_acceptance_rate_is_reported():
    found = make(torch.zeros(2), kind="iid", info={"acceptance_rate": 0.25}).diagnostics()
    assert found["acceptance rate"] == {"chain 0": 0.25}


# Predictive


def regression(x):
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 3):
        return pyro.sample("y", dist.Normal(slope * x, 0.1))


@pytest.mark.parametrize("parallel", [False, True])
def test_predictive_draws_given_the_aligned_draws(parallel):
    def explode(value):
        raise AssertionError("the reward was evaluated")

    x = torch.tensor([1.0, 2.0, 3.0])
    slope = torch.tensor([-1.0, 2.0])
    result = make(
        [-inf, 0.0],
        samples={"slope": slope},
        program=align(align(regression, explode), explode, 2.0),
        args=(x,),
    )
    predictive = result.predictive(num_samples=200, parallel=parallel, seed=0)
    assert isinstance(predictive, Predictive)
    y = predictive(x)["y"].reshape(200, 3)
    # Means of 200 draws of sd .1: six standard errors.
    assert (y.mean(0) - 2.0 * x).abs().max() < 6 * 0.1 / math.sqrt(200)
    assert result.predictive(return_sites=("slope",))(x)["slope"].unique().tolist() == [2.0]


def test_predictive_takes_another_program_and_needs_one():
    result = make([0.0, 0.0], samples={"slope": torch.ones(2)})
    with pytest.raises(ValueError, match="predictive"):
        result.predictive()
    assert result.predictive(regression)(torch.zeros(3))["y"].shape[0] == 2
