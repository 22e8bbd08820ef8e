# SPDX-License-Identifier: Apache-2.0
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_tilt.poutine import ParticlePlate


def nested(seen):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", 4, subsample_size=2, dim=-1):
        x = pyro.sample("x", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(z, 1.0), obs=torch.zeros(2))
    seen.update(z=z, x=x, d=pyro.deterministic("d", x + 0.0))


@pytest.mark.parametrize("n", [1, 7])
def test_only_expands_and_never_scales(n):
    seen = {}
    with poutine.trace() as tracer, ParticlePlate(n, dim=-2):
        nested(seen)
    nodes = tracer.trace.nodes
    assert seen["z"].shape == (n, 1) and seen["x"].shape == (n, 2, 3)
    assert nodes["y"]["fn"].batch_shape == (n, 2)
    assert nodes["z"]["scale"] == 1.0 and nodes["y"]["scale"] == 2.0
    assert "particles" not in nodes
    assert {f.name: f.size for f in nodes["y"]["cond_indep_stack"]} == {"particles": n, "rows": 2}
    # Expanding a deterministic site would square the number of particles in its log_prob.
    assert nodes["d"]["fn"].shape() == (n, 2, 3)


def test_particles_are_independent_and_alike():
    with ParticlePlate(20_000, dim=-1):
        x = pyro.sample("x", dist.Normal(2.0, 3.0))
    # Standard error 3 / sqrt(20000) = 0.021; five of them fail once in 1.7 million.
    assert abs(float(x.mean()) - 2.0) < 5 * 0.0213
    assert len(x.unique()) > 19_000


def test_agrees_with_a_pyro_plate_draw_for_draw():
    def program():
        z = pyro.sample("z", dist.Gamma(2.0, 1.0))
        with pyro.plate("rows", 3):
            return pyro.sample("x", dist.Normal(z, 1.0))

    pyro.set_rng_seed(3)
    with pyro.plate("ours", 5, dim=-2):
        theirs = program()
    pyro.set_rng_seed(3)
    with ParticlePlate(5, dim=-2):
        assert torch.equal(program(), theirs)


def test_keeps_dims_to_the_left_for_enumeration():
    with ParticlePlate(5, dim=-1), poutine.trace() as tracer:
        pyro.sample("x", dist.Normal(torch.zeros(4, 1), 1.0))
    assert tracer.trace.nodes["x"]["fn"].batch_shape == (4, 5)


def test_errors_name_the_site_and_the_plates():
    with pytest.raises(ValueError, match="(?s)'x'.*size 3 at dim -1"), ParticlePlate(5, dim=-1):
        pyro.sample("x", dist.Normal(torch.zeros(3), 1.0))
    with (
        pytest.raises(ValueError, match="(?s)rows.*collide"),
        ParticlePlate(5, dim=-1),
        pyro.plate("rows", 3, dim=-1),
    ):
        pass
    with pytest.raises(ValueError, match="negative"):
        ParticlePlate(5, dim=0)
    with pytest.raises(ZeroDivisionError):
        ParticlePlate(0, dim=-1)


def test_nothing_is_left_behind_after_an_error():
    with pytest.raises(KeyError), ParticlePlate(5, dim=-1):
        raise KeyError
    with ParticlePlate(2, dim=-1):
        assert pyro.sample("x", dist.Normal(0.0, 1.0)).shape == (2,)
