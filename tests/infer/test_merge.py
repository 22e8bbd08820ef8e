# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from pyro_tilt.infer.base_draws import BaseDraws
from pyro_tilt.infer.certificate import Certificate
from pyro_tilt.infer.cost import Cost
from pyro_tilt.infer.evidence import chain_error
from pyro_tilt.infer.merge import merge
from pyro_tilt.infer.weighted_samples import WeightedSamples
from pyro_tilt.ops.psis import pareto_smooth

CONSISTENT = Certificate(target="joint tilt", law="consistent", budget="num_samples")
EXACT = Certificate(target="joint tilt", law="exact")
inf = math.inf


def run(log_weights, kind="weighted", **fields):
    log_weights = torch.as_tensor(log_weights, dtype=torch.float64)
    num = len(log_weights)
    fields.setdefault("samples", {"x": torch.arange(num)})
    fields.setdefault("certificate", CONSISTENT if kind == "weighted" else EXACT)
    fields.setdefault("beta", 1.0)
    return WeightedSamples(kind=kind, log_weights=log_weights, **fields)


def iid(log_z, num, **fields):
    return run(torch.full((num,), log_z), kind="iid", **fields)


def test_weighted_runs_pool_by_evidence():
    first, second = torch.tensor([1.0, 2.0, 3.0]).log(), torch.tensor([10.0]).log()
    pooled = merge(run(first), run(second))
    assert torch.equal(pooled.log_weights, torch.cat([first, second]).double())
    # The mean of all four weights, not of the two evidences 2 and 10.
    assert pooled.log_normalizer.exp().item() == pytest.approx(4.0)
    assert pooled.chain_sizes == (3, 1)
    assert pooled.chain_log_normalizers.exp().tolist() == pytest.approx([2.0, 10.0])
    assert pooled.expectation(lambda s: s["x"]).item() == pytest.approx((2 + 6 + 0) / 16)


def test_iid_runs_pool_by_number():
    pooled = merge(iid(0.0, 3), iid(math.log(9.0), 1))
    assert pooled.kind == "iid" and len(pooled) == 4
    assert pooled.expectation("x").item() == (0 + 1 + 2 + 0) / 4
    assert pooled.log_weights.exp().tolist() == pytest.approx([3.0] * 4)
    assert pooled.chain_log_normalizers.exp().tolist() == pytest.approx([1.0, 9.0])
    assert pooled.certificate == EXACT


def test_iid_draws_enter_weighted_ones_with_their_evidence():
    pooled = merge(run([0.0, 2.0]), iid(1.5, 3))
    assert pooled.kind == "weighted"
    assert pooled.log_weights.tolist() == [0.0, 2.0, 1.5, 1.5, 1.5]
    assert pooled.certificate.law == "consistent"
    with pytest.raises(ValueError, match="log_normalizer of the Rejection run is nan"):
        merge(run([0.0]), iid(0.0, 2, log_normalizer=math.nan, sampler="Rejection"))


def test_merging_is_associative():
    torch.manual_seed(1)
    runs = [
        run(torch.randn(n), psis_log_weights=torch.zeros(n), info={"acceptance_rate": 0.1 * n})
        for n in (3, 5, 4)
    ]
    once, twice = merge(*runs), merge(merge(*runs[:2]), runs[2])
    assert once.chain_sizes == twice.chain_sizes == (3, 5, 4)
    for name in ("log_weights", "log_normalizer", "log_normalizer_error", "psis_log_weights"):
        assert torch.allclose(getattr(once, name), getattr(twice, name), atol=1e-14)
    assert once.info["acceptance_rate"] == pytest.approx(twice.info["acceptance_rate"])


def test_one_run_is_itself_and_none_is_an_error():
    only = run([0.0])
    assert merge(only) is only
    with pytest.raises(ValueError, match="at least one"):
        merge()
    assert len(WeightedSamples.merge([only, only])) == 2


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"certificate": Certificate(target="chain", law="exact")}, "targets.*joint tilt.*chain"),
        ({"beta": 2.0}, r"betas.*1\.0 and 2\.0"),
        ({"beta": None}, "betas.*None"),
        ({"samples": {"y": torch.zeros(2)}}, "sites.*x.*y"),
        ({"samples": {"x": torch.zeros(2, 3)}}, r"sites.*\(3,\)"),
    ],
)
def test_different_runs_do_not_merge(fields, word):
    with pytest.raises(ValueError, match=f"(?s)only runs of one target.*{word}"):
        merge(run([0.0, 0.0]), run([0.0, 0.0], **fields))


def test_confidences_pay_the_union_bound_and_the_largest_bound_stands():
    certs = [
        Certificate(target="t", law="bounded", total_variation=tv, confidence=0.95)
        for tv in (0.1, 0.05)
    ]
    pooled = merge(*(iid(0.0, 2, certificate=cert) for cert in certs))
    assert pooled.certificate.total_variation == 0.1
    assert pooled.certificate.confidence == pytest.approx(0.9)


def test_costs_and_info_pool():
    parts = [
        iid(
            0.0,
            30,
            cost=Cost(base_draws=100),
            info={
                "acceptance_rate": 0.5,
                "total_proposals": 60.0,
                "wasted": 2.0,
                "target_network_rows": 30.0,
                "clipped_mass": 0.1,
                "clipped_mass_upper": 0.2,
                "only_here": 1.0,
            },
        ),
        iid(
            0.0,
            10,
            cost=Cost(base_draws=5, network_rows=7),
            info={
                "acceptance_rate": 0.1,
                "total_proposals": 100.0,
                "wasted": 1.0,
                "target_network_rows": 12.0,
                "clipped_mass": 0.2,
                "clipped_mass_upper": 0.3,
            },
        ),
    ]
    pooled = merge(*parts)
    assert pooled.cost == Cost(base_draws=105, network_rows=7)
    assert pooled.info == pytest.approx(
        {
            "acceptance_rate": 40 / 160,
            "total_proposals": 160.0,
            "wasted": 3.0,
            "target_network_rows": 42.0,
            "clipped_mass": 0.125,
            "clipped_mass_upper": 0.3,
        }
    )


