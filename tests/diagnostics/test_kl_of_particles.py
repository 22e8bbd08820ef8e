# SPDX-License-Identifier: Apache-2.0
"""The divergence of particles that were resampled on the way, against tilts by enumeration."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_tilt import align, scan
from pyro_tilt.diagnostics import kl, kl_to_base
from pyro_tilt.infer import SMC
from pyro_tilt.language import TabularLM, laws

BETA, RUNS = 2.0, 60
LM = TabularLM.random(3, 6, seed=4, temperature=0.7)
TABLE = torch.randn(3**6, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
EXACT = float(kl.exact(laws.tilt(LM.law(), TABLE, BETA), LM.law()))
# Not the soft values themselves, so that the last weights vary.
TWIST = LM.value_function([0.6 * level for level in LM.soft_values(TABLE, BETA)])


def sampler(**options):
    defaults = {"num_samples": 400, "ess_threshold": 1.0, "twist": TWIST, "progress": False}
    return SMC(
        LM.program(), reward=lambda y: TABLE[LM.index(y)], beta=BETA, **{**defaults, **options}
    )


def check_calibration(results, exact):
    values, errors = torch.tensor([kl_to_base(each) for each in results]).double().T
    # Both gates at a false alarm of less than 1e-5: the root mean square of 60 scores of one has a
    # standard deviation of .09.
    assert float(((values - exact) / errors).square().mean().sqrt()) < 1.5
    assert abs(float(values.mean()) - exact) < 4.5 * float(values.std()) / math.sqrt(RUNS)
    # Nor is the error a wild guess.
    assert float(errors.median()) < 3.0 * float(values.std())


@pytest.mark.parametrize("resampling", ["systematic", "multinomial"])
def test_one_run_of_a_resampled_chain_knows_its_error(resampling):
    runs = [sampler(resampling=resampling, seed=seed).run() for seed in range(RUNS)]
    assert all(run.steps["resampled"].sum() >= 5 for run in runs)
    check_calibration(runs, EXACT)


def test_the_evidence_of_the_run_takes_the_place_of_that_of_its_weights():
    result = sampler(seed=3).run()
    spent = BETA * float(result.expectation(lambda _: result.stats["reward"], weights="raw"))
    assert kl_to_base(result).value == pytest.approx(spent - float(result.log_normalizer))
    # Another beta is read off in the same way.
    weaker = result.reweight(1.0)
    gained = float(weaker.expectation(lambda _: result.stats["reward"], weights="raw"))
    assert kl_to_base(weaker).value == pytest.approx(gained - float(weaker.log_normalizer))


def test_families_count_once():
    result = sampler(seed=3).run()
    error = kl_to_base(result).error
    result.stats["ancestor"] = torch.zeros_like(result.stats["ancestor"])
    assert kl_to_base(result).error > 3.0 * error


def test_observations_leave_the_evidence_of_the_base_to_the_weights():
    """Two states and three observations, by enumeration."""
    stay, emit = torch.tensor([[0.8, 0.2], [0.3, 0.7]]), torch.tensor([0.3, 0.6])
    seen = torch.tensor([1.0, 0.0, 1.0])

    def program():
        def step(state, t):
            row = stay[0].expand(2) if state is None else stay[state]
            state = pyro.sample(f"z_{t}", dist.Categorical(row))
            pyro.sample(f"y_{t}", dist.Bernoulli(emit[state]), obs=seen[t])
            return state

        return scan("s", step, None, range(3))

    def reward(z):
        return 1.5 * z.double()

    paths = torch.cartesian_prod(*[torch.arange(2)] * 3)
    logs = stay[0][paths[:, 0]].log() + stay[paths[:, 0], paths[:, 1]].log()
    logs = logs + stay[paths[:, 1], paths[:, 2]].log()
    like = torch.where(seen == 1.0, emit[paths], 1.0 - emit[paths]).log().sum(-1)
    base = (logs + like).double().log_softmax(0)
    exact = float(kl.exact((base + 1.5 * paths[:, 2]).log_softmax(0), base, log=True))
    aligned = align(program, reward, 1.0)
    runs = [
        SMC(aligned, num_samples=500, ess_threshold=1.0, seed=seed, progress=False).run()
        for seed in range(RUNS)
    ]
    assert all("base_log_normalizer" not in run.info for run in runs)
    check_calibration(runs, exact)
