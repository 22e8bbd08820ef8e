# SPDX-License-Identifier: Apache-2.0
"""Paths of the living, against paths kept whole."""

import pyro
import pyro.distributions as dist
import torch

from pyro_tilt import scan
from pyro_tilt.infer import SMC
from pyro_tilt.infer.smc import Paths
from pyro_tilt.infer.smc.paths import PathStore
from pyro_tilt.ops import reindex
from pyro_tilt.testing.hidden_markov import two_state_hmm


def whole_path_program(steps=30):
    """Carries its whole path along, which is what pruning must reproduce."""

    def step(carry, t):
        x, past = carry
        x = pyro.sample(f"x_{t}", dist.Normal(0.9 * x, 1.0))
        pyro.sample(f"y_{t}", dist.Normal(x, 0.5), obs=torch.tensor(0.4))
        return x, [*past, x]

    _, past = scan("chain", step, (torch.tensor(0.0), []), range(steps))
    return pyro.deterministic("path", torch.stack(past, -1))


def test_paths_are_those_the_particles_went():
    result = SMC(whole_path_program, num_particles=60, seed=0, keep_paths=True).run()
    assert 5 < int(result.steps["resampled"].sum()) < 30
    assert list(result.paths) == [f"x_{t}" for t in range(30)]
    rows = torch.stack([result.paths[f"x_{t}"] for t in range(30)], -1)
    assert torch.equal(rows, result.samples["path"])
    chosen = result.paths.trace(["x_3", "x_29"], torch.tensor([7, 7, 0]))
    assert torch.equal(chosen["x_3"], rows[[7, 7, 0], 3])


def test_paths_of_chains_are_joined():
    result = SMC(whole_path_program, num_particles=20, num_chains=2, seed=0, keep_paths=True).run()
    rows = torch.stack([result.paths[f"x_{t}"] for t in range(30)], -1)
    assert torch.equal(rows, result.samples["path"])
    assert SMC(whole_path_program, num_particles=20).run().paths is None


def test_dead_lineages_are_cut_off():
    generator = torch.Generator().manual_seed(0)
    store, size = PathStore(200), 200
    whole: list[torch.Tensor] = []
    for t in range(300):
        x = torch.randn(size, generator=generator)
        store.append({f"x_{t}": x})
        whole.append(x)
        if t % 3:
            index = torch.randint(size, (size,), generator=generator)
            store.move(index)
            whole = reindex(whole, index)
    # Whole paths would be 60000 nodes; the theory says of order N log N more than one line.
    assert store.nodes < 300 + 4 * size * 6
    paths = Paths([store])
    for t in (0, 100, 290, 299):
        assert torch.equal(paths[f"x_{t}"], whole[t])


def test_smoothing_of_a_hidden_chain():
    """Weighted paths estimate the smoothed marginals, states in the middle included."""
    case = two_state_hmm(length=6)
    result = SMC(case.aligned(), num_particles=20_000, num_chains=10, seed=0, keep_paths=True).run()
    middle = result.paths["z_3"].double().reshape(10, -1)
    weights = result.log_weights.reshape(10, -1).softmax(-1)
    means = (middle * weights).sum(-1)
    error = float(means.std()) / 10**0.5
    # Ten means: a t statistic of 9 degrees of freedom beyond 8.6 has probability 1e-5.
    assert abs(float(means.mean()) - float(case.smoothing[3, 1])) < 8.6 * error
    assert error < 0.01
