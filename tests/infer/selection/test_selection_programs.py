# SPDX-License-Identifier: Apache-2.0
"""Selection on programs with observations, twists, plates and carries; bad input."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_tilt import rewards
from pyro_tilt.infer import SamplerWarning, ZeroWeights
from pyro_tilt.infer.selection import BlockBestOfN, SoftBestOfM
from pyro_tilt.infer.smc import TwistError
from pyro_tilt.poutine import scan, twist
from pyro_tilt.testing.gates import Z_SCORE, hotelling
from pyro_tilt.testing.hidden_markov import two_state_hmm
from pyro_tilt.testing.tabular_diffusion import tabular_masked_diffusion

REWARD = rewards.Linear(torch.tensor(1.0))


def walk(steps=3):
    def step(x, t):
        return pyro.sample(f"x_{t}", dist.Normal(x, 1.0))

    def program():
        x = pyro.sample("start", dist.Normal(0.0, 1.0))
        return scan("walk", step, x, range(steps))

    return program


def value(x, t):
    return 0.5 * x


def soft(program, **options):
    defaults = {"reward": REWARD, "value": value, "m": 4, "num_samples": 20, "seed": 0}
    return SoftBestOfM(program, **{"progress": False, **defaults, **options})


@pytest.mark.parametrize("kind", ["exact", "wrong"])
def test_observations_and_sites_before_the_scan(kind):
    """The evidence counts every observation once; ``z_0`` moves with what was kept."""
    case = two_state_hmm(length=4)
    rows = []
    for seed in range(120):
        result = SoftBestOfM(
            case.aligned(), value=case.twist(kind), m=3, num_samples=200, seed=seed
        ).run()
        weights = (result.residual_log_weights - case.log_normalizer).exp() / 200
        assert list(result.samples) == ["z_0", "z_4"]
        rows.append([float((weights * result.samples[z]).sum()) for z in ("z_0", "z_4")])
        rows[-1].append(float(weights.sum()))
    exact = torch.stack([case.smoothing[0][1], case.smoothing[4][1], torch.tensor(1.0).double()])
    hotelling(torch.tensor(rows), exact)


def test_exact_values_and_many_proposals_give_the_posterior():
    case = two_state_hmm(length=4)
    result = SoftBestOfM(
        case.aligned(), value=case.twist(), m=300, exact_values=True, num_samples=8000, seed=0
    ).run()
    for name, t in (("z_0", 0), ("z_4", 4)):
        share, exact = float(result.samples[name].double().mean()), float(case.smoothing[t][1])
        # The bias of four steps of 300 proposals is far below one percent.
        assert abs(share - exact) < 0.01 + Z_SCORE * math.sqrt(exact * (1 - exact) / 8000)


@pytest.mark.filterwarnings("ignore::pyro_tilt.infer.SamplerWarning")
def test_twists_of_the_program_are_its_values():
    case = tabular_masked_diffusion()
    logits = case.kernels.log()

    def program():
        x = pyro.sample("x_3", dist.Categorical(logits=case.marginals[3].log()))

        def step(x, t):
            x = pyro.sample(f"x_{t}", dist.Categorical(logits=logits[t][x]))
            twist(f"first_{t}", 0.25 * case.log_soft_values[t][x])
            twist(f"second_{t}", lambda: 0.75 * case.log_soft_values[t][x])
            # A second site, so that both runs draw the same numbers in the same order.
            return pyro.deterministic(f"copy_{t}", x)

        return scan("chain", step, x, [2, 1, 0])

    options = {"reward": case.reward, "num_samples": 500, "seed": 1, "m": 4}
    stated = SoftBestOfM(program, beta=case.beta, **options).run()
    given = SoftBestOfM(program, beta=case.beta, value=case.twist(), **options).run()
    assert torch.equal(stated.samples["x_0"], given.samples["x_0"])
    torch.testing.assert_close(stated.residual_log_weights, given.residual_log_weights)
    override = SoftBestOfM(program, beta=case.beta, value=case.twist("wrong"), **options).run()
    assert not torch.equal(override.samples["x_0"], given.samples["x_0"])


def test_a_carry_of_many_parts_and_plates_moves_with_what_was_kept():
    def program():
        with pyro.plate("items", 2):
            start = pyro.sample("start", dist.Normal(torch.zeros(2), 1.0))

        def step(carry, t):
            with pyro.plate(f"items_{t}", 2):
                x = pyro.sample(f"x_{t}", dist.Normal(carry["x"], 1.0))
            return {"x": x, "sum": carry["sum"] + x, "first": carry["first"]}

        carry = scan("walk", step, {"x": start, "sum": start, "first": start}, range(3))
        pyro.deterministic("first", carry["first"])
        pyro.deterministic("sum", carry["sum"])
        return carry["sum"].sum(-1)

    result = soft(program, value=lambda c, t: c["sum"].sum(-1), beta=0.3, num_samples=300).run()
    assert list(result.samples) == ["start", "x_2", "first", "sum"]
    assert result.samples["start"].shape == (300, 2)
    assert torch.equal(result.samples["start"], result.samples["first"])
    torch.testing.assert_close(result.stats["reward"], result.samples["sum"].sum(-1))
    base = soft(program, value=lambda c, t: c["sum"].sum(-1), m=1, num_samples=300).run()
    assert result.stats["reward"].mean() > base.stats["reward"].mean() + 1.0


def test_one_proposal_is_the_base_bit_for_bit_whatever_the_values():
    result = soft(walk(), m=1, num_samples=1, seed=3, beta=2.0).run()
    pyro.set_rng_seed(3)
    trace = pyro.poutine.trace(walk()).get_trace()
    assert result.samples["start"][0] == trace.nodes["start"]["value"]
    assert result.samples["x_2"][0] == trace.nodes["x_2"]["value"]


def test_a_factor_inside_a_step_counts_once():
    """Independent Gaussian states with linear log factors: the evidence is a product."""

    def step(x, t):
        x = pyro.sample(f"x_{t}", dist.Normal(torch.zeros_like(x), 1.0))
        pyro.factor(f"bonus_{t}", 0.5 * x)
        return x

    def program():
        x = pyro.sample("start", dist.Normal(0.0, 1.0))
        return scan("steps", step, x, range(3))

    result = soft(program, beta=0.4, m=2, num_samples=20_000, value=lambda x, t: 0.0 * x).run()
    exact = 2 * 0.5 * 0.5**2 + 0.5 * 0.9**2
    error = float(result.log_normalizer) - exact
    assert abs(error) < Z_SCORE * float(result.log_normalizer_error)


def test_lost_draws_are_flagged_and_have_weight_zero():
    def blocked(x, t):
        return torch.where(x > 0.5, 0.0, -math.inf)

    with pytest.warns(SamplerWarning, match="all 2 proposals"):
        result = soft(walk(), value=blocked, m=2, num_samples=200).run()
    lost = result.stats["lost"]
    assert 0 < int(lost.sum()) < 200
    assert torch.equal(lost, result.residual_log_weights == -math.inf)
    assert not bool(result.residual_log_weights.isnan().any())
    nothing = rewards.Constraint(lambda x: torch.zeros_like(x, dtype=torch.bool))
    with pytest.raises(ZeroWeights) as error:
        soft(walk(), reward=nothing).run()
    assert len(error.value.partial) == 20
    with pytest.raises(ZeroWeights):
        BlockBestOfN(walk(), reward=nothing, value=value, n=2, block=1, num_samples=5).run()


def test_max_batch_bounds_the_rows():
    sizes = []

    def step(x, t):
        sizes.append(x.numel())
        return pyro.sample(f"x_{t}", dist.Normal(x, 1.0))

    def program():
        return scan("walk", step, pyro.sample("start", dist.Normal(0.0, 1.0)), range(2))

    result = soft(program, m=7, num_samples=100, max_batch=50).run()
    assert len(result) == 100
    assert max(sizes) <= 50
    with pytest.raises(ValueError, match="max_batch"):
        soft(program, m=51, max_batch=50)


def test_chains_merge():
    result = soft(walk(), num_chains=3, num_samples=400).run()
    assert result.chain_sizes == (400,) * 3
    single = soft(walk(), num_samples=400).run()
    assert torch.equal(single.samples["x_2"], result.samples["x_2"][:400])
    assert result.certificate.law == "search"
    assert float(result.expectation("x_2", corrected=True)) > 2.0


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        (lambda x, t: x * math.nan, "step 0: the value is NaN"),
        (lambda x, t: x + math.inf, "step 0: the value is NaN or"),
        (lambda x, t: x.mean(), r"step 0: the value has shape \(\)"),
        (lambda x, t: 1.0, "step 0: the value is a float"),
    ],
)
def test_bad_values_name_the_step(wrong, match):
    with pytest.raises(TwistError, match=match):
        soft(walk(), value=wrong).run()


def test_bad_programs_are_named():
    with pytest.raises(ValueError, match="no scan"):
        soft(lambda: pyro.sample("x", dist.Normal(0.0, 1.0))).run()
    with pytest.raises(ValueError, match="no value"):
        soft(walk(), value=None).run()

    def twice():
        x = walk()()
        return scan("again", lambda x, t: x + 0.0 * t, x, range(2))

    with pytest.raises(ValueError, match="'again' follows scan 'walk'"):
        soft(twice).run()

    def plated():
        with pyro.plate("items", 2):
            x = pyro.sample("start", dist.Normal(0.0, 1.0))
            return scan("inner", lambda x, t: x, x, range(2)).sum(-1)

    with pytest.raises(ValueError, match="'inner' stands inside plate 'items'"):
        soft(plated).run()

    def shared():
        x = pyro.sample("start", dist.Normal(0.0, 1.0))
        return scan("pair", lambda c, t: (c[0], c[1] + 1.0), (x, torch.tensor(0.0)), range(2))[0]

    with pytest.raises(ValueError, match=r"carry\[1\].*lacks the leftmost axis"):
        soft(shared, value=lambda c, t: c[0]).run()


def test_the_same_name_in_every_step_is_refused():
    def step(x, t):
        return pyro.sample("x", dist.Normal(x, 1.0))

    def program():
        return scan("walk", step, pyro.sample("start", dist.Normal(0.0, 1.0)), range(3))

    for checked in (True, False):
        with pytest.raises((RuntimeError, ValueError), match="'x'"):
            soft(program, check_lineage=checked).run()


def test_bad_options():
    for m in (0, -2, 1.5):
        with pytest.raises(ValueError, match="m must be"):
            soft(walk(), m=m)
    with pytest.raises(TypeError, match="value"):
        soft(walk(), value=3.0)
    with pytest.raises(NotImplementedError, match="vectorized"):
        soft(walk(), vectorized=False)
    block = {"reward": REWARD, "value": value}
    for name in ("n", "block"):
        with pytest.raises(ValueError, match=f"{name} must be"):
            BlockBestOfN(walk(), **block, **{name: 0})
    with pytest.raises(TypeError, match="no beta"):
        BlockBestOfN(walk(), beta=1.0, **block)
    with pytest.raises(ValueError, match="reward="):
        BlockBestOfN(walk(), reward=None, value=value)
    case = two_state_hmm(length=3)
    with pytest.raises(ValueError, match="'y_1'"):
        BlockBestOfN(case.program, reward=case.reward, value=value).run()