def test_stats_keep_what_all_runs_have():
    pooled = merge(
        run([0.0], stats={"reward": torch.tensor([1.0]), "age": torch.tensor([3])}),
        iid(0.0, 2, stats={"reward": torch.tensor([2.0, 3.0]), "proposals": torch.ones(2)}),
    )
    assert {name: value.tolist() for name, value in pooled.stats.items()} == {
        "reward": [1.0, 2.0, 3.0]
    }


def test_steps_stack_along_the_chains():
    short = {"ess": torch.tensor([5.0]), "cut": torch.tensor([True]), "age": torch.tensor([2])}
    long = {
        "ess": torch.tensor([1.0, 2.0]),
        "cut": torch.tensor([True, False]),
        "age": torch.tensor([0, 1]),
    }
    pooled = merge(merge(run([0.0], steps=long), run([0.0], steps=long)), run([0.0], steps=short))
    assert pooled.steps["ess"].shape == (3, 2)
    assert pooled.steps["ess"][2, 0] == 5 and pooled.steps["ess"][2, 1].isnan()
    assert pooled.steps["cut"].tolist() == [[True, False], [True, False], [True, False]]
    assert pooled.steps["age"].tolist() == [[0, 1], [0, 1], [2, -1]]


def test_base_draws_join():
    base = BaseDraws(reward=torch.zeros(3), log_factors=torch.ones(3))
    pooled = merge(iid(0.0, 2, base=base), iid(0.0, 2), iid(0.0, 1, base=base))
    assert pooled.base.reward.shape == (6,)
    assert merge(iid(0.0, 2), iid(0.0, 2)).base is None


def test_residuals_are_normalised_run_by_run():
    # The corrections of two runs with different baselines are known up to a factor of each.
    first = torch.tensor([1.0, 3.0]).log()
    second = torch.tensor([50.0, 150.0, 100.0]).log()
    pooled = merge(
        iid(0.0, 2, residual_log_weights=first), iid(0.0, 3, residual_log_weights=second)
    )
    assert pooled.residual_log_weights.exp().tolist() == pytest.approx([0.5, 1.5, 0.5, 1.5, 1.0])
    plain = merge(run([0.0]), iid(0.0, 2, residual_log_weights=first))
    assert plain.residual_log_weights.exp().tolist() == pytest.approx([1.0, 0.5, 1.5])


def test_smoothing_is_done_anew_on_the_pooled_weights():
    torch.manual_seed(0)
    parts = [torch.randn(400, dtype=torch.float64) * 2 for _ in range(2)]
    runs = [run(p, psis_log_weights=pareto_smooth(p)[0], pareto_k=0.1) for p in parts]
    pooled = merge(*runs)
    smoothed, k = pareto_smooth(torch.cat(parts))
    assert torch.equal(pooled.psis_log_weights, smoothed) and pooled.pareto_k == k.item()
    assert merge(run([0.0]), run([0.0])).psis_log_weights is None


def test_a_known_normaliser_keeps_no_error():
    pooled = merge(*(iid(0.25, 2, log_normalizer_error=0.0) for _ in range(3)))
    assert pooled.log_normalizer_error == 0.0
    unknown = merge(iid(0.0, 2), iid(1.0, 2))
    assert unknown.log_normalizer_error > 0


def test_no_evidence_stays_none():
    none = merge(*(iid(0.0, n, log_normalizer=math.nan) for n in (2, 3)))
    assert none.log_normalizer.isnan() and none.log_normalizer_error.isnan()
    assert none.chain_log_normalizers.isnan().all() and (none.log_weights == 0.0).all()
    mixed = merge(iid(1.0, 2), iid(0.0, 3, log_normalizer=math.nan))
    assert mixed.log_normalizer.isnan() and mixed.log_normalizer_error.isnan()
    weighted = merge(run([0.0, 1.0]), run([2.0, 0.5], log_normalizer=math.nan))
    assert weighted.log_normalizer.isnan() and weighted.log_normalizer_error.isnan()
    assert weighted.log_weights.tolist() == [0.0, 1.0, 2.0, 0.5]
    again = merge(none, iid(0.0, 1, log_normalizer=math.nan))
    assert again.chain_sizes == (2, 3, 1) and again.log_normalizer_error.isnan()


def test_a_convention_that_runs_share_has_no_spread():
    assert merge(iid(0.0, 2), iid(0.0, 3)).log_normalizer_error.isnan()


def test_the_program_is_kept():
    assert merge(run([0.0], program=len, args=(1,)), run([0.0], program=len)).args == (1,)


def test_error_across_unequal_runs_is_calibrated():
    """The estimated variance of the pooled evidence averages to the true one.

    Runs of 50 to 1,600 weights of mean and standard deviation one, whose means are drawn as
    Gaussians. The gate of five standard errors has a false-alarm rate of 6e-7; weighting the
    runs alike would be off by a factor of about four.
    """
    generator = torch.Generator().manual_seed(3)
    sizes = (50, 100, 400, 1600)
    noise = torch.randn(4000, 4, generator=generator, dtype=torch.float64)
    means = 1.0 + noise / torch.tensor(sizes, dtype=torch.float64).sqrt()
    found = torch.stack([chain_error(row.log(), sizes) ** 2 for row in means])
    z = (found.mean() - 1.0 / sum(sizes)) / (found.std() / math.sqrt(len(found)))
    assert abs(z) < 5
