# SPDX-License-Identifier: Apache-2.0
import fractions
import math
import random

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.reparam import LocScaleReparam

from pyro_tilt import rewards
from pyro_tilt.infer.proposal import Draws, ProgramProposal
from pyro_tilt.poutine import align, reward_factor

DATA = torch.tensor([0.3, -1.2, 0.7])


def hierarchy(data=DATA):
    scale = pyro.sample("scale", dist.Gamma(2.0, 1.0))
    z = pyro.sample("z", dist.Normal(torch.tensor([0.0, 1.0]), 1.0).to_event(1))
    with pyro.plate("rows", 3, dim=-1):
        x = pyro.sample("x", dist.Normal(z[..., 0], scale))
        pyro.sample("y", dist.Normal(x, 0.5), obs=data)
    pyro.deterministic("twice", 2 * scale)
    pyro.factor("prior", -scale.log())
    return x.sum(-1, keepdim=True) if x.dim() > 1 else x.sum()


def log_weight_by_trace(program, values, *args):
    """The log weight of one particle, from a plain traced run: factors, then beta r."""
    trace = poutine.trace(poutine.condition(program, data=values)).get_trace(*args)
    trace.compute_log_prob()
    total = dict.fromkeys(("factors", "tilt"), 0.0)
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and site["is_observed"] and name not in values:
            kind = "tilt" if "tilt" in site["infer"] else "factors"
            total[kind] += float(site["log_prob_sum"])
    return total["factors"], total["tilt"]


def test_weights_are_those_of_a_plain_run_particle_by_particle():
    program = align(hierarchy, lambda x: -x.square(), 0.3)
    proposal = ProgramProposal(program)
    assert proposal.latents == ["scale", "z", "x"]
    assert proposal.max_plate_nesting == 1 and proposal.beta == 0.3 and proposal.num_rewards == 1
    draws = proposal.draw(6)
    shapes = {name: tuple(value.shape) for name, value in draws.samples.items()}
    assert shapes == {"scale": (6,), "z": (6, 2), "x": (6, 3), "twice": (6,)}
    assert draws.log_weights.dtype == draws.log_factors.dtype == torch.float64
    assert draws.reward.dtype == torch.float32
    torch.testing.assert_close(draws.samples["twice"], 2 * draws.samples["scale"])
    for i in range(6):
        values = {name: draws.samples[name][i] for name in proposal.latents}
        factors, tilt = log_weight_by_trace(program, values)
        assert draws.log_factors[i].item() == pytest.approx(factors, rel=1e-5)
        assert 0.3 * draws.reward[i].item() == pytest.approx(tilt, rel=1e-5)
        assert draws.log_weights[i].item() == pytest.approx(factors + tilt, rel=1e-5)


def test_one_particle_draws_what_a_plain_run_draws_bit_for_bit():
    def program():
        hierarchy()
        k = pyro.sample("k", dist.Poisson(3.0))
        w = pyro.sample("w", dist.Dirichlet(torch.ones(20)))
        u = pyro.sample("u", dist.Normal(torch.zeros(40), 1.0).to_event(1))
        return (u.sum(-1) + k) * w[..., 0]

    aligned = align(program, lambda v: v)
    proposal = ProgramProposal(aligned)
    for seed in range(5):
        pyro.set_rng_seed(seed)
        trace = poutine.trace(aligned).get_trace()
        after = torch.rand(())
        pyro.set_rng_seed(seed)
        draws = proposal.draw(1)
        assert torch.rand(()) == after
        for name in proposal.latents:
            assert torch.equal(draws.samples[name][0], trace.nodes[name]["value"]), name


