# SPDX-License-Identifier: Apache-2.0
"""Outside a sampler a scan is a loop, a checkpoint is nothing and a twist is not there."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoNormal

from pyro_tilt import align, checkpoint, scan
from pyro_tilt import twist as state_twist
from pyro_tilt.infer import ImportanceSampler

DATA = torch.tensor([0.4, -0.2, 0.7])


def looped(data=DATA):
    x = pyro.sample("x_0", dist.Normal(0.0, 1.0))
    for t, y in enumerate(data, start=1):
        x = pyro.sample(f"x_{t}", dist.Normal(0.8 * x, 0.6))
        pyro.sample(f"y_{t}", dist.Normal(x, 0.5), obs=y)
    return x


def scanned(data=DATA):
    def step(x, item):
        t, y = item
        x = pyro.sample(f"x_{t}", dist.Normal(0.8 * x, 0.6))
        state_twist(f"psi_{t}", lambda: pytest.fail("nobody listens"))
        pyro.sample(f"y_{t}", dist.Normal(x, 0.5), obs=y)
        return x

    start = pyro.sample("x_0", dist.Normal(0.0, 1.0))
    return scan("chain", step, start, enumerate(data, start=1))


def checked(data=DATA):
    x = pyro.sample("x_0", dist.Normal(0.0, 1.0))
    for t, y in enumerate(data, start=1):
        x = pyro.sample(f"x_{t}", dist.Normal(0.8 * x, 0.6))
        pyro.sample(f"y_{t}", dist.Normal(x, 0.5), obs=y)
        state_twist(f"psi_{t}", -x.square())
        x, _ = checkpoint(f"c_{t}", x, {"t": t})
    return x


@pytest.mark.parametrize("program", [scanned, checked])
def test_traces_are_those_of_the_loop(program):
    pyro.set_rng_seed(1)
    expected = pyro.poutine.trace(looped).get_trace()
    pyro.set_rng_seed(1)
    trace = pyro.poutine.trace(program).get_trace()
    assert list(trace.nodes) == list(expected.nodes)
    assert torch.equal(trace.log_prob_sum(), expected.log_prob_sum())
    pyro.set_rng_seed(1)
    with pyro.poutine.block():
        assert torch.equal(program(), expected.nodes["_RETURN"]["value"])


@pytest.mark.parametrize("program", [scanned, checked])
def test_engines_of_pyro_see_ordinary_sites(program):
    kernel = NUTS(program, jit_compile=False)
    mcmc = MCMC(kernel, num_samples=5, warmup_steps=5, disable_progbar=True)
    mcmc.run()
    assert sorted(mcmc.get_samples()) == ["x_0", "x_1", "x_2", "x_3"]
    loss = SVI(program, AutoNormal(program), pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    assert loss.step() < 100.0
    draws = Predictive(program, num_samples=7, parallel=False)()
    assert draws["x_3"].shape == (7,)


def test_samplers_without_steps_run_the_loop():
    weighted = ImportanceSampler(
        align(scanned, lambda x: -x.abs()), num_samples=200, seed=0, pareto_smoothing=False
    ).run()
    expected = ImportanceSampler(
        align(looped, lambda x: -x.abs()), num_samples=200, seed=0, pareto_smoothing=False
    ).run()
    assert torch.equal(weighted.log_weights, expected.log_weights)


def test_scan_goes_over_tensors_and_wants_a_function():
    total = scan("sum", lambda carry, row: carry + row, torch.zeros(2), torch.ones(3, 2))
    assert total.tolist() == [3.0, 3.0]
    assert scan("none", lambda carry, row: 1 / 0, "init", []) == "init"
    with pytest.raises(TypeError, match="scan 's': step must be callable"):
        scan("s", 3.0, None, [])
