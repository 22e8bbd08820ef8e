# SPDX-License-Identifier: Apache-2.0
"""SoftBestOfN against its exact law, and through the shared case."""

import math
from functools import partial

import pyro
import pytest
import torch

from pyro_tilt import align
from pyro_tilt.infer import ProgramProposal, SamplerWarning, SoftBestOfN, ZeroWeights
from pyro_tilt.infer.selection import SoftBestOfM
from pyro_tilt.infer.soft_best_of_n import _Groups
from pyro_tilt.language import TabularLM, laws
from pyro_tilt.ops.importance import log_mean_exp
from pyro_tilt.testing.gates import chi_square
from pyro_tilt.testing.selection_case import SelectionTestCase

DRAWS, LEAST = 200_000, 1e-4
LM = TabularLM.random(4, 3, seed=2, temperature=0.8)
TABLE = torch.randn(64, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
TABLE[::7] = TABLE[3]


def reward(tokens):
    return TABLE[LM.index(tokens)]


class TestSoftBestOfN(SelectionTestCase):
    sampler = SoftBestOfN
    options = {"n": 2}


@pytest.mark.parametrize(("n", "max_batch"), [(1, None), (2, None), (5, 2**15)])
def test_exact_law(n, max_batch):
    count = DRAWS
    sampler = SoftBestOfN(
        LM.program(),
        reward=reward,
        beta=1.5,
        n=n,
        num_samples=count,
        seed=n,
        max_batch=max_batch,
        progress=False,
    )
    result = sampler.run()
    rows = LM.index(result.samples["tokens"])
    assert chi_square(rows, laws.soft_best_of_n(LM.law(), TABLE, 1.5, n)) > LEAST
    if n > 1:
        assert chi_square(rows, laws.tilt(LM.law(), TABLE, 1.5)) < 1e-8
    assert torch.equal(result.stats["reward"], TABLE[rows])
    assert result.cost.base_draws == result.cost.reward_calls == n * count
    # The residual weights correct the law, and the stated estimate of the bound is one.
    weights = result.residual_log_weights.softmax(0)
    table = torch.zeros(64).double().index_add_(0, rows, weights)
    assert 0.5 * (table - laws.tilt(LM.law(), TABLE, 1.5)).abs().sum() < 0.02
    bound = laws.soft_best_of_n_kl_bound(LM.law(), TABLE, 1.5, n)
    assert result.info["kl_bound_estimate"] == pytest.approx(float(bound), rel=0.05)


def test_a_group_larger_than_the_block():
    """The choice over several blocks of 2, 2, 2 and 1 proposals keeps the law."""
    proposal = ProgramProposal(align(LM.program(), reward, 1.5))
    pyro.set_rng_seed(0)
    groups = _Groups(proposal, 7, 60_000, torch.Generator().manual_seed(1))
    draws, means = groups.choose(30_000)
    rows = LM.index(draws.samples["tokens"])
    assert chi_square(rows, laws.soft_best_of_n(LM.law(), TABLE, 1.5, 7)) > LEAST
    log_z = float(LM.soft_values(TABLE, 1.5)[0])
    assert float(log_mean_exp(means)) == pytest.approx(log_z, abs=0.02)
    # One slot at a time where not even one group fits.
    options = {"reward": reward, "n": 7, "num_samples": 3, "seed": 1, "progress": False}
    assert SoftBestOfN(LM.program(), max_batch=3, **options).run().cost.base_draws == 21


@pytest.mark.parametrize("block", [1, 2, 3])
def test_blocks(block):
    soft = LM.soft_values(TABLE, 1.5)
    sampler = SoftBestOfN(
        align(LM.program(), reward, 1.5),
        value=LM.value_function(soft),
        n=3,
        block=block,
        exact_values=True,
        num_samples=DRAWS,
        seed=block,
        progress=False,
    )
    assert isinstance(sampler, SoftBestOfM)
    result = sampler.run()
    base = LM.law().reshape(4, 4, 4)
    law = laws.blockwise(base, soft, block, partial(laws.soft_best_of_n, beta=1.0, n=3))
    assert chi_square(LM.index(result.samples["tokens"]), law.flatten()) > LEAST
    assert (result.certificate.law, result.certificate.budget) == ("consistent", "n")
    assert float(result.log_normalizer) == pytest.approx(float(soft[0]), abs=0.05)
    search = SoftBestOfN(LM.program(), reward=reward, value=LM.value_function(soft), block=1, n=2)
    assert search.exact_values is False


def test_certificate():
    result = SoftBestOfN(LM.program(), reward=reward, n=4, num_samples=500, seed=0).run()
    certificate = result.certificate
    assert (certificate.target, certificate.law, certificate.budget) == (
        "joint tilt",
        "consistent",
        "n",
    )
    assert "soft best-of-n law (n=4)" in certificate.covers
    assert 0.0 < certificate.estimated_total_variation < 1.0


def test_draws_of_weight_zero_are_told():
    table = torch.full((64,), -math.inf, dtype=torch.float64)
    with pytest.raises(ZeroWeights) as error:
        SoftBestOfN(LM.program(), reward=lambda y: table[LM.index(y)], n=2, num_samples=5).run()
    assert len(error.value.partial) == 5
    half = table.clone()
    half[:32] = 0.0
    with pytest.warns(SamplerWarning, match="weight zero"):
        result = SoftBestOfN(
            LM.program(), reward=lambda y: half[LM.index(y)], n=1, num_samples=200, seed=0
        ).run()
    rows = LM.index(result.samples["tokens"])
    assert torch.equal(result.stats["lost"], rows >= 32)


def test_bad_input():
    for n in (0, -1, 2.5, True):
        with pytest.raises(ValueError, match="n must be"):
            SoftBestOfN(LM.program(), reward=reward, n=n)
    with pytest.raises(ValueError, match="give block="):
        SoftBestOfN(LM.program(), reward=reward, value=lambda c, t: c)
    with pytest.raises(ValueError, match="block must be"):
        SoftBestOfN(LM.program(), reward=reward, block=0)
    with pytest.raises(ValueError, match="NaN"):
        SoftBestOfN(LM.program(), reward=lambda y: reward(y) * math.nan).run()
    with pytest.raises(ValueError, match="shape"):
        SoftBestOfN(LM.program(), reward=lambda y: y.double()).run()