def test_sites_drawn_in_place_are_those_drawn_anywhere(monkeypatch):
    """Normal sites use the memory taken for them; the rest, and replayed ones, are not touched."""

    def program():
        z = pyro.sample("z", dist.Normal(0.5, 2.0))
        with pyro.plate("data", 3):
            x = pyro.sample("x", dist.Normal(z, 0.5))
            pyro.sample("wide", dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1))
            pyro.sample("y", dist.Normal(torch.zeros(3).double(), 1.0))
            pyro.sample("g", dist.Gamma(2.0, 1.0))
        return x.sum(-1)

    proposal = ProgramProposal(align(program, lambda x: x, beta=0.5))
    taken, take = {}, ProgramProposal._room

    def noted(self, *args):
        taken.update(take(self, *args))
        return taken

    monkeypatch.setattr(ProgramProposal, "_room", noted)
    pyro.set_rng_seed(3)
    ours = proposal.draw(50)
    assert {name: tuple(room.shape) for name, room in taken.items()} == {
        "z": (50, 1),
        "x": (50, 3),
        "y": (50, 3),
    }
    for name, room in taken.items():
        assert ours.samples[name].data_ptr() == room.data_ptr()
    monkeypatch.setattr(ProgramProposal, "_room", lambda *args: {})
    pyro.set_rng_seed(3)
    plain = proposal.draw(50)
    for name, value in plain.samples.items():
        assert torch.equal(ours.samples[name], value) and value.dtype == ours.samples[name].dtype
    assert torch.equal(ours.log_weights, plain.log_weights)
    monkeypatch.undo()
    assert proposal._room(5, None, {}) == {}
    assert set(proposal._room(5, -2, {"z": torch.zeros(5)})) == {"x", "y"}


@pytest.mark.parametrize("law", [dist.Normal, dist.Laplace])
def test_a_sample_shape_is_not_overlooked(law):
    """It would stand left of the particles, where no site may put it."""

    def program():
        return pyro.sample("x", law(0.0, 1.0), torch.Size([3]))

    assert ProgramProposal(program)._sites.recorded["x"].shape == (3,)
    with pytest.raises(ValueError, match="site 'x'"):
        ProgramProposal(program).draw(5)


def test_construction_leaves_every_random_state_as_it_was():
    def program():
        random.random()
        np.random.rand()
        return pyro.sample("x", dist.Normal(0.0, 1.0))

    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    ProgramProposal(align(program, lambda x: x))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    assert random.getstate() == before[2]


def test_arguments_reach_the_program():
    def program(loc, *, scale):
        return pyro.sample("x", dist.Normal(loc, scale))

    draws = ProgramProposal(program, (torch.tensor(50.0),), {"scale": 0.1}).draw(100)
    assert (draws.samples["x"] - 50.0).abs().max() < 1.0


def test_without_a_tilt_there_is_no_beta_and_no_reward():
    proposal = ProgramProposal(hierarchy)
    draws = proposal.draw(4)
    assert proposal.beta is None and proposal.num_rewards == 0
    assert torch.equal(draws.log_weights, draws.log_factors)
    assert not draws.reward.any()


@pytest.mark.parametrize("betas, common", [((2.0, 2.0), 2.0), ((2.0, -0.5), 1.0)])
def test_several_tilts(betas, common):
    def program():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        reward_factor("first", x, betas[0])
        return x

    proposal = ProgramProposal(align(program, lambda x: x.square(), betas[1]))
    draws = proposal.draw(5)
    x = draws.samples["x"].double()
    assert proposal.beta == common and proposal.num_rewards == 2
    torch.testing.assert_close(
        draws.log_weights, betas[0] * x + betas[1] * x.square(), rtol=1e-5, atol=1e-6
    )
    torch.testing.assert_close(
        common * draws.reward.double(), draws.log_weights, rtol=1e-5, atol=1e-6
    )


