# SPDX-License-Identifier: Apache-2.0
"""SMC through the case that all samplers share; without steps it is importance sampling."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_tilt import align, scan
from pyro_tilt.infer import SMC
from pyro_tilt.testing.exact_programs import conjugate_gaussian
from pyro_tilt.testing.sampler_case import SamplerTestCase


class TestSMC(SamplerTestCase):
    sampler = SMC

    def make(self, program: Any, **options: Any) -> SMC:
        # All particles run together: there is no max_batch.
        options.pop("max_batch", None)
        return super().make(program, **options)

    def test_max_batch_bounds_the_rows_of_a_call(self) -> None:
        with pytest.raises(ValueError, match="max_batch"):
            SMC(conjugate_gaussian().aligned(), max_batch=10)

    def test_an_interrupt_leaves_nothing_broken(self) -> None:
        calls = 0

        def step(x, t):
            nonlocal calls
            calls += 1
            if calls == 7:
                raise KeyboardInterrupt
            return pyro.sample(f"x_{t}", dist.Normal(x, 1.0))

        def program():
            return scan("walk", step, torch.tensor(0.0), range(4))

        sampler = self.make(program, num_samples=20, seed=0, check_lineage=False)
        before = torch.get_rng_state()
        with pytest.raises(KeyboardInterrupt):
            sampler.run()
        assert torch.equal(before, torch.get_rng_state())
        assert not pyro.poutine.runtime._PYRO_STACK
        assert len(sampler.run()) == 20


def chain(length=5):
    def step(x, t):
        x = pyro.sample(f"x_{t}", dist.Normal(0.9 * x, torch.tensor(0.5)))
        pyro.sample(f"y_{t}", dist.Normal(x, 1.0), obs=torch.tensor(0.3))
        return x

    x = pyro.sample("start", dist.Normal(torch.tensor(0.2), 1.0))
    return scan("chain", step, x, range(length))


@pytest.mark.parametrize("threshold", [0.5, 1.0])
def test_beta_zero_with_one_particle_is_the_base_bit_for_bit(threshold):
    for seed in range(3):
        result = SMC(
            align(chain, lambda x: x, 0.0),
            num_particles=1,
            seed=seed,
            ess_threshold=threshold,
            twist=lambda x, t: x,
        ).run()
        pyro.set_rng_seed(seed)
        trace = pyro.poutine.trace(chain).get_trace()
        for name in ("start", "x_4"):
            assert torch.equal(result.samples[name][0], trace.nodes[name]["value"])


def test_given_nesting_saves_the_plain_run_and_changes_nothing():
    def nested():
        def step(x, t):
            with pyro.plate(f"rows_{t}", 3, dim=-1):
                x = pyro.sample(f"x_{t}", dist.Normal(x, 1.0))
                pyro.sample(f"v_{t}", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                pyro.sample(f"y_{t}", dist.Normal(x, 1.0), obs=torch.tensor([0.1, 0.2, 0.3]))
            return x

        single = pyro.sample("single", dist.Normal(0.0, 1.0))
        pyro.deterministic("constant", torch.tensor(3.0))
        x = scan("chain", step, torch.zeros(3), range(4))
        return pyro.deterministic("both", x.sum(-1) + single.squeeze(-1))

    calls = []

    def counted():
        calls.append(1)
        return nested()

    options = {"num_particles": 50, "seed": 1, "check_lineage": False, "progress": False}
    guessed = SMC(counted, **options).run()
    assert len(calls) == 2
    given = SMC(counted, max_plate_nesting=1, **options).run()
    assert len(calls) == 3
    shapes = {name: tuple(value.shape) for name, value in guessed.samples.items()}
    assert shapes == {
        "single": (50,),
        "constant": (50,),
        "x_3": (50, 3),
        "v_3": (50, 3, 2),
        "both": (50,),
    }
    for name in shapes:
        torch.testing.assert_close(given.samples[name], guessed.samples[name])
    torch.testing.assert_close(given.log_weights, guessed.log_weights)


def test_one_plain_run_serves_all_chains_and_runs():
    calls = []

    def counted(data):
        calls.append(1)
        return chain()

    sampler = SMC(counted, num_particles=5, num_chains=3, seed=0, check_lineage=False)
    data = torch.tensor(1.0)
    sampler.run(data)
    assert len(calls) == 4
    sampler.run(data)
    assert len(calls) == 7
    sampler.run(torch.tensor(1.0))
    assert len(calls) == 11


def test_steps_of_chains_are_stacked():
    result = SMC(chain, num_particles=50, num_chains=3, seed=0).run()
    assert result.steps["ess"].shape == (3, 5)
    assert result.steps["log_normalizer"].dtype == torch.float64
    assert ((result.steps["ess"] >= 1) & (result.steps["ess"] <= 50 + 1e-9)).all()
    assert (result.steps["unique_ancestors"] <= 50).all()
    assert ((result.stats["ancestor"] >= 0) & (result.stats["ancestor"] < 50)).all()


def test_network_rows_are_counted():
    from pyro_tilt.infer import counted

    net = counted(torch.nn.Linear(1, 1))

    def program():
        def step(x, t):
            return pyro.sample(f"x_{t}", dist.Normal(net(x.unsqueeze(-1)).squeeze(-1), 1.0))

        x = pyro.sample("start", dist.Normal(torch.tensor(0.0), 1.0))
        return scan("chain", step, x, range(4))

    result = SMC(program, num_particles=25, seed=0).run()
    assert result.cost.network_rows == 100
    assert result.cost.base_draws == 25