def test_scale_and_mask_enter_factors_and_rewards():
    keep = torch.tensor([True, False, True])

    def program():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 3), poutine.scale(scale=2.5), poutine.mask(mask=keep):
            pyro.sample("y", dist.Normal(z, 1.0), obs=DATA)
            reward_factor("r", (z - DATA).square(), -2.0, upper_bound=math.inf)
        with poutine.mask(mask=False):
            pyro.factor("never", z.new_full(z.shape, math.inf))

    draws = ProgramProposal(program).draw(4)
    z = draws.samples["z"].double()[:, None]
    kept = DATA.double()[keep]
    square = (z - kept).square()
    factors = 2.5 * (-0.5 * square - 0.5 * math.log(2 * math.pi)).sum(-1)
    torch.testing.assert_close(draws.log_factors, factors, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(draws.reward.double(), 2.5 * square.sum(-1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        draws.log_weights, factors - 5 * square.sum(-1), rtol=1e-5, atol=1e-5
    )


def test_subsampled_plate_shares_its_indices_and_scales_the_factors():
    data = torch.arange(100.0)

    def program():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 100, subsample_size=10) as rows:
            pyro.sample("y", dist.Normal(z, 10.0), obs=data[rows])
        return z

    proposal = ProgramProposal(align(program, lambda z: z.squeeze(-1)))
    assert proposal.latents == ["z"]
    pyro.set_rng_seed(4)
    draws = proposal.draw(7)
    pyro.set_rng_seed(4)
    torch.randn(7)
    z = draws.samples["z"].double()
    # The scaled minibatch sum is quadratic in z with the mean of ten data points inside it.
    log_factors = torch.stack([draws.log_factors, torch.ones(7).double(), z, z.square()], -1)
    solution = torch.linalg.lstsq(log_factors[:, 1:], log_factors[:, :1]).solution.squeeze(-1)
    torch.testing.assert_close(
        log_factors[:, 1:] @ solution, draws.log_factors, rtol=1e-5, atol=1e-3
    )
    assert solution[2].item() == pytest.approx(-0.5, abs=1e-3)
    torch.testing.assert_close(draws.reward, draws.samples["z"])


def test_zero_draws_and_negative_draws():
    proposal = ProgramProposal(align(hierarchy, lambda x: x))
    draws = proposal.draw(0)
    assert len(draws) == 0 and draws.samples["x"].shape == (0, 3)
    assert len(Draws.cat([draws, proposal.draw(2)])) == 2
    with pytest.raises(ValueError, match="n must"):
        proposal.draw(-1)


def test_index_and_cat_are_inverse():
    draws = ProgramProposal(align(hierarchy, lambda x: x)).draw(5)
    again = Draws.cat([draws.index(slice(0, 2)), draws.index(torch.tensor([2, 3, 4]))])
    for name, value in draws.samples.items():
        assert torch.equal(again.samples[name], value)
    assert torch.equal(again.log_weights, draws.log_weights)
    assert torch.equal(draws.index(draws.reward > 0).reward, draws.reward[draws.reward > 0])
    with pytest.raises(ValueError, match="no parts"):
        Draws.cat([])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_follows_the_program(dtype):
    def program():
        return pyro.sample("x", dist.Normal(torch.zeros((), dtype=dtype), 1.0))

    draws = ProgramProposal(align(program, lambda x: x)).draw(3)
    assert draws.samples["x"].dtype == draws.reward.dtype == dtype
    assert draws.log_weights.dtype == torch.float64


def test_weights_keep_float64_where_float32_would_lose_them():
    def program():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("large", torch.full_like(x, 1e8))
        return x

    draws = ProgramProposal(align(program, lambda x: x)).draw(50)
    torch.testing.assert_close(
        draws.log_weights - 1e8, draws.samples["x"].double(), rtol=0, atol=1e-7
    )


def test_bad_programs_are_refused_at_construction():
    def per_element():
        with pyro.plate("rows", 5):
            return pyro.sample("x", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match=r"\(5,\), expected \(\)"):
        ProgramProposal(align(per_element, lambda x: x))

    def outside_any_plate():
        x = pyro.sample("x", dist.Normal(torch.zeros(5), 1.0).to_event(1))
        reward_factor("taste", x)

    with pytest.raises(ValueError, match=r"taste.*\(5,\), expected \(\)"):
        ProgramProposal(outside_any_plate)

    def twice():
        pyro.sample("x", dist.Normal(0.0, 1.0))
        return pyro.sample("x", dist.Normal(0.0, 1.0))

    with pytest.raises(RuntimeError, match="(?i)multiple sample sites named 'x'"):
        ProgramProposal(twice)
    with pytest.raises(ValueError, match="NaN"):
        ProgramProposal(align(hierarchy, lambda x: x * math.nan))
    with pytest.raises(ValueError, match="max_plate_nesting=0"):
        ProgramProposal(hierarchy, max_plate_nesting=0)


def test_nan_at_some_particles_is_an_error_with_the_count():
    def program():
        return pyro.sample("x", dist.Normal(0.0, 1.0))

    def reward(x):
        return torch.where(torch.arange(x.numel()) == 3, math.nan, x) if x.dim() else x

    proposal = ProgramProposal(align(program, reward, name="taste"))
    with pytest.raises(ValueError, match="taste.*NaN.*1 of 10"):
        proposal.draw(10)

    def bad_factor():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("odd", torch.where(x > 0, math.nan, x) if x.dim() else x)

    with pytest.raises(ValueError, match=r"log factors of \d+ of 50.*odd"):
        ProgramProposal(bad_factor).draw(50)


def test_minus_infinity_is_a_zero_weight():
    def program():
        return pyro.sample("x", dist.Normal(0.0, 1.0))

    positive = rewards.Constraint(lambda x: x > 0)
    draws = ProgramProposal(align(program, positive, 2.0)).draw(100)
    assert torch.equal(draws.log_weights == 0.0, draws.samples["x"] > 0)
    assert torch.equal(draws.log_weights == -math.inf, draws.samples["x"] <= 0)
    draws = ProgramProposal(align(program, positive, 0.0)).draw(100)
    assert not draws.log_weights.any()


def test_programs_that_lose_the_particle_axis_say_so():
    def pooled():
        x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        return pyro.sample("y", dist.Normal(x[0], 1.0))

    with pytest.raises(ValueError, match="(?s)'y'.*") as error:
        ProgramProposal(pooled).draw(7)
    assert "vectorized=False" in "".join(error.value.__notes__)

    def branches():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        return x if x > 0 else -x

    with pytest.raises(RuntimeError, match="Boolean value") as error:
        ProgramProposal(align(branches, lambda x: x)).draw(7)
    assert "vectorized=False" in "".join(error.value.__notes__)


def test_data_dependent_control_flow_runs_in_a_loop():
    def program():
        x = pyro.sample("x", dist.Bernoulli(0.25))
        loc = 10.0 if x.item() else -10.0
        with pyro.plate("rows", 2):
            y = pyro.sample("y", dist.Normal(loc, 1.0))
            pyro.sample("obs", dist.Normal(y, 2.0), obs=torch.zeros(2))
        return y.sum()

    aligned = align(program, lambda s: s, 0.1)
    proposal = ProgramProposal(aligned, vectorized=False)
    pyro.set_rng_seed(0)
    draws = proposal.draw(40)
    assert draws.samples["y"].shape == (40, 2) and draws.reward.shape == (40,)
    x, y = draws.samples["x"], draws.samples["y"]
    assert 0 < x.sum() < 40
    assert torch.equal(x.bool(), y[:, 0] > 0)
    torch.testing.assert_close(draws.reward, y.sum(-1))
    factors = dist.Normal(y, 2.0).log_prob(torch.zeros(2)).sum(-1).double()
    torch.testing.assert_close(draws.log_factors, factors, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        draws.log_weights, factors + 0.1 * y.sum(-1).double(), rtol=1e-5, atol=1e-5
    )
    pyro.set_rng_seed(0)
    first = poutine.trace(aligned).get_trace().nodes["y"]["value"]
    assert torch.equal(first, y[0])


def test_sites_that_vary_between_runs_are_an_error():
    runs = iter(range(10))

    def program():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        if next(runs):
            pyro.sample("extra", dist.Normal(x, 1.0))

    with pytest.raises(ValueError, match=r"vary between runs.*\['extra'\]"):
        ProgramProposal(program).draw(5)


def test_a_reparametrised_site_is_recorded_under_its_own_name():
    program = poutine.reparam(hierarchy, config={"x": LocScaleReparam(0.0)})
    proposal = ProgramProposal(program)
    draws = proposal.draw(6)
    assert proposal.latents == ["scale", "z", "x_decentered"]
    noise, scale, loc = (draws.samples[n] for n in ("x_decentered", "scale", "z"))
    expected = loc[:, :1] + scale[:, None] * noise
    torch.testing.assert_close(draws.samples["x"], expected)


class Kekulize(ValueError):
    """As the packages of chemistry have them."""


def test_errors_of_a_reward_are_left_as_they_are():
    def explain(reward):
        program = align(
            lambda: pyro.sample("x", dist.Normal(torch.zeros(3), 1.0).to_event(1)), reward
        )
        with pytest.raises(Exception) as caught:
            proposal = ProgramProposal(program)
            proposal.draw(5)
        return "".join(getattr(caught.value, "__notes__", []))

    def broken(x):
        if x.dim() > 1:
            raise RuntimeError("broken")
        return x.sum(-1)

    def own(x):
        if x.dim() > 1:
            raise Kekulize("broken")
        return x.sum(-1)

    def elsewhere(x):
        # A ValueError of another package.
        return x.sum(-1) if x.dim() == 1 else fractions.Fraction("no number")

    def shapes(x):
        return x.sum(-1) if x.dim() == 1 else x @ x

    def index(x):
        return x.sum(-1) if x.dim() == 1 else x[7].sum()

    def items(x):
        return x.sum(-1) if x.dim() == 1 else torch.tensor(x.sum(-1).item())

    assert [explain(each) for each in (broken, own, elsewhere)] == [""] * 3
    for each in (shapes, index, items):
        assert "vectorized=False" in explain(each)
